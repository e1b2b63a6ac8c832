"""A retry runs when it is due, however long the poll interval of the dispatcher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows, assert_settled

CONFIG = f"""
[dispatcher]
poll = "30s"
[defaults]
path = ["{ROOT}"]
[handlers.behave]
call = "tests.support.handlers:behave"
max_attempts = 3
backoff = {{ first = "200ms", factor = 1.0, max = "200ms", jitter = 0.0 }}
"""


def test_a_retry_runs_when_it_is_due(tmp_path: Path, store_url: str, store: Any) -> None:
    """The ingester notifies the dispatcher of the attempt it scheduled; no poll is needed."""
    rows = Rows(store_url)
    job = rows.insert("behave", {"kind": "error"})
    with Daemon(tmp_path / "node", store_url, CONFIG) as daemon:
        eventually(lambda: rows.ended(job), within=10, state=daemon.tail)
    attempts = rows.attempts(job)
    assert [row["reason"] for row in attempts] == ["error"] * 3
    assert_settled(rows)
