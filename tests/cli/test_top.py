"""`status` and `top`, on both engines."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import CommandLine
from tests.support.eventually import eventually


def test_status_and_top_show_running_jobs(cli: CommandLine, tmp_path: Path) -> None:
    """One frame, without a terminal, and the same as JSON."""
    job_id = cli.id("enqueue", "waits", f"path={tmp_path}/never")
    eventually(lambda: cli.status(job_id) == "inprogress")
    assert cli.json("status")["ready"] is True
    assert job_id in cli("status").stdout
    frame = cli("top", "--once").stdout
    assert job_id in frame
    assert "\x1b" not in frame
    pools = {pool["name"]: pool for pool in cli.json("top")["pools"]}
    (worker,) = [w for w in pools["waits"]["workers"] if w["job"]]
    assert worker["memory"] > 0
    (depth,) = [row for row in cli.json("top")["depth"] if row["handler"] == "waits"]
    assert depth["inprogress"] == 1
    cli("job", "cancel", job_id)
