"""`request`, on both engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import CommandLine
from tests.support.eventually import eventually
from tests.support.terminal import on_terminal


def test_requests_are_submitted_waited_for_shown_and_cancelled(cli: CommandLine) -> None:
    """The graph shows each job's state."""
    shown = cli("request", "submit", "two", "user=7", "--wait", "20s", check=False)
    assert shown.returncode == 1  # `behave` misses its argument
    assert "step 0: first" in shown.stdout
    assert "ended as failed" in shown.stderr
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


def test_a_wait_prints_what_the_last_jobs_returned(cli: CommandLine) -> None:
    """Below the request; with --json its document has it."""
    done = cli("request", "submit", "two_good", "user=7", "--wait")
    lines = done.stdout.splitlines()
    assert sorted(lines[lines.index("Result:") + 1 :]) == ["add   3", "echo  {}"]
    assert cli.json("request", "submit", "two_good", "user=7", "--wait")["result"] == {"echo": {}, "add": 3}


def test_ids_of_jobs_are_shown_whole(cli: CommandLine) -> None:
    """Also in 80 columns, where the line goes on below."""
    request_id = cli.id("request", "submit", "two")
    eventually(lambda: cli.json("request", "show", request_id)["status"] == "failed")
    (job,) = cli.json("request", "show", request_id)["jobs"]
    assert job["id"] in cli("request", "show", request_id).stdout
    status, output = on_terminal("request", "show", request_id, "-c", str(cli.node.path), columns=60)
    assert status == 0
    (shown,) = [line for line in output.splitlines() if job["id"] in line]
    assert len(shown) <= 60


def test_a_graph_of_a_file_and_a_signal(cli: CommandLine, tmp_path: Path) -> None:
    """Progress is shown; the signal's words are its payload."""
    file = tmp_path / "graph.json"
    file.write_text(
        '{"jobs": [{"name": "approve", "signal": "approved"},'
        ' {"name": "sum", "handler": "add", "vars": {"a": 1}, "needs": ["approve"]}]}'
    )
    request_id = cli.id("request", "submit", "--graph", str(file))
    assert "0 done, 0 failed, 2 total" in cli("request", "show", request_id).stdout
    assert "waits for the signal" not in cli("why", request_id).stderr
    cli("request", "signal", request_id, "approved", "by=me")
    assert cli("request", "signal", request_id, "approved", check=False).returncode == 1
    eventually(lambda: cli.json("request", "show", request_id)["status"] == "completed")
    assert cli("request", "submit", check=False).returncode == 2


@pytest.mark.parametrize("text", [None, "no JSON", "[]"])
def test_a_graph_that_cannot_be_read_is_wrong_usage(
    cli: CommandLine, tmp_path: Path, text: str | None
) -> None:
    """A file that is missing, that is no JSON, or no object."""
    file = tmp_path / "graph.json"
    if text is not None:
        file.write_text(text)
    done = cli("request", "submit", "--graph", str(file), check=False)
    assert done.returncode == 2
    assert str(file) in done.stderr


def test_a_retry_says_that_it_reopens_the_request(cli: CommandLine, tmp_path: Path) -> None:
    """And that its `finally` runs again."""
    file = tmp_path / "graph.json"
    file.write_text(
        '{"jobs": [{"name": "bad", "handler": "behave", "vars": {"kind": "failure"}}],'
        ' "finally": [{"name": "end", "handler": "add", "vars": {"a": 1}}]}'
    )
    request_id = cli.id("request", "submit", "--graph", str(file))
    eventually(lambda: cli.json("request", "show", request_id)["status"] == "failed")
    jobs = {job["name"]: job["id"] for job in cli.json("request", "show", request_id)["jobs"]}
    said = cli("job", "retry", jobs["bad"]).stderr
    assert f"Request {request_id} is reopened; its finally runs again" in said
    eventually(lambda: len(cli.json("request", "show", request_id)["jobs"]) == 3)
