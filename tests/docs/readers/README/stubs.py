def resize(image: str, width: int) -> bytes:
    return f"{image} at {width}".encode()
