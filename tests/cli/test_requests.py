"""`request`, on both engines."""

from __future__ import annotations

from tests.cli.conftest import CommandLine
from tests.support.eventually import eventually


def test_requests_are_submitted_waited_for_shown_and_cancelled(cli: CommandLine) -> None:
    """The graph shows each job's state."""
    shown = cli("request", "submit", "two", "user=7", "--wait", "20s", check=False)
    assert shown.returncode == 1  # `behave` misses its argument
    assert "step 0: first" in shown.stdout
    assert "✗ behave" in shown.stdout
    request_id = cli.id("request", "submit", "two", "user=7")
    eventually(lambda: cli.json("request", "show", request_id)["status"] == "failed")
    request = cli.json("request", "show", request_id)
    assert request["params"] == {"user": 7}
    assert [job["handler"] for job in request["jobs"]] == ["behave"]
    listed = cli.json("request", "list")["requests"]
    assert listed[0]["id"] == request_id
    cli("pause", "behave")
    waiting = cli.id("request", "submit", "two")
    cli("request", "cancel", waiting)
    eventually(lambda: cli.json("request", "show", waiting)["status"] == "cancelled")
    cli("resume", "behave")
    assert cli("request", "cancel", waiting, check=False).returncode == 1
