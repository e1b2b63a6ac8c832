"""Error groups count every failed attempt once, whatever dies while failures are recorded."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.galera import Galera
from tests.support.rows import Rows, assert_settled
from tests.support.servers import DatabaseServer

CONFIG = f"""
[supervisor]
watchdog = "1s"
[dispatcher]
lease = "5s"
[defaults]
path = ["{ROOT}"]
max_attempts = 2
max_crashes = 2
backoff = {{ first = "10ms", factor = 1.0, max = "10ms" }}
restart = {{ intensity = 1000, period = "1s" }}
[handlers.behave]
call = "tests.support.handlers:behave"
workers = 3
[handlers.other]
call = "tests.support.handlers:behave"
"""
KINDS = ("error", "failure", "ok", "error", "os_exit", "retry_then_ok")
ROUND = 30


def failed(rows: Rows) -> int:
    """Failed attempts that are recorded."""
    (found,) = rows.sql("SELECT COUNT(*) AS n FROM workerd_jobs WHERE fingerprint IS NOT NULL")
    return int(found["n"])


def is_over(rows: Rows) -> bool:
    return rows.counts().keys() <= {"completed", "retry", "failure", "cancelled"}


def add(rows: Rows, count: int = ROUND) -> None:
    for handler in ("behave", "other"):
        rows.insert_many(handler, [{"kind": KINDS[n % len(KINDS)]} for n in range(count)])


def assert_exact(rows: Rows) -> None:
    """The counts are those of the rows, each of which is counted once."""
    assert_settled(rows)
    assert rows.sql("SELECT * FROM workerd_errors WHERE count <> kept") == []
    (counted,) = rows.sql("SELECT SUM(count) AS n FROM workerd_errors")
    assert int(counted["n"]) == failed(rows)


def pid_of(daemon: Daemon, target: str) -> int:
    """Of a role, of the pool, or of one of its workers; 0 while it is down."""
    if target != "worker":
        return daemon.pid("pool:behave" if target == "pool" else target)
    workers = daemon.status().get("pools", {}).get("behave", {}).get("workers", ())
    return next((int(worker["pid"]) for worker in workers if worker.get("pid")), 0)


def die_in_turn(daemon: Daemon, rows: Rows, targets: tuple[str, ...]) -> None:
    """Kill each of the processes while failures are being recorded."""
    for target in targets:
        before = failed(rows)
        add(rows)
        eventually(lambda before=before: failed(rows) > before, within=60, state=daemon.tail)
        pid = eventually(lambda target=target: pid_of(daemon, target), within=60, state=daemon.tail)
        with contextlib.suppress(ProcessLookupError):  # a worker ends with the job that ends it
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_kills_of_processes_lose_and_double_no_count(store_url: str, store: object, tmp_path: Path) -> None:
    """Of a worker, the pool, the ingester and the dispatcher, on both engines."""
    rows = Rows(store_url)
    with Daemon(tmp_path / "node", store_url, CONFIG) as daemon:
        die_in_turn(daemon, rows, ("worker", "ingester", "pool", "ingester", "dispatcher", "worker"))
        eventually(lambda: is_over(rows), within=90, every=0.1, state=daemon.tail)
    assert failed(rows) > ROUND
    assert_exact(rows)


@pytest.mark.slow
def test_kills_of_the_server_lose_and_double_no_count(durable_server: DatabaseServer, tmp_path: Path) -> None:
    """A batch whose COMMIT had no answer is closed, and counted, once; so is what waited in the spool."""
    url = durable_server.url(durable_server.new_database())
    rows = Rows(url)
    node = Daemon(tmp_path / "node", url, CONFIG)
    node.cli("migrate")
    with node as daemon:
        for _ in range(3):
            before = failed(rows)
            add(rows)
            eventually(lambda before=before: failed(rows) > before, within=60, state=daemon.tail)
            durable_server.kill9()
            durable_server.start()
        eventually(lambda: is_over(rows), within=90, every=0.1, state=daemon.tail)
    assert_exact(rows)


@pytest.fixture
def cluster() -> Iterator[Galera]:
    cluster = Galera(3)
    try:
        yield cluster.start()
    finally:
        cluster.remove()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_cluster_counts_each_failure_once(cluster: Galera, tmp_path: Path) -> None:
    """Three daemons on three servers count the same groups, while a server and an ingester are killed."""
    urls = cluster.urls("counts")
    daemons = [Daemon(tmp_path / f"n{n}", url, CONFIG, name=f"n{n}") for n, url in enumerate(urls)]
    daemons[0].cli("migrate")
    rows = Rows(urls[0])
    try:
        for daemon in daemons:
            daemon.start(within=60)
        add(rows, 200)
        eventually(lambda: failed(rows) > 50, within=60, state=daemons[0].tail)
        daemons[2].kill("ingester")
        cluster.kill9(1)
        add(rows, 100)
        cluster.restart_killed()
        eventually(lambda: is_over(rows), within=150, every=0.2, state=lambda: rows.counts())
    finally:
        for daemon in daemons:
            daemon.end()
    assert_exact(rows)
