"""Pages of lists: newest first, each with a cursor for the one behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Page(NamedTuple, Generic[T]):
    """Part of a list; `next` is the cursor of what follows, None at the end."""

    rows: list[T]
    next: str | None


def cursor_text(moment: int, ident: bytes) -> str:
    """The position of a row: its time in microseconds and its id."""
    return f"{moment}.{ident.hex()}"


def read_cursor(text: str) -> tuple[int, bytes]:
    """The position that a cursor names; ValueError if it is none."""
    moment, point, ident = text.partition(".")
    try:
        if not point or not moment.isascii() or not moment.isdigit() or len(moment) > 18 or len(ident) != 32:
            raise ValueError
        return int(moment), bytes.fromhex(ident)
    except ValueError:
        raise ValueError("expected `after` to be the `next` of a page before it") from None


def cut_page(items: list[T], limit: int, cursor: Callable[[T], str]) -> Page[T]:
    """The first `limit` of `items`, of which one more was asked for than fits."""
    shown = items[:limit]
    return Page(shown, cursor(shown[-1]) if len(items) > limit and shown else None)
