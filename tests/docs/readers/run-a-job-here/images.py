def thumbnail(size: int = 0, watermark: str = "") -> None:
    if size:
        raise ValueError("no picture of this size")
