"""`why`, on both engines."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from tests.cli.conftest import CommandLine
from tests.support.eventually import eventually
from tests.support.rows import Rows


@pytest.mark.slow
def test_why_explains_what_a_job_waits_for_and_how_it_ended(cli: CommandLine, tmp_path: Path) -> None:
    """With what only the daemon knows: which workers are busy, and how a process died."""

    def why(job_id: str) -> str:
        return cli("why", job_id).stdout

    later = cli.id("enqueue", "add", "a=1", "--delay", "1h")
    assert "is due at" in why(later)
    cli("pause", "held", "--reason", "the server is down")
    paused = cli.id("enqueue", "held")
    assert "is paused" in why(paused)
    assert "the server is down" in why(paused)
    cli("resume", "held")
    orphan = uuid.UUID(bytes=Rows(cli.url).insert("not_configured", {}))
    assert "No live node has the handler not_configured" in why(str(orphan))
    running = cli.id("enqueue", "waits", f"path={tmp_path}/never")
    eventually(lambda: cli.status(running) == "inprogress")
    assert "The job runs on node" in why(running)
    behind = cli.id("enqueue", "waits", "path=/")
    assert "busy" in why(behind)
    cli("job", "cancel", running)
    crashed = cli.id("enqueue", "behave", "kind=kill_self")
    eventually(lambda: cli.json("job", "show", crashed)["complete"])
    assert "SIGKILL" in why(crashed)
    assert cli.json("why", crashed)["why"]


def test_why_explains_a_request(cli: CommandLine) -> None:
    """What it waits for, and which job failed it, with that job's id."""
    cli("pause", "behave", "--reason", "for the test")
    request_id = cli.id("request", "submit", "two")
    eventually(lambda: "Its job behave is new" in cli("why", request_id).stdout)
    cli("resume", "behave")
    eventually(lambda: cli.json("why", request_id)["status"] == "failed")
    (job,) = cli.json("request", "show", request_id)["jobs"]
    explained = cli("why", request_id).stdout
    assert "ended as failed" in explained
    assert f"`workerd why {job['id']}` explains" in explained
    assert cli.json("why", request_id)["request"]["id"] == request_id
    unknown = cli("why", "00000000-0000-7000-8000-000000000000", check=False)
    assert unknown.returncode == 1
    assert "Neither a job nor a request" in unknown.stderr
