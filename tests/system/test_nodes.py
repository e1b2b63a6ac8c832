"""Several daemons on one MariaDB: shared work, rescue of dead nodes, no rescue of live ones."""

from __future__ import annotations

import contextlib
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows, assert_settled
from tests.support.servers import DURABLE, DatabaseServer

LEASE = 3.0
CONFIG = f"""
[shutdown]
drain = "10s"
[dispatcher]
lease = "{LEASE:g}s"
poll = "100ms"
[supervisor]
watchdog = "30s"
[defaults]
path = ["{ROOT}"]
backoff = {{ first = "10ms", factor = 1.0, max = "10ms" }}
[handlers.noop]
call = "tests.support.handlers:noop"
workers = 2
[handlers.traced]
call = "tests.support.handlers:record_process"
[handlers.waits]
call = "tests.support.handlers:wait_for_file"
workers = 2
"""

MakeDaemon = Callable[..., Daemon]


@pytest.fixture
def rows(mysql_url: str) -> Rows:
    return Rows(mysql_url)


@pytest.fixture
def make_daemon(tmp_path: Path, mysql_url: str) -> Iterator[MakeDaemon]:
    """Make daemons on one store without starting them; the first migrates it."""
    made: list[Daemon] = []

    def make(name: str, config: str = CONFIG, **keys: object) -> Daemon:
        folder = tmp_path / f"{len(made)}-{name}"
        made.append(Daemon(folder, mysql_url, config, name=name, **keys))  # type: ignore[arg-type]
        if len(made) == 1:
            made[0].cli("migrate")
        return made[-1]

    yield make
    for daemon in made:
        thaw(daemon)
        daemon.end()


def freeze(daemon: Daemon) -> None:
    """Stop every process of the node, the supervisor first, until none is running."""
    for process in daemon.tree():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
    eventually(lambda: all(process.status() == psutil.STATUS_STOPPED for process in live_processes(daemon)))


def thaw(daemon: Daemon) -> None:
    if daemon.process is not None:
        for process in reversed(daemon.tree()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def live_processes(daemon: Daemon) -> list[psutil.Process]:
    found = []
    for process in daemon.tree():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def runs_on(rows: Rows, job: bytes, name: str) -> bool:
    last = rows.last(job)
    return bool(last["status"] == "inprogress" and text(last["node"]) == name)


def text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def stop_all(rows: Rows, *daemons: Daemon) -> None:
    for daemon in daemons:
        assert daemon.stop() == 0
    assert_settled(rows)
    assert rows.sql("SELECT name FROM workerd_nodes") == []


@pytest.mark.slow
def test_three_share_20_000_jobs_and_one_is_killed(make_daemon: MakeDaemon, rows: Rows) -> None:
    """No job is lost, no attempt runs on two nodes, and every node gets a share."""
    daemons = [make_daemon(name).start() for name in ("n1", "n2", "n3")]
    jobs = rows.insert_many("noop", [{}] * 20_000)
    by_node = "SELECT node, COUNT(*) AS n FROM workerd_jobs WHERE status = 'completed' GROUP BY node"
    eventually(lambda: len(rows.sql(by_node)) == 3, every=0.05)
    daemons[1].kill("supervisor")
    eventually(lambda: daemons[1].process is not None and daemons[1].process.poll() is not None)
    eventually(lambda: rows.counts().keys() <= {"completed", "retry"}, within=60, every=0.2)
    ends = Counter(row["id"] for row in rows.of(jobs) if row["status"] == "completed")
    assert set(ends) == set(jobs)
    assert set(ends.values()) == {1}
    assert {row["reason"] for row in rows.of(jobs)} <= {"ok", "lost"}
    eventually(lambda: len(rows.sql("SELECT id FROM workerd_nodes")) == 2)  # the dead node's row is deleted
    stop_all(rows, daemons[0], daemons[2])


@pytest.mark.slow
def test_a_dead_nodes_running_job_is_retried_elsewhere(
    make_daemon: MakeDaemon, rows: Rows, tmp_path: Path
) -> None:
    """Once its lease has expired by the store's clock; two rescuers create one retry."""
    first = make_daemon("n1").start()
    go = tmp_path / "go"
    jobs = [rows.insert("waits", {"path": str(go)}) for _ in range(2)]
    eventually(lambda: all(runs_on(rows, job, "n1") for job in jobs))
    rescuers = [make_daemon("n2").start(), make_daemon("n3").start()]
    first.kill("supervisor")
    eventually(lambda: all(rows.last(job)["attempt"] == 2 for job in jobs), within=20)
    go.touch()
    eventually(lambda: rows.ended(*jobs), state=rescuers[0].tail)
    for job in jobs:
        attempts = rows.attempts(job)
        assert [(row["status"], row["reason"]) for row in attempts] == [
            ("retry", "lost"),
            ("completed", "ok"),
        ]
        assert [row["losses"] for row in attempts] == [0, 1]
        assert "n1" in text(attempts[0]["error"])
    stop_all(rows, *rescuers)


@pytest.mark.slow
def test_late_outcomes_of_a_node_frozen_for_longer_than_its_lease_are_void(
    make_daemon: MakeDaemon, rows: Rows, tmp_path: Path
) -> None:
    """Its jobs were rescued meanwhile; after the freeze it works as before."""
    sleeper = make_daemon("n1").start()
    go = tmp_path / "go"
    jobs = [rows.insert("waits", {"path": str(go)}) for _ in range(2)]
    eventually(lambda: all(runs_on(rows, job, "n1") for job in jobs))
    other = make_daemon("n2").start()
    freeze(sleeper)
    eventually(lambda: all(runs_on(rows, job, "n2") for job in jobs), within=20, state=other.tail)
    go.touch()
    eventually(lambda: rows.ended(*jobs), state=other.tail)
    before = [rows.attempts(job) for job in jobs]
    thaw(sleeper)
    eventually(lambda: sleeper.status().get("ready") and sleeper.status()["lease"]["held"])
    eventually(lambda: sleeper.status()["pools"]["waits"]["unacknowledged"] == 0)
    eventually(lambda: not any(busy(worker) for worker in sleeper.status()["pools"]["waits"]["workers"]))
    assert [rows.attempts(job) for job in jobs] == before
    more = rows.insert_many("noop", [{}] * 200)
    eventually(lambda: rows.ended(*more), state=sleeper.tail)
    assert {text(row["name"]) for row in rows.sql("SELECT name FROM workerd_nodes")} == {"n1", "n2"}
    stop_all(rows, sleeper, other)


class Run(NamedTuple):
    """A run, as `record_process` noted it; `began_at`: CLOCK_MONOTONIC."""

    job: str
    pid: int
    began_at: float


def runs_in(path: Path) -> list[Run]:
    lines = [line.split() for line in path.read_text().splitlines()]
    return [Run(job, int(pid), float(began_at)) for job, pid, began_at in lines]


def job_at(process: psutil.Process) -> str:
    """The job that a worker has taken, by its title; else some other word."""
    return process.cmdline()[0].split()[-1]


def busy(worker: dict[str, object]) -> bool:
    return bool(worker.get("job"))


@pytest.mark.slow
def test_a_frozen_node_starts_no_claims_after_its_lease(
    make_daemon: MakeDaemon, rows: Rows, tmp_path: Path
) -> None:
    """Neither those that wait in its pool nor those that are queued at its worker."""
    path = tmp_path / "runs"
    path.touch()
    sleeper = make_daemon("n1").start()
    warm = rows.insert_many("traced", [{"path": str(path)}] * 200)  # short ones: it then takes many at once
    eventually(lambda: rows.ended(*warm))
    jobs = rows.insert_many("traced", [{"path": str(path), "wait": 0.05}] * 20)
    eventually(lambda: "inprogress" in rows.counts())
    other = make_daemon("n2").start()
    freeze(sleeper)
    frozen_at = time.monotonic()
    processes = {process.pid: process for process in live_processes(sleeper)}
    taken = {job_at(process) for process in processes.values()}
    eventually(lambda: rows.ended(*jobs), within=30, state=other.tail)
    thaw(sleeper)
    eventually(lambda: sleeper.status().get("ready") and sleeper.status()["lease"]["held"])
    eventually(lambda: not any(busy(worker) for worker in sleeper.status()["pools"]["traced"]["workers"]))
    late = {run.job for run in runs_in(path) if run.pid in processes and run.began_at > frozen_at}
    assert late <= taken, "it had taken that, and perhaps not noted yet that it began"
    stop_all(rows, sleeper, other)


def test_a_second_live_node_of_the_same_name_is_refused(make_daemon: MakeDaemon, rows: Rows) -> None:
    """It exits with status 2 and a message; the first keeps working."""
    first = make_daemon("twin").start()
    second = make_daemon("twin").spawn()
    assert second.process is not None
    assert second.process.wait(20) == 2
    assert 'A node named \\"twin\\" is alive' in second.logged()
    job = rows.insert("noop")
    eventually(lambda: rows.ended(job))
    stop_all(rows, first)


@pytest.mark.slow
@pytest.mark.parametrize("hours", [-5, 5])
def test_a_clock_that_is_hours_off_does_not_matter(
    make_daemon: MakeDaemon, rows: Rows, tmp_path: Path, hours: int
) -> None:
    """The store's clock decides: no node is rescued too early or too late, and times in rows are in order."""
    entry = ("tests.support.halting", "clock", str(hours * 3600), "-")
    odd = make_daemon("odd", entry=entry).start()
    even = make_daemon("even").start()
    go = tmp_path / "go"
    jobs = [rows.insert("waits", {"path": str(go)}) for _ in range(4)]
    eventually(
        lambda: {text(row["node"]) for row in rows.sql("SELECT node FROM workerd_jobs")} == {"odd", "even"}
    )
    soon = rows.insert(
        "noop", status="scheduled", run_at=rows.sql("SELECT UTC_TIMESTAMP(6) AS now")[0]["now"]
    )
    eventually(lambda: rows.ended(soon))
    began = time.monotonic()
    eventually(lambda: time.monotonic() - began > LEASE * 1.5, within=20)
    assert {row["attempt"] for row in rows.of(jobs)} == {1}
    assert {row["status"] for row in rows.of(jobs)} == {"inprogress"}
    odd.kill("supervisor")
    eventually(lambda: sum(row["reason"] == "lost" for row in rows.of(jobs)) > 0, within=20)
    go.touch()
    eventually(lambda: rows.ended(*jobs), state=even.tail)
    stop_all(rows, even)


@pytest.mark.slow
def test_an_outage_longer_than_the_lease_causes_no_rescue_of_live_nodes(tmp_path: Path) -> None:
    """Both leases have expired when the store is back; neither node treats the other as dead."""
    server = DatabaseServer(DURABLE).start()
    daemons: list[Daemon] = []
    try:
        url = server.url(server.new_database())
        rows = Rows(url)
        daemons = [Daemon(tmp_path / name, url, CONFIG, name=name) for name in ("n1", "n2")]
        daemons[0].cli("migrate")
        go = tmp_path / "go"
        for daemon in daemons:
            daemon.start()
        jobs = [rows.insert("waits", {"path": str(go)}) for _ in range(4)]
        eventually(lambda: rows.counts() == {"inprogress": 4})
        server.kill9()
        eventually(lambda: all(is_away_for(daemon, LEASE * 1.5) for daemon in daemons), within=30)
        server.start()
        eventually(lambda: all(daemon.status()["lease"]["held"] for daemon in daemons), within=20)
        began = time.monotonic()
        eventually(lambda: time.monotonic() - began > LEASE * 1.5, within=20)
        go.touch()
        eventually(lambda: rows.ended(*jobs), state=daemons[0].tail)
        assert {(row["attempt"], row["reason"]) for row in rows.of(jobs)} == {(1, "ok")}
        stop_all(rows, *daemons)
    finally:
        for daemon in daemons:
            daemon.end()
        server.remove()


def is_away_for(daemon: Daemon, seconds: float) -> bool:
    store = daemon.status().get("store") or {}
    return bool(store.get("state") == "away" and store["since"] > seconds)


@pytest.mark.slow
def test_a_drain_keeps_its_lease(make_daemon: MakeDaemon, rows: Rows, tmp_path: Path) -> None:
    """A job that drains for longer than the lease is not rescued."""
    draining = make_daemon("n1", CONFIG.replace('drain = "10s"', 'drain = "60s"')).start()
    go = tmp_path / "go"
    job = rows.insert("waits", {"path": str(go)})
    eventually(lambda: runs_on(rows, job, "n1"))
    other = make_daemon("n2").start()
    assert draining.process is not None
    draining.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    eventually(lambda: time.monotonic() - began > LEASE * 2, within=20)
    assert runs_on(rows, job, "n1")
    go.touch()
    assert draining.process.wait(20) == 0
    assert [row["reason"] for row in rows.attempts(job)] == ["ok"]
    stop_all(rows, other)
