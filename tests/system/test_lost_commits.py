"""A failover that lost the last commits: nothing runs beside itself, and what ran is told as lost."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows, assert_settled
from tests.support.servers import DatabaseServer

CONFIG = f"""
[supervisor]
watchdog = "60s"
[dispatcher]
poll = "50ms"
[defaults]
path = ["{ROOT}"]
[handlers.waits]
call = "tests.support.handlers:wait_for_file"
workers = 2
[handlers.noop]
call = "tests.support.handlers:noop"
"""
BEFORE_THE_CLAIM = """UPDATE workerd_jobs SET status = 'new', reason = NULL, node_id = NULL, node = NULL,
    pid = NULL, claimed_at = NULL, started_at = NULL, finished_at = NULL, ingested_at = NULL,
    success = NULL"""


def events(daemon: Daemon, name: str) -> list[dict[str, object]]:
    lines = [line for line in daemon.logged().splitlines() if f'"{name}"' in line]
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_a_failover_that_lost_claims_and_ends(tmp_path: Path, durable_server: DatabaseServer) -> None:
    """One job runs and one has ended when the store forgets both claims and the end."""
    url = durable_server.url(durable_server.new_database())
    rows = Rows(url)
    daemon = Daemon(tmp_path / "one", url, CONFIG)
    daemon.cli("migrate")
    with daemon:
        gate = tmp_path / "gate"
        running, ended = rows.insert("waits", {"path": str(gate)}), rows.insert("noop")
        eventually(lambda: daemon.runs(running) and rows.ended(ended), state=daemon.tail)
        claimed_at = rows.last(running)["claimed_at"]
        roles = [daemon.pid("dispatcher"), daemon.pid("ingester")]
        for pid in roles:
            os.kill(pid, signal.SIGSTOP)  # so that they see nothing between the old and the new server
        rows.sql(BEFORE_THE_CLAIM)
        durable_server.kill9()
        durable_server.start()
        for pid in roles:
            os.kill(pid, signal.SIGCONT)
        eventually(lambda: rows.last(running)["status"] == "inprogress", state=daemon.tail)
        assert rows.last(running)["claimed_at"] == claimed_at
        eventually(lambda: rows.ended(ended), state=daemon.tail)
        gate.touch()
        eventually(lambda: rows.ended(running), state=daemon.tail)
        assert [(row["attempt"], row["reason"]) for row in rows.of([running])] == [(1, "ok")]
        assert [(row["attempt"], row["reason"]) for row in rows.of([ended])] == [(1, "lost"), (2, "ok")]
        assert [event["count"] for event in events(daemon, "claims.taken_back")] == [1]
        assert [event["count"] for event in events(daemon, "outcomes.lost")] == [1]
    assert_settled(rows)
