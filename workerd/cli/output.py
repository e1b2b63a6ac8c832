"""Output of commands: data on standard output, messages for people on standard error."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from workerd.text import harmless, line

Document = dict[str, Any]
"""A JSON object, such as those of `workerd.documents`."""

MIN_LAST_COLUMN_WIDTH = 20


def notify(message: str) -> None:
    """Print a message for a person on standard error."""
    print(harmless(message), file=sys.stderr, flush=True)


def confirm(question: str) -> bool:
    """Ask a person on the terminal; anything but yes is no."""
    print(f"{harmless(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def print_text(text: str = "") -> None:
    """Print data on standard output, control characters escaped."""
    print(harmless(text))


def print_json(document: Any) -> None:
    """Print one JSON document on standard output."""
    text = msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
    print(text.replace("\x7f", "\\u007f"))


def print_heading(text: str) -> None:
    """Print a heading after an empty line, bold on a terminal."""
    print(f"\n{bold(text)}")


def is_terminal() -> bool:
    """Whether standard output is a terminal that can be drawn on."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def bold(text: str) -> str:
    """The text in bold where standard output may be coloured."""
    return f"\x1b[1m{text}\x1b[0m" if is_terminal() and not os.environ.get("NO_COLOR") else text


# Not Rich's tables: they take 70 ms to import, which is a third of such a command, and cut or wrap ids and
# errors at 80 columns when the output is piped into another program.
def print_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print aligned columns; the last one is cut to the terminal's width, and whole in a pipe."""
    texts = [["-" if cell in (None, "") else line(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(headers, *texts, strict=True)]
    used = sum(widths[:-1]) + 2 * (len(widths) - 1)
    room = None
    if is_terminal():
        room = max(MIN_LAST_COLUMN_WIDTH, shutil.get_terminal_size().columns - used)
    print(bold(_row([header.upper() for header in headers], widths, room)))
    for row in texts:
        print(_row(row, widths, room))


def _row(cells: Sequence[str], widths: Sequence[int], room: int | None) -> str:
    padded = [cell + " " * (width - _width(cell)) for cell, width in zip(cells, widths, strict=True)]
    padded[-1] = cells[-1] if room is None else _cut(cells[-1], room)
    return "  ".join(padded).rstrip()


def _width(text: str) -> int:
    """Columns that the text takes in a terminal."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
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


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print names and values, one pair a line, without those that are None."""
    shown = [(name, value) for name, value in fields if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print(f"{name.ljust(width)}  {line(value)}")
