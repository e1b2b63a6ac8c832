"""Text of users', made fit for a row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerd import text

ANYTHING = st.text(alphabet=st.characters(codec=None, exclude_categories=[])) | st.text(
    alphabet="\ud800\udfff\0\n\r\x85\u2028é😀a "
)


@given(ANYTHING)
def test_every_text_becomes_valid_without_nul(value: str) -> None:
    """UTF-8 can encode it, and every engine stores it."""
    for made in (text.clean(value), text.one_line(value), text.stack(value)):
        made.encode()
        assert "\0" not in made


@given(ANYTHING, st.integers(8, 100))
def test_no_text_is_longer_than_its_limit(value: str, limit: int) -> None:
    """Counted in bytes, never in the middle of a character."""
    line = text.one_line(value, limit)
    assert len(line.encode()) <= limit
    assert len(line.splitlines()) <= 1


@given(ANYTHING, st.integers(100, 200))
def test_a_stack_keeps_both_ends(value: str, limit: int) -> None:
    """The start of the traceback and the exception."""
    value = f"begin{value * 20}end"
    made = text.stack(value, limit)
    assert len(made.encode()) <= limit
    assert made.startswith("begin")
    assert made.endswith("end")


@pytest.mark.parametrize(
    ("value", "line"),
    [("a\nb", "a b"), ("a \r\n  b\n", "a b"), ("", ""), ("a\0b", "a\\x00b"), ("x\ud800", "x\\ud800")],
)
def test_lines_are_joined(value: str, line: str) -> None:
    """With one space."""
    assert text.one_line(value) == line


def test_bytes_that_are_no_text_are_shown() -> None:
    """As escapes."""
    assert text.decode(b"a\xff\x00b") == "a\\xff\\x00b"


@pytest.mark.parametrize(
    ("value", "shown"),
    [("plain", "plain"), (7, "7"), ("", "''"), ("two words", "'two words'"), ("a=b", "'a=b'")],
)
def test_a_field_value_is_quoted_where_it_would_be_misread(value: object, shown: str) -> None:
    """In `name=value name=value`."""
    assert text.field_value(value) == shown
