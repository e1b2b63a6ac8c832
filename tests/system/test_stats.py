"""Figures for scalers over two nodes: workers and rates are added up, and leave with a node."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows, assert_settled

CONFIG = f"""
[dispatcher]
lease = "3s"
poll = "100ms"
[defaults]
path = ["{ROOT}"]
[handlers.noop]
call = "tests.support.handlers:noop"
workers = 2
[handlers.waits]
call = "tests.support.handlers:wait_for_file"
"""


@pytest.mark.slow
def test_two_nodes_are_added_up(start_daemon: Callable[..., Daemon], store_url: str) -> None:
    """Jobs of plain INSERTs, with ids of any kind, come and end as all others do."""
    one, two = start_daemon(CONFIG, "one"), start_daemon(CONFIG, "two")
    rows = Rows(store_url)

    def noop() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(one.cli("stats", "--json").stdout)["handlers"]["noop"]
        return found

    eventually(lambda: noop()["workers"] == 4, state=noop)
    jobs = [rows.insert("noop", {}) for _ in range(60)]
    eventually(lambda: rows.ended(*jobs))
    ended = {
        "due": 0, "scheduled": 0, "running": 0, "oldest_s": 0.0, "workers": 4, "in_per_s": 1.0,
        "out_per_s": 1.0,
    }  # fmt: skip
    eventually(lambda: noop() == ended, state=noop)
    assert two.stop() == 0
    eventually(lambda: noop()["workers"] == 2, state=noop)
    assert one.stop() == 0
    assert_settled(rows)
