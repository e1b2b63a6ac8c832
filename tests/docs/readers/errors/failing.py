def charge() -> None:
    raise ConnectionError("503 for url https://bank.example.org/charges")


def thumbnail(image: int) -> None:
    raise ValueError(f"image {image} is empty")
