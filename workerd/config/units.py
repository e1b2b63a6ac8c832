"""Durations and sizes as people write them, in the configuration, on the command line and by HTTP."""

from __future__ import annotations

import math
import re

DURATIONS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
SIZES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}

LONGEST = 36500 * 86400.0
"""Seconds; a duration beyond it would leave what the store can date."""
LARGEST = 1 << 50
"""Bytes; beyond it a size is a slip of the pen."""

_QUANTITY = re.compile(r"\s*([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([A-Za-z]*)\s*", re.ASCII)
_DURATION = 'a duration such as "250ms", "30s", "5m", "2h", "7d" or a number of seconds'
_SIZE = 'a size such as "64KiB", "512MiB", "1GiB" or a number of bytes'


def duration(value: object) -> float:
    """Seconds, from text with a unit or a plain number; ValueError says what was expected and got."""
    seconds = _quantity(value, DURATIONS, "s", _DURATION)
    if seconds > LONGEST:
        raise wrong('a duration of at most "36500d"', value)
    return seconds


def size(value: object) -> int:
    """Bytes, from text with a unit or a whole number; ValueError says what was expected and got."""
    count = _quantity(value, SIZES, "B", _SIZE)
    if count > LARGEST:
        raise wrong('a size of at most "1024TiB"', value)
    if count != int(count):
        raise wrong("a whole number of bytes", value)
    return int(count)


def _quantity(value: object, units: dict[str, float] | dict[str, int], plain: str, expected: str) -> float:
    if isinstance(value, str):
        found = _QUANTITY.fullmatch(value)
        unit = (found[2] or plain) if found else ""
        if not found or unit not in units:
            raise wrong(expected, value)
        return float(found[1]) * units[unit]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(expected, value)
    if not 0 <= value < math.inf:
        raise wrong(expected, value)
    # An int beyond a float's range must not become an OverflowError.
    return float(min(value, 1 << 62))


def duration_text(seconds: float) -> str:
    """The shortest way to write a duration: `2h`, `90s`, `250ms`."""
    for unit in ("d", "h", "m", "s"):
        count = seconds / DURATIONS[unit]
        if count >= 1 and count == int(count):
            return f"{int(count)}{unit}"
    return f"{seconds:.10g}s" if seconds >= 1 or not seconds else f"{seconds * 1000:.10g}ms"


def size_text(count: int) -> str:
    """The shortest exact way to write a size: `4MiB`, `1000B`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if count and count % SIZES[unit] == 0:
            return f"{count // SIZES[unit]}{unit}"
    return f"{count}B"


def wrong(expected: str, value: object) -> ValueError:
    """The one form of complaint about a value."""
    return ValueError(f"expected {expected}, got {shown(value)}")


_CREDENTIALS = re.compile(r"(?<=://).*@|(?<=[?&])[^=&]*(?:pass|secret|token|key)[^=&]*=[^&]*", re.I | re.S)


def printable(text: str) -> str:
    """Text without control characters and terminal escapes; those are written as `\\x1b`."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(value: object) -> str:
    """A value in a message: its kind, cut and escaped, lists and tables unopened, no credentials."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            text = printable(_CREDENTIALS.sub("***@", value[:2000]))
            return f'the text "{text[:60]}{"…" if len(text) > 60 else ""}"'
        case int() | float():
            return f"the number {value}" if abs(value) < 1e15 or value != value else "a huge number"
        case list() | tuple():
            return "a list"
        case dict():
            return "a table"
        case _:
            return f"a {type(value).__name__}"
