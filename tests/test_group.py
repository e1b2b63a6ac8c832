"""Templates of groups: what they may be, and which group they make of vars."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerd.errors import InvalidValue
from workerd.group import GROUP_LIMIT, checked_group, parse_template


@pytest.mark.parametrize(
    ("template", "values", "group"),
    [
        ("{tenant}", {"tenant": "a"}, "a"),
        ("{tenant}", {"tenant": "💶 'x' \"y\" \\"}, "💶 'x' \"y\" \\"),
        ("{tenant}", {"tenant": "é" * GROUP_LIMIT}, "é" * GROUP_LIMIT),
        ("{{{a}}}/{b}", {"a": 7, "b": 1.5, "c": None}, "{7}/1.5"),
        ("on-{flag}", {"flag": True}, "on-true"),
    ],
)
def test_a_template_is_filled_from_vars(template: str, values: dict[str, object], group: str) -> None:
    """Texts and numbers as they are, braces doubled."""
    assert parse_template(template).fill(msgspec.json.encode(values)) == group


@pytest.mark.parametrize("template", ["", "x", "{}", "{0}", "{a.b}", "{a[0]}", "{a!r}", "{a:>3}", "{a", "}"])
def test_only_names_of_vars_may_stand_in_braces(template: str) -> None:
    """No attributes, no conversions: vars are data."""
    with pytest.raises(InvalidValue, match="expected"):
        parse_template(template)


def test_what_stands_in_the_braces_is_named_as_it_is() -> None:
    """With what is wrong about it."""
    with pytest.raises(InvalidValue, match=r'got "\{a!r:>3\}"'):
        parse_template("{a!r:>3}")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("x" * (GROUP_LIMIT + 1) + "{a}", "expected at most 191 characters beside the vars, got 192"),
        ("{a} ", "expected no space at its end"),
    ],
)
def test_a_template_that_no_vars_can_fill_is_refused(template: str, message: str) -> None:
    """Before every job of the handler is; as many characters as a group may have can be one."""
    with pytest.raises(InvalidValue, match=message):
        parse_template(template)
    assert parse_template("x" * GROUP_LIMIT + "{a}").fill(b'{"a": ""}') == "x" * GROUP_LIMIT


@pytest.mark.parametrize(
    "job_vars",
    [b"{}", b"[]", b"nope", b"\xff", b'{"a": null}', b'{"a": []}', b'{"a": {}}', b'{"a": ""}', b'{"a": " "}'],
)
def test_vars_that_give_no_group_are_refused(job_vars: bytes) -> None:
    """Also empty text, and text that MySQL would compare as another."""
    with pytest.raises(InvalidValue, match="group: "):
        parse_template("{a}").fill(job_vars)


@given(st.text(max_size=GROUP_LIMIT + 3))
def test_a_checked_group_can_be_stored(text: str) -> None:
    """What is accepted fits the column and is valid Unicode."""
    try:
        group = checked_group(text)
    except InvalidValue:
        return
    assert group == text
    assert 0 < len(text) <= GROUP_LIMIT
    assert text.encode().decode() == text
