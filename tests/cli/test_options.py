"""From the words of a command line to values."""

from __future__ import annotations

import pytest

from workerd.cli import options
from workerd.cli.errors import UsageError
from workerd.cli.options import FOR_EVER, join_wait
from workerd.clock import SECOND, from_rfc3339


def test_key_values_keep_everything_after_the_first_equals_sign() -> None:
    """A value may be empty and may hold equals signs."""
    assert options.key_values(["a=1", "b=", "c=x=y"]) == {"a": "1", "b": "", "c": "x=y"}


@pytest.mark.parametrize("word", ["a", "=1", ""])
def test_a_word_without_a_name_is_refused_with_the_form_that_was_expected(word: str) -> None:
    """The sentence shows key=value."""
    with pytest.raises(UsageError, match="key=value"):
        options.key_values([word])


def test_a_name_that_is_given_twice_is_refused() -> None:
    """Nobody can know which value was meant."""
    with pytest.raises(UsageError, match="twice"):
        options.key_values(["a=1", "a=2"])


@pytest.mark.parametrize("text", ["[1]", "1", "null", '"x"', "{", "", "[" * 5000])
def test_vars_must_be_a_json_object(text: str) -> None:
    """Other JSON, broken JSON and bottomless JSON are refused with a sentence."""
    with pytest.raises(UsageError, match="Expected a JSON object after --vars"):
        options.json_object(text, "--vars")


def test_bytes_that_are_no_utf8_are_refused_and_shown_harmlessly() -> None:
    """The shell may hand over anything; Python keeps it as lone surrogates."""
    with pytest.raises(UsageError, match=r"\\udcff"):
        options.json_object('{"a": "\udcff"}', "--vars")


@pytest.mark.parametrize(
    ("given", "joined"),
    [
        (["h", "--wait"], ["h", f"--wait={FOR_EVER}"]),
        (["h", "--wait", "5s", "a=1"], ["h", "--wait=5s", "a=1"]),
        (["h", "--wait", "5", "-c", "x"], ["h", "--wait=5", "-c", "x"]),
        (["--wait", "h", "a=1"], [f"--wait={FOR_EVER}", "h", "a=1"]),
        (["h", "--wait", "-c", "x"], ["h", f"--wait={FOR_EVER}", "-c", "x"]),
        (["h", "--wait=2m"], ["h", "--wait=2m"]),
        (["h", "--", "--wait", "5s"], ["h", "--", "--wait", "5s"]),
    ],
)
def test_wait_may_stand_alone_or_take_a_duration(given: list[str], joined: list[str]) -> None:
    """What follows --wait belongs to it only if it is a duration."""
    assert join_wait(given) == joined


def test_wait_without_a_duration_waits_for_ever() -> None:
    """None is no limit."""
    assert options.patience(FOR_EVER) is None
    assert options.patience("1.5s") == 1.5


def test_since_is_a_time_or_a_duration_before_now() -> None:
    """Both forms name the same kind of moment."""
    now = from_rfc3339("2026-01-31T12:00:00Z")
    assert options.since("2h", now) == now - 7200 * SECOND
    assert options.since("2026-01-31T13:00:00+02:00", now) == now - 3600 * SECOND
    assert options.since(None, now) is None
    with pytest.raises(UsageError, match="offset"):
        options.since("2026-01-31 12:00", now)


def test_an_unknown_status_is_refused_with_the_known_ones() -> None:
    """The sentence lists the states."""
    with pytest.raises(UsageError, match="scheduled, new, inprogress"):
        options.status("done")


def test_an_id_that_is_none_is_refused_with_where_ids_are_shown() -> None:
    """The sentence names the command that lists them."""
    with pytest.raises(UsageError, match="job list"):
        options.identity("42")
