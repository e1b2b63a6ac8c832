"""Command handlers as their users meet them: enqueued by every way in, checked, quarantined, killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pool.harness import alive
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows

CONFIG = """
[dispatcher]
poll = "50ms"
[defaults]
backoff = {{ first = "0s" }}
max_attempts = 2
[handlers.report]
command = ["/bin/sh", "-c", 'echo "report of $1"; echo "$WORKERD_ATTEMPT" >&2', "report", "{{month}}"]
signature = {{ month = "str", copies = "int?" }}
[handlers.count]
command = ["/bin/sh", "-c", 'exit "$0"', "{{status}}"]
fail_codes = [64]
[handlers.endless]
command = ["/bin/sh", "-c", 'echo $$ >"$0/pid"; while :; do sleep 1; done', "{marks}"]
[handlers.missing]
command = ["{marks}/program"]
restart = {{ intensity = 1, period = "60s" }}
"""


@pytest.mark.slow
def test_a_program_is_a_handler_like_any_other(
    start_daemon: Callable[..., Daemon], store_url: str, marks: Path
) -> None:
    """By command line and plain SQL; vars are checked at enqueue and again by the attempt."""
    daemon, rows = start_daemon(CONFIG.format(marks=marks)), Rows(store_url)
    assert daemon.cli("enqueue", "report", "month=2026-05", "--wait").stdout == "report of 2026-05\n"
    refused = daemon.cli("enqueue", "report", "month=5", "year=6", check=False)
    assert refused.returncode == 2
    assert "vars.year: not known; the handler takes month, copies" in refused.stderr
    wrong = rows.insert("report", {"month": 5})
    retried, failed, other = (rows.insert("count", {"status": status}) for status in (75, 64, 9))
    eventually(lambda: rows.ended(wrong, retried, failed, other), within=20, state=daemon.tail)
    assert "vars.month: expected str, got int" in rows.last(wrong)["error"]
    ends = [(len(rows.attempts(job)), rows.last(job)["reason"]) for job in (retried, failed, other)]
    assert ends == [(2, "retry"), (1, "failure"), (2, "error")]
    assert rows.last(other)["exit_code"] == 9
    assert "exit status 9" in daemon.cli("why", other.hex()).stdout

    # A missing program: its pool alone is quarantined, `check` and `why` say why, and it recovers.
    checked = daemon.cli("check", check=False)
    assert checked.returncode == 1
    sentence = f"program {marks}/program not found"
    assert sentence in " ".join(checked.stdout.split())
    job = rows.insert("missing")
    eventually(lambda: daemon.status()["pools"]["missing"].get("quarantined"), within=20, state=daemon.tail)
    assert sentence in " ".join(daemon.cli("why", job.hex()).stdout.split())
    (marks / "program").write_text("#!/bin/sh\necho here\n")
    (marks / "program").chmod(0o755)
    daemon.cli("reload")
    eventually(lambda: rows.last(job)["status"] == "completed", within=30, state=daemon.tail)


def test_a_program_does_not_outlive_a_killed_daemon(
    start_daemon: Callable[..., Daemon], store_url: str, marks: Path
) -> None:
    """Its job is lost and runs again under the next daemon: never twice at the same time."""
    config = CONFIG.format(marks=marks)
    daemon, rows = start_daemon(config), Rows(store_url)
    job = rows.insert("endless")
    eventually((marks / "pid").exists, within=20, state=daemon.tail)
    eventually(lambda: (marks / "pid").read_text().strip(), within=5)
    program = int((marks / "pid").read_text())
    assert daemon.process is not None
    daemon.process.kill()
    daemon.process.wait()
    eventually(lambda: not alive(program), within=10)
    (marks / "pid").unlink()
    daemon.start()
    eventually((marks / "pid").exists, within=40, state=daemon.tail)
    assert rows.attempts(job)[0]["reason"] == "lost"
    daemon.cli("job", "cancel", job.hex())
    eventually(lambda: rows.last(job)["status"] == "cancelled", within=20, state=daemon.tail)
