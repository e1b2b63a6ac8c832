"""Values from the text of options and arguments."""

from __future__ import annotations

import pytest
import typer

from workerd.cli import options
from workerd.cli.errors import UsageError
from workerd.cli.options import DEFAULT, join_wait
from workerd.clock import SECOND, from_rfc3339, now_us


def test_key_values_keep_everything_after_the_first_equals_sign() -> None:
    """A value may be empty and may hold equals signs."""
    assert options.parse_key_values(["a=1", "b=", "c=x=y"]) == {"a": "1", "b": "", "c": "x=y"}


@pytest.mark.parametrize("word", ["a", "=1", ""])
def test_a_word_without_a_name_is_refused(word: str) -> None:
    """The message shows the expected form, key=value."""
    with pytest.raises(UsageError, match="key=value"):
        options.parse_key_values([word])


def test_a_name_that_is_given_twice_is_refused() -> None:
    """It is ambiguous."""
    with pytest.raises(UsageError, match="twice"):
        options.parse_key_values(["a=1", "a=2"])


@pytest.mark.parametrize("text", ["[1]", "1", "null", '"x"', "{", "", "[" * 5000])
def test_vars_must_be_a_json_object(text: str) -> None:
    """Other JSON, invalid JSON and bottomless JSON are refused."""
    with pytest.raises(typer.BadParameter, match=r"expected .*JSON"):
        options.parse_json_object(text)


def test_bytes_that_are_not_utf8_are_refused_and_escaped() -> None:
    """The shell may pass any bytes; Python keeps them as lone surrogates."""
    with pytest.raises(typer.BadParameter, match=r"\\udcff"):
        options.parse_json_object('{"a": "\udcff"}')


@pytest.mark.parametrize(
    ("given", "joined"),
    [
        (["h", "--wait"], ["h", f"--wait={DEFAULT}"]),
        (["h", "--wait", "5s", "a=1"], ["h", "--wait=5s", "a=1"]),
        (["h", "--wait", "5", "-c", "x"], ["h", "--wait=5", "-c", "x"]),
        (["--wait", "h", "a=1"], [f"--wait={DEFAULT}", "h", "a=1"]),
        (["h", "--wait", "-c", "x"], ["h", f"--wait={DEFAULT}", "-c", "x"]),
        (["h", "--wait=2m"], ["h", "--wait=2m"]),
        (["h", "--", "--wait", "5s"], ["h", "--", "--wait", "5s"]),
    ],
)
def test_wait_may_stand_alone_or_take_a_duration(given: list[str], joined: list[str]) -> None:
    """What follows --wait belongs to it only if it is a duration."""
    assert join_wait(given) == joined


def test_wait_without_a_duration_has_no_limit() -> None:
    """With one it is in seconds."""
    assert options.parse_wait(DEFAULT) == 30
    assert options.parse_wait("1.5s") == 1.5


def test_since_is_a_time_or_a_duration_before_now() -> None:
    """Both are store times."""
    before = now_us()
    assert 0 <= options.parse_since("2h") - (before - 7200 * SECOND) < 60 * SECOND
    assert options.parse_since("2026-01-31T13:00:00+02:00") == from_rfc3339("2026-01-31T11:00:00Z")
    with pytest.raises(typer.BadParameter, match=r"offset.*such as 2h"):
        options.parse_since("2026-01-31 12:00")


def test_an_unknown_status_is_refused_with_the_known_ones() -> None:
    """The message lists the states of a job, or those of a request."""
    with pytest.raises(typer.BadParameter, match="scheduled, new, inprogress"):
        options.parse_status("done")
    with pytest.raises(typer.BadParameter, match="queuing, inprogress, completed"):
        options.parse_request_status("done")


def test_an_invalid_id_is_refused_with_the_command_that_lists_ids() -> None:
    """The message names it."""
    with pytest.raises(typer.BadParameter, match="job list"):
        options.parse_identity("42")
