"""Values worded for people: durations, sizes, counts, and text by anybody made harmless to show.

Text that comes out of the store was written by anybody. Nothing of it may reach a terminal as a command:
every control character is shown as an escape.
"""

from __future__ import annotations

import re

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
