"""`schedules`, on both engines."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cli.conftest import CommandLine
from tests.support.eventually import eventually


def test_schedules_are_listed_paused_resumed_and_run(cli: CommandLine) -> None:
    """The next ticks follow the schedule's own timezone."""

    def listed() -> dict[str, Any]:
        return {s["name"]: s for s in cli.json("schedules")["schedules"]}

    eventually(lambda: listed()["nightly"]["last_tick"])
    times = cli("schedules", "nightly", "--next", "3").stdout.split()
    assert len(times) == 3
    assert all(time.endswith((":00:00Z",)) and time[11:13] in ("01", "02") for time in times)
    cli("schedules", "pause", "nightly")
    assert listed()["nightly"]["paused_by"]
    cli("schedules", "resume", "nightly")
    assert listed()["nightly"]["paused_at"] is None
    job_id = cli.id("schedules", "run", "nightly")
    eventually(lambda: cli.status(job_id) == "completed")
    assert cli("schedules", "run", "none", check=False).returncode == 1


def test_a_schedule_is_set_shown_and_removed(cli: CommandLine) -> None:
    """Its vars are values; what it did stands below it."""
    document = cli.json(
        "schedules", "set", "echoes", "handler=echo", "cron=* * * * * *", "vars.text=hi", "priority=3"
    )
    assert (document["origin"], document["vars"], document["priority"]) == ("api", {"text": "hi"}, 3)
    (shown,) = cli.json("schedules", "echoes")["schedules"]
    assert shown["handler"] == "echo"
    eventually(lambda: cli.json("schedules", "echoes")["schedules"][0]["history"])
    assert "TICK" in cli("schedules", "echoes").stdout
    cli("schedules", "remove", "echoes")
    assert cli("schedules", "remove", "echoes", check=False).returncode == 1
    assert cli("schedules", "set", "nightly", "handler=echo", "cron=* * * * *", check=False).returncode == 1
    assert "cron: expected" in cli("schedules", "set", "x", "handler=echo", "cron=x", check=False).stderr
    reserved = cli("schedules", "set", "~x", "handler=echo", "cron=* * * * *", check=False)
    assert (reserved.returncode, 'names that start with "~" are reserved' in reserved.stderr) == (2, True)


@pytest.mark.parametrize("action", ["set", "pause", "resume", "run", "remove"])
def test_an_action_without_a_name_is_wrong_usage(cli: CommandLine, action: str) -> None:
    """Unless it is the name of a schedule, which is then shown."""
    refused = cli("schedules", action, check=False)
    assert refused.returncode == 2
    assert f"`workerd schedules {action} NAME`" in refused.stderr
    try:
        cli("schedules", "set", action, "handler=echo", "cron=0 0 1 1 *")
        assert action in cli("schedules", action).stdout
    finally:
        cli("schedules", "remove", action)
