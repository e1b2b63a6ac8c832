"""Many writers of one unique key beside the daemons that run its jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.galera import Galera
from tests.support.newest_data import never_ran, overlapping, read_runs, went_back, write_in_turns
from tests.support.rows import Rows, assert_settled
from workerd.client import Client

CONFIG = f"""
[defaults]
path = ["{ROOT}"]
[handlers.h]
call = "tests.support.handlers:note_span"
workers = 4
"""
WRITERS, WRITES = 8, 25
WORDS = ["replace", "debounce", "follow"]


def run(daemons: Sequence[Daemon], word: str, path: Path) -> None:
    """Write, wait for all jobs, and compare what ran with what was written."""
    rows = Rows(daemons[0].url)
    clients = [Client(daemons[n % len(daemons)].path, connections=1) for n in range(WRITERS)]
    try:
        writes, _ = write_in_turns(clients, "h", word, lambda count: count == WRITES, path)
    finally:
        for client in clients:
            client.close()
    assert writes
    eventually(lambda: rows.counts().keys() == {"completed"}, within=60, state=daemons[0].tail)
    runs = read_runs(path)
    assert never_ran(writes, runs) == []
    assert overlapping(runs) == []
    assert went_back(writes, runs) == []
    assert_settled(rows)


@pytest.mark.parametrize("word", WORDS)
def test_the_newest_data_always_runs(start_daemon: Callable[..., Daemon], tmp_path: Path, word: str) -> None:
    """After each answer something begins to run that is as new; one at a time, never back."""
    run([start_daemon(CONFIG)], word, tmp_path / "runs")


@pytest.mark.slow
@pytest.mark.parametrize("word", WORDS)
def test_the_newest_data_always_runs_on_two_servers(cluster: Galera, tmp_path: Path, word: str) -> None:
    """Whose writers do not see each other's locks."""
    urls = cluster.urls(f"keys_{word}")
    daemons = [Daemon(tmp_path / f"n{n}", url, CONFIG, name=f"n{n}") for n, url in enumerate(urls)]
    daemons[0].cli("migrate")
    try:
        for daemon in daemons:
            daemon.start(within=60)
        run(daemons, word, tmp_path / "runs")
    finally:
        for daemon in daemons:
            daemon.end()
