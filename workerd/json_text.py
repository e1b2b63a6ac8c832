"""Values as JSON text, without the numbers that JSON has no form for."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from workerd.errors import InvalidValue

_encode = msgspec.json.Encoder().encode


def encode(name: str, value: Any) -> bytes:
    """`value` as JSON; `name`: what it is called in errors.

    Raises InvalidValue for NaN and infinities, with the path to the first, and what the encoder raises.
    """
    encoded = _encode(value)
    # The encoder writes them as null; where there is none, nothing has to be looked through.
    if b"null" in encoded:
        path = _not_finite(msgspec.to_builtins(value), name)
        if path is not None:
            raise InvalidValue(f"{path}: expected a number that JSON has, got NaN or an infinity")
    return encoded


def _not_finite(value: Any, path: str) -> str | None:
    """The path to the first number in `value` that is not finite."""
    if isinstance(value, float):
        return None if math.isfinite(value) else path
    if isinstance(value, dict):
        items = ((f"{path}.{key}", item) for key, item in value.items())
    elif isinstance(value, list | tuple):
        items = ((f"{path}[{number}]", item) for number, item in enumerate(value))
    else:
        return None
    return next((found for name, item in items if (found := _not_finite(item, name)) is not None), None)
