"""A retry runs when it is due, however rarely the dispatcher looks by itself."""

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
[handlers.faces]
call = "tests.support.handlers:faces"
max_attempts = 3
backoff = {{ first = "200ms", factor = 1.0, max = "200ms", jitter = 0.0 }}
"""


def test_a_retry_runs_when_it_is_due(tmp_path: Path, store_url: str, store: Any) -> None:
    """The ingester tells the dispatcher of the attempt that it scheduled; no poll is waited for."""
    rows = Rows(store_url)
    job = rows.insert("faces", {"face": "error"})
    with Daemon(tmp_path / "node", store_url, CONFIG) as daemon:
        eventually(lambda: rows.ended(job), within=10, state=daemon.tail)
    attempts = rows.attempts(job)
    assert [row["reason"] for row in attempts] == ["error"] * 3
    assert_settled(rows)
