def mail(to: str, cc: str = "") -> None:
    raise ValueError(f"{to!r} is no address")
