"""What is printed: data on standard output, sentences for people on standard error."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from workerd.text import harmless, line


def say(sentence: str) -> None:
    """A sentence for a person, on standard error."""
    print(harmless(sentence), file=sys.stderr, flush=True)


def put(text: str = "") -> None:
    """A line of data, on standard output."""
    print(harmless(text))


def put_json(document: Any) -> None:
    """One JSON document, on standard output."""
    text = msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
    print(text.replace("\x7f", "\\u007f"))


def is_terminal() -> bool:
    """Whether standard output is a terminal that somebody looks at."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def has_colour() -> bool:
    """Whether standard output may be coloured."""
    return is_terminal() and not os.environ.get("NO_COLOR")


def bold(text: str) -> str:
    return f"\x1b[1m{text}\x1b[0m" if has_colour() else text


def _width(text: str) -> int:
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def _cut(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    kept, used = [], 0
    for char in text:
        used += _width(char)
        if used > width - 1:
            break
        kept.append(char)
    return "".join(kept) + "…"


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Aligned columns; the last one takes what is left, and is cut only on a terminal."""
    texts = [["-" if cell in (None, "") else line(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(headers, *texts, strict=True)]
    left = sum(widths[:-1]) + 2 * (len(widths) - 1)
    room = max(20, shutil.get_terminal_size().columns - left) if is_terminal() else None
    print(bold(_row([h.upper() for h in headers], widths, room)))
    for row in texts:
        print(_row(row, widths, room))


def _row(cells: Sequence[str], widths: Sequence[int], room: int | None) -> str:
    padded = [cell + " " * (width - _width(cell)) for cell, width in zip(cells, widths, strict=True)]
    padded[-1] = cells[-1] if room is None else _cut(cells[-1], room)
    return "  ".join(padded).rstrip()


def pairs(rows: Iterable[tuple[str, object]]) -> None:
    """Names and values, one pair a line; what is None is left out."""
    shown = [(name, value) for name, value in rows if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print(f"{name.ljust(width)}  {line(value)}")
