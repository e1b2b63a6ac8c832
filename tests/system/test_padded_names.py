"""Rows that other programs wrote with a space at the end of a name, which MySQL does not see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.daemon import HANDLERS, Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows, assert_settled

CONFIG = f"""
[handlers.noop]
call = "{HANDLERS}:noop"
[handlers.behave]
call = "{HANDLERS}:behave"
max_attempts = 2
backoff = {{ first = "0s" }}
[workflows.one]
steps = [{{ name = "only", jobs = ["noop"] }}]
"""


def test_jobs_and_requests_with_padded_names_end_as_those_without(
    tmp_path: Path, mysql_url: str, mysql: Any
) -> None:
    """Of a padded handler too that is due later, retried, or under a padded key; nothing stays behind."""
    with Daemon(tmp_path / "node", mysql_url, CONFIG) as daemon:
        rows = Rows(mysql_url)
        plain = rows.insert("noop ", unique_key="k ")
        later = rows.insert("noop ", status="scheduled", run_at="2000-01-01 00:00:00")
        retried = rows.insert("behave ", {"kind": "error"}, unique_key="k ")
        request = bytes(range(16))
        rows.sql("INSERT INTO workerd_requests (id, workflow, params) VALUES (%s, 'one ', '{}')", request)
        eventually(lambda: rows.ended(plain, later, retried), within=15, state=daemon.tail)
        assert [rows.last(job)["status"] for job in (plain, later, retried)] == [
            "completed", "completed", "failure",
        ]  # fmt: skip
        assert len(rows.attempts(retried)) == 2
        select = "SELECT status FROM workerd_requests"
        eventually(lambda: rows.sql(select) == [{"status": "completed"}], within=15, state=daemon.tail)
        assert "task.crashed" not in daemon.logged()
    assert_settled(rows)
