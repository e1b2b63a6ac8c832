"""Command output: no control characters and no password."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerd import text as workerd_text
from workerd.cli import errors, output
from workerd.errors import (
    CommitUnknown,
    ConfigError,
    Conflict,
    HandlerNotFound,
    InvalidValue,
    NotFound,
    StoreAway,
    StoreRefused,
    TooManyWaiting,
    WrongVersion,
)


@given(st.text(st.characters(), max_size=50))
def test_a_line_never_contains_control_characters(text: str) -> None:
    """Neither escapes nor newlines nor lone surrogates survive."""
    shown = workerd_text.line(text)
    assert not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in shown)
    shown.encode()


def test_escapes_and_turned_text_are_shown_as_escapes() -> None:
    """A title sequence, a colour and a right-to-left override stay visible and do nothing."""
    assert workerd_text.line("\x1b]0;x\x07a\u202eb\n") == r"\x1b]0;x\x07a\u202eb\n"
    assert workerd_text.harmless("a\n\tb") == "a\n\tb"


def test_columns_stay_aligned_for_wide_characters_and_empty_cells(capsys: pytest.CaptureFixture[str]) -> None:
    """The second column starts at the same place in each row."""
    output.print_table(["name", "x"], [["日本", 1], ["ab", None], ["é\u0301", "\x1b[1m"]])
    assert capsys.readouterr().out == ("NAME  X\n日本  1\nab    -\né\u0301     \\x1b[1m\n")


def test_a_table_without_rows_is_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    """A script that skips the first line reads no rows."""
    output.print_table(["a", "b"], [])
    assert capsys.readouterr().out == "A  B\n"


def test_a_table_wider_than_the_terminal_goes_on_below(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No cell is cut: columns that do not fit stand on further lines, the last one is wrapped."""
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    identity = "0195f3c2-7d1e-7a01-8000-0123456789ab"
    error = "ConnectionError: connection to db.internal refused, try again later"
    monkeypatch.setattr(output, "bold", str)
    output.print_table(
        ["id", "status", "tries", "error"], [[identity, "failure", 12, error], ["b", "new", 1, ""]]
    )
    assert capsys.readouterr().out.splitlines() == [
        "ID",
        "    STATUS   TRIES  ERROR",
        identity,
        "    failure  12     ConnectionError:",
        "                    connection to",
        "                    db.internal refused,",
        "                    try again later",
        "b",
        "    new      1      -",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "0.4 ms"),
        (0.25, "250 ms"),
        (0.9996, "1.0 s"),
        (59.96, "1 min 00 s"),
        (3599.6, "1 h 00 min"),
        (90061, "1 d 1 h"),
    ],
)
def test_durations_are_rounded_for_display(seconds: float, text: str) -> None:
    """No `60.0 s` and no `1000.0 ms`."""
    assert workerd_text.seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError(["a: wrong", "b: wrong"]), 2),
        (errors.UsageError("Give one."), 2),
        (HandlerNotFound("There is no handler."), 2),
        (InvalidValue("vars: expected JSON"), 2),
        (StoreAway("server has gone", 2006), 1),
        (CommitUnknown("server has gone", 2013), 1),
        (StoreRefused("data too long", 1406), 1),
        (WrongVersion("older"), 1),
        (NotFound("none"), 1),
        (Conflict("ended"), 1),
        (TooManyWaiting("full"), 1),
    ],
)
def test_each_error_has_its_exit_status_and_message(
    error: Exception, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """2 is wrong usage or configuration, 1 any other failure; standard output stays empty."""
    assert isinstance(error, errors.WorkerdError)
    assert errors.report(error) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.strip()


def test_all_errors_of_a_configuration_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """One run of a command is enough to find them."""
    errors.report(ConfigError(["a.toml: x: expected 1", "a.toml: y: expected 2"]))
    text = capsys.readouterr().err
    assert "2 errors" in text
    assert "x: expected 1" in text
    assert "y: expected 2" in text


def test_no_password_is_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    """A URL in an error keeps its host and loses its password."""
    errors.report(StoreAway("mysql://me:s3cr:et@db/x refused"))
    text = capsys.readouterr().err
    assert "s3cr" not in text
    assert "mysql://me:***@db/x" in text
