"""Durations and sizes as they are written: `"90s"`, `"4MiB"`."""

from __future__ import annotations

import math
import re

from workerd.config.wrong_value import wrong

DURATIONS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
SIZES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
MAX_DURATION_S = 36500 * 86400.0
"""A longer duration would leave the range of the store's dates."""
MAX_WINDOW_S = 366 * 86_400
"""Of `unique_for`."""
MAX_SIZE_BYTES = 1 << 50
"""A larger size is a typo."""

_QUANTITY = re.compile(r"\s*([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([A-Za-z]*)\s*", re.ASCII)
_DURATION = 'a duration such as "250ms", "30s", "5m", "2h", "7d" or a number of seconds'
_SIZE = 'a size such as "64KiB", "512MiB", "1GiB" or a number of bytes'


def duration(value: object) -> float:
    """Seconds, from text with a unit or a plain number; raises InvalidValue."""
    seconds = _quantity(value, DURATIONS, "s", _DURATION)
    if seconds > MAX_DURATION_S:
        raise wrong('a duration of at most "36500d"', value)
    return seconds


def size(value: object) -> int:
    """Bytes, from text with a unit or a whole number; raises InvalidValue."""
    count = _quantity(value, SIZES, "B", _SIZE)
    if count > MAX_SIZE_BYTES:
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


def duration_literal(seconds: float) -> str:
    """The shortest way to write a duration: `2h`, `90s`, `250ms`."""
    for unit in ("d", "h", "m", "s"):
        count = seconds / DURATIONS[unit]
        if count >= 1 and count == int(count):
            return f"{int(count)}{unit}"
    return f"{seconds:.10g}s" if seconds >= 1 or not seconds else f"{seconds * 1000:.10g}ms"


def seconds_literal(seconds: float) -> str:
    """A duration in seconds alone, exact to the microsecond: `2592000s`, `0.25s`."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"


def size_literal(count: int) -> str:
    """The shortest exact way to write a size: `4MiB`, `1000B`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if count and count % SIZES[unit] == 0:
            return f"{count // SIZES[unit]}{unit}"
    return f"{count}B"
