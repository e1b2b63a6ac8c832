"""Values as literals of MySQL's SQL; apart from the driver, which not every process may load."""

from __future__ import annotations

import math

from workerd.errors import StoreRefused

_ESCAPES = str.maketrans({
    "\0": "\\0", "\n": "\\n", "\r": "\\r", "\x1a": "\\Z", "'": "\\'", "\\": "\\\\",
})  # fmt: skip
_SPECIAL = tuple(chr(code) for code in _ESCAPES)


def literal(value: object) -> str:
    """Bytes in hex, text quoted, None as NULL. Raises StoreRefused for a float that is not finite."""
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f"x'{value.hex()}'"
    if isinstance(value, str):
        return f"'{_escaped(value)}'"
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    if isinstance(value, float):
        raise StoreRefused(f"{value} is not a finite number", 1264)
    raise TypeError(f"{type(value).__name__} is no SQL parameter")


def _escaped(value: str) -> str:
    # Nearly no text has any of them, and looking is ten times as fast as translating.
    for character in _SPECIAL:
        if character in value:
            return value.translate(_ESCAPES)
    return value
