"""What is printed: data on standard output, sentences for people on standard error.

Text that comes out of the store was written by anybody. Nothing of it reaches a terminal as a command:
every control character is shown as an escape.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

# C0 and C1 controls, DEL, lone surrogates, and what turns the direction of text around.
_HARMFUL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
_LINE_HARMFUL = re.compile("[\t\n]")


def _escaped(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape").decode("ascii")


def harmless(text: object) -> str:
    """Text of several lines with every control character but tab and newline escaped."""
    return _HARMFUL.sub(_escaped, str(text))


def line(text: object) -> str:
    """Text as one line, with every control character escaped."""
    return _LINE_HARMFUL.sub(_escaped, harmless(text))


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


def dim(text: str) -> str:
    return f"\x1b[2m{text}\x1b[0m" if has_colour() else text


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


def seconds_text(seconds: float | None) -> str | None:
    """A duration for people: `0.4 ms`, `12.3 s`, `5 min 02 s`, `3 h 20 min`, `2 d 4 h`."""
    if seconds is None:
        return None
    if seconds < 0.9995:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def size_text(size: float) -> str:
    """A size for people, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def plural(count: int, noun: str, many: str = "") -> str:
    """`1 job`, `2 jobs`."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"
