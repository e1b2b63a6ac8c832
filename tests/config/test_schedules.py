"""`[schedules.NAME]`, and the same keys when they are set at run time."""

from __future__ import annotations

from pathlib import Path

import pytest

from workerd.config import schedules
from workerd.config.build import load
from workerd.config.model import Config
from workerd.errors import ConfigError, InvalidValue

BASE = """
[handlers.report]
call = "m:report"
[handlers.beat]
call = "m:beat"
cron = "* * * * *"
[workflows.flow]
steps = [{ name = "one", jobs = ["report"] }]
"""


def config(folder: Path, text: str) -> Config:
    file = folder / "workerd.toml"
    file.write_text(BASE + text)
    return load(file, {})


def test_a_handler_may_have_several_schedules(tmp_path: Path) -> None:
    """Each with vars of its own; a workflow has params."""
    found = config(
        tmp_path,
        """
        [schedules.eu]
        handler = "report"
        cron = "0 7 * * *"
        timezone = "Europe/Berlin"
        vars = { region = "eu" }
        jitter = "2m"
        priority = -5
        group = "eu"
        [schedules.us]
        handler = "report"
        cooler = "30s"
        vars = { region = "us" }
        enabled = false
        [schedules.nightly]
        workflow = "flow"
        cron = "0 1 * * *"
        params = { full = true }
        """,
    ).schedules
    assert [(s.target, s.vars, s.params) for s in found.values()] == [
        ("report", {"region": "eu"}, {}),
        ("report", {"region": "us"}, {}),
        ("flow", {}, {"full": True}),
    ]
    assert (found["eu"].jitter, found["eu"].priority, found["eu"].group) == (120.0, -5, "eu")
    assert (found["us"].cooler, found["us"].enabled) == (30.0, False)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ('cron = "* * * * *"', "expected handler or workflow, got none$"),
        (
            'handler = "report"\nworkflow = "flow"\ncron = "* * * * *"',
            "or workflow, got both$",
        ),
        ('handler = "raport"\ncron = "* * * * *"', 'expected a known handler, got "raport".*"report"'),
        ('workflow = "nope"\ncron = "* * * * *"', "expected a workflow that is configured"),
        ('handler = "report"', "expected cron or cooler, got none"),
        ('handler = "report"\ncron = "* * * * *"\ncooler = "1s"', "expected cron or cooler, got both"),
        ('handler = "report"\ncron = "* * * * *"\nparams = { a = 1 }', "expected it with a workflow"),
        ('workflow = "flow"\ncron = "* * * * *"\nvars = { a = 1 }', "expected it with a handler"),
        ('handler = "report"\ncron = "61 * * * *"', "expected a cron expression"),
        ('handler = "report"\ncron = "*/99999999999 * * * *"', "step 999999999 is out of range"),
        ('handler = "report"\ncron = "* * * * * * *"', "expected a cron expression"),
        ('handler = "report"\ncron = "* * * * *"\ncrom = 1', "expected a known key"),
        ('handler = "report"\ncron = "* * * * *"\njitter = "2d"', "expected a duration"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, keys: str, message: str) -> None:
    """At its key, as for every table."""
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        config(tmp_path, f"[schedules.bad]\n{keys}\n")


def test_the_name_of_what_recurs_by_itself_is_taken(tmp_path: Path) -> None:
    """Both would be one row."""
    with pytest.raises(ConfigError, match="recurs by itself"):
        config(tmp_path, '[schedules.beat]\nhandler = "report"\ncron = "* * * * *"\n')


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"handler": "h", "cron": "* * * * *", "timezone": "Mars"}, "timezone: expected a time zone"),
        ({"handler": "h", "cron": 5}, "cron: expected a cron expression"),
        ({"handler": "nope", "cron": "* * * * *"}, "handler: expected a known handler"),
        ({"handler": "~webhook", "cron": "* * * * *"}, 'handler: names that start with "~" are reserved'),
        ({"handler": "h", "cron": "* * * * *", "overlap": "x"}, 'overlap: expected "allow"'),
        ({"handler": "h", "cron": "* * * * *", "nope": 1}, "nope: expected one of"),
    ],
)
def test_a_program_is_told_the_key(given: dict[str, object], message: str) -> None:
    """With what was expected there."""
    with pytest.raises(InvalidValue, match=message):
        schedules.checked("x", given, {"h", "~webhook"}, set())
