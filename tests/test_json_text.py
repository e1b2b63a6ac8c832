"""JSON without numbers that it has no form for."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from workerd.errors import InvalidValue
from workerd.json_text import encode


class Point(msgspec.Struct):
    """A value that the encoder knows."""

    x: float
    y: float | None = None


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (math.nan, "vars"),
        ({"a": math.inf}, "vars.a"),
        ({"a": [1, {"b": (None, -math.inf)}]}, "vars.a[1].b[1]"),
        ({"p": Point(math.nan)}, "vars.p.x"),
        ([msgspec.Raw(b"1"), math.nan], "vars[1]"),
        ({1: math.nan}, "vars.1"),
    ],
)
def test_what_is_not_finite_is_refused_with_its_path(value: Any, path: str) -> None:
    """It would be null, which is another value."""
    with pytest.raises(InvalidValue) as caught:
        encode("vars", value)
    assert str(caught.value).startswith(f"{path}: ")


def test_json_text_of_the_caller_and_deep_nesting_are_taken() -> None:
    """Where null is beside them, too."""
    assert encode("vars", [msgspec.Raw(b'{"a":null}'), None]) == b'[{"a":null},null]'
    deep: Any = None
    for _ in range(400):
        deep = [deep]
    assert encode("vars", deep) == b"[" * 400 + b"null" + b"]" * 400


@pytest.mark.parametrize("value", [{"a": None, "b": 1.5}, [None], "null", {"null": 1e308}, Point(1.0), None])
def test_null_itself_is_a_value(value: Any) -> None:
    """And text that says so."""
    assert msgspec.json.decode(encode("vars", value)) == msgspec.to_builtins(value)
