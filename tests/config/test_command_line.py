"""Command handlers in the configuration: programs, placeholders, statuses, types."""

from __future__ import annotations

from pathlib import Path

import pytest

from workerd import signature
from workerd.config.build import load
from workerd.config.command_line import TYPES, Argument, placeholders
from workerd.config.model import Config
from workerd.errors import ConfigError


def loaded(tmp_path: Path, text: str) -> Config:
    (tmp_path / "workerd.toml").write_text(text)
    return load(tmp_path / "workerd.toml", {})


def test_a_command_takes_the_place_of_call(tmp_path: Path) -> None:
    """Its keys have the documented defaults, and a default of `[defaults]` applies."""
    config = loaded(
        tmp_path,
        '[defaults]\nretry_codes = [3]\n[handlers.h]\ncommand = ["echo", "{a}"]\n'
        '[handlers.p]\ncall = "m:f"\n',
    )
    command = config.handlers["h"].command
    assert command is not None
    assert (command.command, command.stdin, command.payload) == (("echo", "{a}"), "json", "bytes")
    assert (command.retry_codes, command.fail_codes, command.cwd) == ((3,), (), "")
    assert config.handlers["h"].target == "echo '{a}'"
    assert config.handlers["p"].command is None


def test_its_own_call_replaces_a_default_command(tmp_path: Path) -> None:
    """And its own command a default call."""
    config = loaded(tmp_path, '[defaults]\ncommand = ["true"]\n[handlers.h]\ncall = "m:f"\n')
    assert config.handlers["h"].command is None
    config = loaded(tmp_path, '[defaults]\ncall = "m:f"\n[handlers.h]\ncommand = ["true"]\n')
    assert config.handlers["h"].call == ""
    assert config.handlers["h"].target == "true"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("", 'expected call = "module:attribute" or a command, got none'),
        ("command = []", 'expected call = "module:attribute" or a command, got none'),
        ('call = "m:f"\ncommand = ["true"]', "expected either call or command, got both"),
        ('call = "m:f"\ncwd = "/"', "cwd: requires a command, got none"),
        ('command = "true"', "expected a list of texts"),
        ("command = [1]", "expected a list of strings"),
        ('command = ["bin/x"]', "an absolute path, or a name that is found on PATH"),
        ('command = ["{x}"]', "expected a fixed program first"),
        ('command = ["echo", "{}"]', "expected {name} with a name of vars"),
        ('command = ["echo", "{a!r}"]', "expected {name} with a name of vars"),
        ('command = ["echo", "{a.b}"]', "expected {name} with a name of vars"),
        ('command = ["echo", "{a:>9}"]', "expected {name} with a name of vars"),
        ('command = ["echo", "}"]', "write {{ and }} for braces"),
        ('command = ["echo", "a\\u0000"]', "expected text without NUL"),
        (
            'command = ["echo"]\nretry_codes = [0]',
            "expected a list of exit statuses|whole number from 1 to 255",
        ),
        ('command = ["echo"]\nretry_codes = [4]\nfail_codes = [5, 4]', "got 4 in both"),
        ('command = ["echo"]\nstdin = "text"', 'expected "json" or "none"'),
        ('command = ["echo"]\nsignature = { a = "string" }', "signature: a: expected one of any, array"),
        (
            'command = ["echo", "{b}"]\nsignature = { a = "str" }',
            "expected a type of b, which `command` needs",
        ),
        ('command = ["echo", "{b}"]\nsignature = { b = "str?" }', "expected a type of b"),
    ],
)
def test_a_wrong_command_is_a_configuration_error(tmp_path: Path, keys: str, message: str) -> None:
    """That says what was expected."""
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, f"[handlers.h]\n{keys}\n")
    assert any(words in str(caught.value) for words in message.split("|")), caught.value


def test_placeholders_are_found_between_literal_braces() -> None:
    """`{{` and `}}` stand for braces."""
    assert Argument("{{{a}}}-{b}").parts == [("{", None), ("", "a"), ("}", None), ("-", "b")]
    assert placeholders(["x", "{a}{b}", "{{c}}", "{a}"]) == ["a", "b"]


def test_types_are_those_of_signatures() -> None:
    """So that enqueue checks them like the parameters of a function."""
    assert set(TYPES) <= set(signature._PYTHON)


def test_exit_statuses_are_classes_of_the_policy(tmp_path: Path) -> None:
    """ "Exit:4" beside exception classes."""
    config = loaded(
        tmp_path, '[handlers.h]\ncommand = ["true"]\nretry_on = ["Exit:4"]\nfail_on = ["Exception"]\n'
    )
    assert config.handlers["h"].policy_own["retry_on"] == ("Exit:4",)
    with pytest.raises(ConfigError, match="expected a class"):
        loaded(tmp_path, '[handlers.h]\ncommand = ["true"]\nretry_on = ["Exit:x"]\n')
