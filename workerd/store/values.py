"""Columns as the engines hand them over, and the program's values: the one place that knows both.

Every function raises ValueError for what is not of its kind; who reads a row decides what follows.
"""

from __future__ import annotations

from typing import Any

from workerd import clock


def text(value: Any) -> str:
    """UTF-8 text."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    raise ValueError(f"expected text, got {type(value).__name__}")


def text_or_none(value: Any) -> str | None:
    return None if value is None else text(value)


def lenient(value: Any) -> str | None:
    """Text for people: what is not UTF-8 is shown as U+FFFD."""
    if value is None:
        return None
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def time(value: Any) -> int:
    """A time, microseconds since the epoch."""
    if isinstance(value, (bytes, str)):
        return clock.from_text(value)
    raise ValueError(f"expected a time, got {type(value).__name__}")


def time_or_none(value: Any) -> int | None:
    return None if value is None else time(value)


def integer(value: Any) -> int:
    if isinstance(value, int):
        return value
    raise ValueError(f"expected a whole number, got {type(value).__name__}")


def integer_or_none(value: Any) -> int | None:
    return None if value is None else integer(value)


def blob(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    raise ValueError(f"expected bytes, got {type(value).__name__}")


def blob_or_none(value: Any) -> bytes | None:
    return None if value is None else blob(value)


def identifier(value: Any) -> bytes:
    """An id: exactly 16 bytes."""
    if isinstance(value, bytes) and len(value) == 16:
        return value
    raise ValueError("expected an id of 16 bytes")


def at(us: int | None) -> str | None:
    """A time as a statement's parameter."""
    return None if us is None else clock.to_text(us)
