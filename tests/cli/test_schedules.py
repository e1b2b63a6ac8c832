"""`schedules`, on both engines."""

from __future__ import annotations

from typing import Any

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
