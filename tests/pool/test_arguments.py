"""Binding vars to arguments: strictly by annotations; every error names the field."""

from __future__ import annotations

import contextlib
import datetime
import enum
import functools
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerd.errors import LoadError
from workerd.handler import Context
from workerd.job import Claim
from workerd.pool.arguments import Arguments
from workerd.signature import BadVars, check_vars, parse

if TYPE_CHECKING:
    from collections.abc import Nowhere
    from decimal import Decimal


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Size:
    width: int
    height: int = 1


class RunStub:
    def stopping(self) -> bool:
        return False

    def progress(self, fraction: float | None, note: str | None) -> None: ...

    def log(self) -> Any: ...


CTX = Context(
    Claim(id=bytes(16), attempt=1, claimed_at=0, mono=0, handler="h", vars=b"", run_at=0), RunStub()
)


def bound(target: Any, vars: Any = b"{}") -> tuple[list[Any], dict[str, Any]]:
    data = vars if isinstance(vars, bytes) else msgspec.json.encode(vars)
    return Arguments(target).bind(data, CTX)


def error_of(target: Any, vars: Any) -> str:
    with pytest.raises(BadVars) as caught:
        bound(target, vars)
    return str(caught.value)


def thumbnail(image: str, width: int = 200) -> None: ...


# -- binding


def test_vars_become_keywords_and_the_functions_defaults_apply() -> None:
    """Missing arguments are not passed."""
    assert bound(thumbnail, {"image": "a"}) == ([], {"image": "a"})
    assert bound(thumbnail, {"image": "a", "width": 3}) == ([], {"image": "a", "width": 3})


def test_values_are_converted_by_annotations() -> None:
    """Dates, ids, enums, dataclasses and containers."""

    def rich(
        when: datetime.datetime,
        who: uuid.UUID,
        colour: Colour,
        sizes: list[Size],
        mode: Literal["fast", "slow"],
        maybe: float | None = None,
    ) -> None: ...

    given_vars = {
        "when": "2024-01-02T03:04:05Z",
        "who": "00000000-0000-0000-0000-000000000001",
        "colour": "red",
        "sizes": [{"width": 1}],
        "mode": "slow",
        "maybe": 2,
    }
    _, kwargs = bound(rich, given_vars)
    assert kwargs["when"].year == 2024
    assert kwargs["who"] == uuid.UUID(int=1)
    assert kwargs["colour"] is Colour.RED
    assert kwargs["sizes"] == [Size(1)]
    assert (kwargs["mode"], kwargs["maybe"]) == ("slow", 2.0)


def test_annotations_that_cannot_be_checked_accept_anything() -> None:
    """No annotation, a user's class, a name that only type checkers know."""

    def loose(a, b: Path, c: Nowhere, d: int | Path, e: int = 1) -> None: ...

    values = {"a": [1], "b": "x", "c": None, "d": {}, "e": 2}
    assert bound(loose, values) == ([], values)
    assert error_of(loose, values | {"e": "2"}) == "vars.e: expected int, got str"


def test_a_default_of_none_accepts_none() -> None:
    """`width: int = None` is how many write an optional number."""

    def old(width: int = None) -> None: ...  # noqa: RUF013

    assert bound(old, {"width": None}) == ([], {"width": None})
    assert "vars.width" in error_of(old, {"width": "1"})


def test_kwargs_accept_unknown_names() -> None:
    """Named parameters are still checked."""

    def wide(image: str, **more: Any) -> None: ...

    assert bound(wide, {"image": "a", "x": 1}) == ([], {"image": "a", "x": 1})
    assert error_of(wide, {"image": 1}) == "vars.image: expected str, got int"
    assert error_of(wide, []) == "vars: expected object, got array"


def test_a_callable_without_a_signature_gets_unchecked_keywords() -> None:
    """As some C functions."""
    assert Arguments(dict).signature is None
    assert bound(dict, {"a": 1}) == ([], {"a": 1})
    assert error_of(dict, [1]).startswith("vars: expected")


def test_positional_only_parameters_are_passed_by_position() -> None:
    """In the function's order."""

    def strange(a: int, b: int = 7, /, c: int = 8) -> None: ...

    assert bound(strange, {"a": 1}) == ([1, 7], {})
    assert bound(strange, {"a": 1, "b": 2, "c": 3}) == ([1, 2], {"c": 3})


def test_star_args_are_a_load_error() -> None:
    """No vars could fill them; beside **kwargs they are allowed, as wrappers have them."""

    def never(*items: int) -> None: ...

    def wrapper(*args: Any, **kwargs: Any) -> None: ...

    with pytest.raises(LoadError, match="nothing can fill"):
        Arguments(never)
    assert bound(wrapper, {"x": 1}) == ([], {"x": 1})


def test_parameter_names_that_a_struct_cannot_have() -> None:
    """Any Python name is accepted."""

    def odd(__struct_fields__: int, self: int, größe: int) -> None: ...

    values = {"__struct_fields__": 1, "self": 2, "größe": 3}
    assert bound(odd, values) == ([], values)


# -- errors


@pytest.mark.parametrize(
    ("vars", "message"),
    [
        ({}, "vars.image: required, but not given"),
        ({"image": 1}, "vars.image: expected str, got int"),
        ({"image": "a", "width": "3"}, "vars.width: expected int, got str"),
        ({"image": "a", "width": None}, "vars.width: expected int, got null"),
        ({"image": "a", "widht": 3}, "vars.widht: not known; the handler takes image, width"),
        ([], "vars: expected object, got array"),
        (b"null", "vars: expected object, got null"),
        (b"", "vars: expected a JSON object, got something else: Input data was truncated"),
        (b'{"image": "\xff"}', "vars: expected valid UTF-8, got other bytes"),
        (b"\xff", "vars: expected a JSON object"),
        (b'{"image": "a"} x', "vars: expected a JSON object"),
    ],
)
def test_an_error_begins_with_the_field(vars: Any, message: str) -> None:
    """In one sentence."""
    assert error_of(thumbnail, vars).startswith(message)


def test_a_nested_error_has_its_path() -> None:
    """In lists and dataclasses too."""

    def deep(sizes: list[Size], by_name: dict[str, list[int]] = {}) -> None: ...  # noqa: B006

    assert error_of(deep, {"sizes": [{}]}) == "vars.sizes[0].width: required, but not given"
    assert error_of(deep, {"sizes": [{"width": 1, "height": "x"}]}) == (
        "vars.sizes[0].height: expected int, got str"
    )
    assert error_of(deep, {"sizes": [], "by_name": {"a": [1, "x"]}}).endswith("expected int, got str")


def test_too_deeply_nested_vars_are_bad_vars() -> None:
    """They neither crash the worker nor blame the handler."""

    def anything(x: Any) -> None: ...

    assert "nesting" in error_of(anything, b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")


@given(st.binary(max_size=200))
def test_any_bytes_are_bound_or_bad_vars(data: bytes) -> None:
    """Whatever a row holds."""
    for target in (thumbnail, dict, lambda **kw: None):
        with contextlib.suppress(BadVars):
            bound(target, data)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=10), VALUES, max_size=5))
def test_any_json_object_reaches_an_open_handler_unchanged(values: dict[str, Any]) -> None:
    """As it was enqueued."""

    def wide(**everything: Any) -> None: ...

    assert bound(wide, values) == ([], values)


# -- the context


def first_named(ctx, a: int) -> None: ...


def annotated(a: int, context: Context) -> None: ...


def optional(a: int, context: Optional[Context] = None) -> None: ...  # noqa: UP045


def as_text(a: int, it: "workerd.Context") -> None: ...  # noqa: F821, UP037


def keyword_only(*, a: int, ctx: Context) -> None: ...


def by_position(a: int, c: Context, /, b: int = 3) -> None: ...


class Instance:
    def __call__(self, ctx: Context, a: int) -> None: ...

    def method(self, ctx: Context, a: int) -> None: ...


@pytest.mark.parametrize(
    ("target", "args", "kwargs"),
    [
        (first_named, [CTX], {"a": 1}),
        (annotated, [], {"a": 1, "context": CTX}),
        (optional, [], {"a": 1, "context": CTX}),
        (as_text, [], {"a": 1, "it": CTX}),
        (keyword_only, [], {"a": 1, "ctx": CTX}),
        (by_position, [1, CTX], {}),
        (Instance(), [CTX], {"a": 1}),
        (Instance().method, [CTX], {"a": 1}),
        (functools.partial(first_named), [CTX], {"a": 1}),
    ],
)
def test_the_context_is_passed_to_its_parameter(target: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
    """The one annotated Context, else a first one named ctx."""
    assert bound(target, {"a": 1}) == (args, kwargs)


def test_a_later_parameter_named_ctx_is_filled_from_vars() -> None:
    """Only a first one is the context by its name."""

    def plain(a: int, ctx: int) -> None: ...

    assert bound(plain, {"a": 1, "ctx": 2}) == ([], {"a": 1, "ctx": 2})


def test_wrappers_and_partials_are_unwrapped() -> None:
    """The wrapped function's parameters count, except those already bound."""

    @functools.wraps(annotated)
    def wrapper(*args: Any, **kwargs: Any) -> None: ...

    assert bound(wrapper, {"a": 1}) == ([], {"a": 1, "context": CTX})
    assert error_of(wrapper, {"a": "1"}) == "vars.a: expected int, got str"
    assert bound(functools.partial(thumbnail, "x")) == ([], {})
    assert bound(functools.partial(thumbnail, image="x"), {"width": 1}) == ([], {"width": 1})


# -- the signature


def test_the_signature_has_name_type_default_and_code() -> None:
    """And whether the command line passes text."""

    def many(ctx: Context, a: str, b: int = 3, c: str | None = None, *, d: list[Decimal]) -> None: ...

    found = parse(Arguments(many).signature or b"")
    assert found is not None
    assert [(p.name, p.type, p.required, p.default, p.is_str) for p in found.params] == [
        ("a", "str", True, None, True),
        ("b", "int", False, 3, False),
        ("c", "str | None", False, None, True),
        ("d", "list[Decimal]", True, None, False),
    ]
    assert not found.open


def test_the_signature_accepts_whatever_the_handler_accepts() -> None:
    """A code may be wider than its type, never narrower."""

    def rich(
        a: datetime.datetime | None,
        b: dict[str, list[uuid.UUID]],
        c: Colour,
        d: Size,
        e: Literal[1, "x"],
        f: tuple[int, str],
        g: Optional[set[int]] = None,  # noqa: UP045
        **more: Any,
    ) -> None: ...

    good = {
        "a": None,
        "b": {"x": [str(uuid.UUID(int=1))]},
        "c": "red",
        "d": {"width": 1},
        "e": "x",
        "f": [1, "x"],
    }
    signature = Arguments(rich).signature
    bound(rich, good)
    assert check_vars(signature, good | {"further": 1, "g": [1]}) is None
    for wrong in ({"a": "soon"}, {"b": {"x": ["y"]}}, {"c": "blue"}, {"d": 1}, {"e": "y"}, {"f": 1}):
        assert str(check_vars(signature, good | wrong)).startswith(f"vars.{next(iter(wrong))}")
