"""Values as JSON text, without the numbers that JSON has no form for: they are errors, not null."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec

from workerd.errors import InvalidValue

MAX_PATH_CHARS = 200
"""Characters of a path in an error; keys may be of any length."""

_encode = msgspec.json.Encoder().encode
_Place = tuple[Any, Any] | None
"""Where a value stands: the place of its container, and its key or index; None for the whole."""


def encode(name: str, value: Any) -> bytes:
    """The value as JSON; `name`: what it is called in errors.

    Raises InvalidValue with the path of a number that is NaN or infinite, and what msgspec raises for a
    value that JSON cannot represent.
    """
    data = _encode(value)
    # msgspec writes null for such a number, so that text without null needs no second look.
    if value is not None and b"null" in data:
        check_finite(name, msgspec.to_builtins(value, str_keys=True, enc_hook=_opaque))
    return data


def encode_given(name: str, value: Any) -> bytes:
    """The same for a value of a caller's. Raises InvalidValue, whatever is wrong with it.

    `name`: "" where the caller says in its own words what the value is.
    """
    try:
        return encode(name, value)
    except InvalidValue:
        raise
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        said = f"cannot be encoded as JSON: {error}"
        raise InvalidValue(f"{name}: {said}" if name else said) from None


def check_finite(name: str, value: Any) -> None:
    """Raises InvalidValue with the path of a number that is NaN or infinite in lists and dicts of `value`."""
    pending: list[tuple[Any, _Place]] = [(value, None)]
    while pending:  # not by recursion, which nested values could exhaust
        inner, place = pending.pop()
        if isinstance(inner, float):
            if not math.isfinite(inner):
                path = (name + _path(place)).removeprefix(".")[:MAX_PATH_CHARS]
                raise InvalidValue(f"{path}: expected a number that JSON has, or null, got {inner}")
        elif isinstance(inner, dict):
            pending.extend((item, (place, key)) for key, item in inner.items())
        elif isinstance(inner, list | tuple):
            pending.extend((item, (place, index)) for index, item in enumerate(inner))


def refuse_non_finite(name: str, text: bytes) -> None:
    """Raises InvalidValue with the path if the text would be JSON but for NaN or an infinity in it."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return
    check_finite(name, value)


def _opaque(_: object) -> None:
    """Stands for msgspec.Raw, JSON already, in the second look."""


def _path(place: _Place) -> str:
    parts: list[str] = []
    while place is not None:
        place, key = place
        parts.append(f"[{key}]" if isinstance(key, int) else f".{key}")
    return "".join(reversed(parts))
