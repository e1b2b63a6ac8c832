"""Store outages of every kind: no job is lost, no role spins or floods the log, work resumes by itself."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pymysql
import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows, assert_settled
from tests.support.servers import DURABLE, FAST, DatabaseServer

LEASE = 3.0
BULK = 300_000
CONFIG = f"""
[shutdown]
drain = "10s"
[dispatcher]
lease = "{LEASE:g}s"
poll = "100ms"
[defaults]
path = ["{ROOT}"]
[handlers.record]
call = "tests.support.handlers:record"
workers = 2
max_attempts = 1
[handlers.until_stopping]
call = "tests.support.handlers:until_stopping"
max_attempts = 1
[handlers.waits]
call = "tests.support.handlers:wait_for_file"
max_attempts = 1
[handlers.large]
call = "tests.support.handlers:large_payload_after_file"
max_attempts = 1
workers = 6
"""


class OutageHarness:
    """A daemon on a server of its own, and the file in which its jobs record their runs."""

    def __init__(self, folder: Path, url: str, more: str = "") -> None:
        self.folder = folder
        self.url = url
        self.rows = Rows(url)
        self.runs = folder / "runs"
        self.runs.touch()
        self.daemon = Daemon(folder / "node", url, CONFIG + more)
        self.jobs: list[bytes] = []

    def enqueue(self, count: int) -> list[bytes]:
        fresh = self.rows.insert_many("record", [{"path": str(self.runs)}] * count)
        self.jobs += fresh
        return fresh

    def running(self, handler: str, path: Path) -> bytes:
        more = {"size": BULK} if handler == "large" else {}
        job = self.rows.insert(handler, {"path": str(path), **more})
        eventually(lambda: self.daemon.runs(job), state=self.daemon.tail)
        self.jobs.append(job)
        return job

    def assert_works(self) -> None:
        """New jobs and all earlier ones end."""
        self.enqueue(20)
        eventually(lambda: self.rows.ended(*self.jobs), within=40, every=0.1, state=self.daemon.tail)

    def spool(self) -> dict[str, Any]:
        return dict(self.daemon.status().get("spool") or {})

    def store_state(self) -> str:
        return str((self.daemon.status().get("store") or {}).get("state"))

    def is_away(self) -> bool:
        return self.store_state() == "away"

    def is_back(self) -> bool:
        status = self.daemon.status()
        return self.store_state() == "up" and status["roles"]["ingester"]["mode"] == "live"

    def roles(self) -> dict[str, psutil.Process]:
        return {name: psutil.Process(self.daemon.pid(name)) for name in ("dispatcher", "ingester")}

    def run_lines(self) -> int:
        return self.runs.read_bytes().count(b"\n")

    def reasons(self) -> Counter[str]:
        return Counter(row["reason"] for row in self.rows.of(self.jobs))

    def ran_once(self) -> bool:
        ran = Counter(line.split()[0] for line in self.runs.read_text().splitlines())
        return set(ran.values()) == {1}

    def warning_count(self) -> int:
        """Log lines above level info."""
        return sum(
            json.loads(line)["level"] != "info"
            for line in self.daemon.logged().splitlines()
            if line[:1] == "{"
        )

    def logged_by(self, event: str) -> Counter[str]:
        """How often each process logged this event."""
        lines = [json.loads(line) for line in self.daemon.logged().splitlines() if line[:1] == "{"]
        return Counter(line["process"] for line in lines if line["event"] == event)

    def end(self) -> None:
        assert self.daemon.stop() == 0
        assert_settled(self.rows)


def cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


class RoleUsage:
    """CPU time and warnings of the roles from now on: bounded, however long the outage."""

    def __init__(self, harness: OutageHarness) -> None:
        self._world = harness
        self._roles = harness.roles()
        self._spent = {name: cpu(process) for name, process in self._roles.items()}
        self._warnings = harness.warning_count()

    def spent(self, name: str) -> float:
        return cpu(self._roles[name]) - self._spent[name]

    def assert_bounded(self, lines: int = 8, seconds: float = 1.0) -> None:
        """No role died, used more than `seconds` of CPU or logged more than `lines` warnings."""
        for name, process in self._roles.items():
            assert process.is_running(), name
            assert self.spent(name) < seconds, name
        assert self._world.warning_count() - self._warnings <= lines, self._world.daemon.tail()


@pytest.fixture
def harness(tmp_path: Path, durable_server: DatabaseServer) -> Iterator[OutageHarness]:
    harness = OutageHarness(tmp_path, durable_server.url(durable_server.new_database()))
    harness.daemon.cli("migrate")
    with harness.daemon:
        yield harness


def wait_until_away_for(harness: OutageHarness, seconds: float) -> None:
    """Wait until the daemon reports the store away for this long."""
    eventually(lambda: harness.is_away() and harness.daemon.status()["store"]["since"] >= seconds, within=60)


def lease_is_lost(harness: OutageHarness) -> bool:
    return not harness.daemon.status()["pools"]["record"]["lease_held"]


# -- server killed, frozen, disconnected


@pytest.mark.slow
def test_server_killed_for_longer_than_the_lease(
    harness: OutageHarness, durable_server: DatabaseServer
) -> None:
    """Running jobs continue and see ctx.stopping; outcomes are spooled and later recorded once."""
    go = harness.folder / "go"
    stopping, waits = harness.folder / "stopping", harness.running("waits", go)
    stopped = harness.running("until_stopping", stopping)
    harness.enqueue(200)
    durable_server.kill9()
    usage = RoleUsage(harness)
    go.touch()
    eventually(stopping.exists, state=harness.daemon.tail)  # ctx.stopping is set when the lease is lost
    eventually(lambda: lease_is_lost(harness), state=harness.daemon.tail)
    eventually(lambda: harness.spool()["rows"] >= 2, state=harness.daemon.tail)
    wait_until_away_for(harness, LEASE * 1.5)
    usage.assert_bounded()
    durable_server.start()
    eventually(harness.is_back, state=harness.daemon.tail)
    harness.assert_works()
    assert harness.rows.last(stopped)["reason"] == harness.rows.last(waits)["reason"] == "ok"
    assert harness.reasons() == {"ok": len(harness.jobs)}
    assert harness.ran_once()
    assert harness.logged_by("store.available")["dispatcher"] == 1
    harness.end()


@pytest.mark.slow
def test_server_frozen_for_longer_than_the_lease(
    harness: OutageHarness, durable_server: DatabaseServer
) -> None:
    """A server that accepts connections but never answers counts as away."""
    waits = harness.running("waits", harness.folder / "go")
    durable_server.freeze()
    usage = RoleUsage(harness)
    (harness.folder / "go").touch()
    eventually(lambda: harness.spool()["rows"] >= 1, state=harness.daemon.tail)
    eventually(lambda: lease_is_lost(harness))
    wait_until_away_for(harness, LEASE)
    usage.assert_bounded()
    durable_server.thaw()
    harness.assert_works()
    assert harness.rows.last(waits)["reason"] == "ok"
    assert harness.ran_once()
    harness.end()


def test_connections_killed_repeatedly(harness: OutageHarness, durable_server: DatabaseServer) -> None:
    """Whichever statement or COMMIT is interrupted: every job ends once."""
    usage = RoleUsage(harness)
    for _ in range(15):
        harness.enqueue(40)
        for (thread,) in durable_server.sql(
            "SELECT ID FROM information_schema.PROCESSLIST WHERE USER = 'app' AND COMMAND <> 'Daemon'"
        ):
            with contextlib.suppress(pymysql.Error):
                durable_server.sql(f"KILL {thread}")
    harness.assert_works()
    usage.assert_bounded(lines=80, seconds=10)
    assert harness.reasons() == {"ok": len(harness.jobs)}
    assert harness.ran_once()
    harness.end()


# -- server up but refusing


def unprivileged_url(server: DatabaseServer) -> str:
    """The URL of a database whose user may not write while the server is read-only."""
    name = server.new_database()
    server.sql(f"GRANT ALL ON {name}.* TO plain@'%' IDENTIFIED BY 'secret'")
    return f"mysql://plain:secret@127.0.0.1:{server.port}/{name}?unix_socket={server.socket}"


@pytest.mark.slow
def test_read_only_server(tmp_path: Path, durable_server: DatabaseServer) -> None:
    """A server that answers reads and refuses writes counts as away until it accepts writes again."""
    harness = OutageHarness(tmp_path, unprivileged_url(durable_server))
    harness.daemon.cli("migrate")
    with harness.daemon:
        waits = harness.running("waits", tmp_path / "go")
        durable_server.sql("SET GLOBAL read_only = 1")
        usage = RoleUsage(harness)
        (tmp_path / "go").touch()
        eventually(lambda: harness.spool()["rows"] >= 1, state=harness.daemon.tail)
        eventually(lambda: lease_is_lost(harness), state=harness.daemon.tail)
        usage.assert_bounded()
        durable_server.sql("SET GLOBAL read_only = 0")
        harness.assert_works()
        assert harness.rows.last(waits)["reason"] == "ok"
        assert harness.ran_once()
        harness.end()


@pytest.mark.slow
def test_too_many_connections(harness: OutageHarness, durable_server: DatabaseServer) -> None:
    """Other clients hold every connection: the roles wait until one is free."""
    waits = harness.running("waits", harness.folder / "go")
    hog = ConnectionHog(harness.rows)
    durable_server.sql("SET GLOBAL max_connections = 12")
    try:
        eventually(lambda: hog.take_all(harness), every=0.1, state=harness.daemon.tail)
        usage = RoleUsage(harness)
        (harness.folder / "go").touch()
        eventually(lambda: harness.spool()["rows"] >= 1, state=harness.daemon.tail)
        wait_until_away_for(harness, 1.0)
        usage.assert_bounded()
    finally:
        hog.close()
    harness.assert_works()
    assert harness.rows.last(waits)["reason"] == "ok"
    harness.end()


class ConnectionHog:
    """Clients that take every connection of the server."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._held = contextlib.ExitStack()
        self._first = self._connect()
        self._ours: set[int] = {self._first.thread_id()}

    def _connect(self) -> Any:
        return self._held.enter_context(self._rows.connection())

    def take_all(self, harness: OutageHarness) -> bool:
        """Kill all other connections and take their places; true once the daemon is refused."""
        cursor = self._first.cursor()
        cursor.execute("SELECT ID FROM information_schema.PROCESSLIST WHERE USER = 'app'")
        others = {row[0] for row in cursor.fetchall()} - self._ours
        for thread in others:
            with contextlib.suppress(pymysql.Error):
                cursor.execute(f"KILL {thread}")
        with contextlib.suppress(pymysql.Error):
            while True:
                self._ours.add(self._connect().thread_id())
        return bool(harness.daemon.status()["store"]["code"] == 1040)

    def close(self) -> None:
        """Release all connections."""
        self._held.close()


@pytest.mark.slow
def test_a_full_disk(tmp_path: Path) -> None:
    """The table space is full: outcomes wait in the spool until there is space again."""
    server = DatabaseServer(table_space("24M")).start()
    try:
        harness = OutageHarness(tmp_path, server.url(server.new_database()))
        harness.daemon.cli("migrate")
        with harness.daemon:
            go = tmp_path / "go"
            large = [harness.running("large", go) for _ in range(2)]
            filler = server.new_database()
            server.sql(f"CREATE TABLE {filler}.filler (text LONGTEXT)")
            for size in (500_000, 50_000, 5_000):
                fill(server, filler, size)
            usage = RoleUsage(harness)
            go.touch()
            eventually(lambda: harness.spool()["rows"] >= 2, state=harness.daemon.tail)
            eventually(lambda: harness.daemon.status()["roles"]["ingester"]["mode"] == "away")
            usage.assert_bounded()
            server.stop()
            server.options = table_space("200M")
            server.start()
            harness.assert_works()
            assert {harness.rows.last(job)["reason"] for job in large} == {"ok"}
            assert len(harness.rows.last(large[0])["payload"]) == BULK
            harness.end()
    finally:
        server.remove()


def table_space(max_size: str) -> tuple[str, ...]:
    return (
        *FAST, "--innodb-file-per-table=0", f"--innodb-data-file-path=ibdata1:12M:autoextend:max:{max_size}"
    )  # fmt: skip


def fill(server: DatabaseServer, database: str, size: int) -> None:
    """Insert rows of this size until the server reports a full table."""
    with pytest.raises(pymysql.Error) as raised:  # noqa: PT012
        while True:
            server.sql(f"INSERT INTO {database}.filler VALUES (REPEAT('x', {size}))")
    assert raised.value.args[0] == 1114


# -- locks and deadlocks


@pytest.mark.slow
def test_locks_that_another_program_holds(harness: OutageHarness, durable_server: DatabaseServer) -> None:
    """An open transaction locks the rows to close: their outcomes wait, and the store is not away."""
    waits = harness.running("waits", harness.folder / "go")
    database = urlsplit(harness.url).path[1:]
    with durable_server.root(database) as other, other.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT id FROM workerd_jobs FOR UPDATE")
        usage = RoleUsage(harness)
        (harness.folder / "go").touch()
        eventually(
            lambda: harness.daemon.status()["roles"]["ingester"]["locked"] == 1,
            within=40,
            state=harness.daemon.tail,
        )
        assert harness.spool()["rows"] == 0
        assert harness.daemon.status()["store"]["state"] == "up"
        usage.assert_bounded()
        cursor.execute("ROLLBACK")
    harness.assert_works()
    assert harness.rows.last(waits)["reason"] == "ok"
    assert lease_was_kept(harness)
    harness.end()


def lease_was_kept(harness: OutageHarness) -> bool:
    return "lease.expired" not in harness.daemon.logged()


@pytest.mark.slow
@pytest.mark.parametrize("table", ["workerd_handlers", "workerd_nodes"])
def test_locks_on_tables_of_the_dispatcher(
    harness: OutageHarness, durable_server: DatabaseServer, table: str
) -> None:
    """Claims wait, the log stays short, and the lease is lost only if its own row is locked."""
    harness.assert_works()
    with durable_server.root(urlsplit(harness.url).path[1:]) as other, other.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute(f"SELECT * FROM {table} FOR UPDATE")
        usage = RoleUsage(harness)
        harness.enqueue(20)
        eventually(lambda: lock_timeouts(harness) >= 4, within=60, every=0.1, state=harness.daemon.tail)
        usage.assert_bounded()
        assert lease_was_kept(harness) == (table == "workerd_handlers")
        cursor.execute("ROLLBACK")
    harness.assert_works()
    assert harness.ran_once()
    harness.end()


def lock_timeouts(harness: OutageHarness) -> int:
    errors = harness.daemon.status()["store"]["errors"]
    return int(errors.get("1205", 0) + errors.get("1969", 0))


@pytest.mark.slow
def test_deadlocks(harness: OutageHarness, durable_server: DatabaseServer) -> None:
    """Another program updates the same rows in the opposite order: transactions are retried as a whole."""
    stop = threading.Event()
    database = urlsplit(harness.url).path[1:]

    def interfere(pause_s: float) -> None:
        with durable_server.root(database) as other, other.cursor() as cursor:
            while not stop.is_set():
                with contextlib.suppress(pymysql.Error):
                    cursor.execute("BEGIN")
                    cursor.execute(
                        "UPDATE workerd_jobs SET priority = priority WHERE status IN ('inprogress', 'new')"
                        " ORDER BY id DESC LIMIT 50"
                    )
                    cursor.execute("SELECT id FROM workerd_jobs ORDER BY attempt DESC LIMIT 50 FOR UPDATE")
                    cursor.execute("COMMIT")
                time.sleep(pause_s)

    def retries() -> int:
        return int(harness.daemon.status()["roles"]["ingester"]["transaction_retries"])

    # Two without a pause lock the whole table one right after the other: then no row is free at any moment.
    threads = [threading.Thread(target=interfere, args=(pause_s,)) for pause_s in (0.0, 0.003)]
    for thread in threads:
        thread.start()
    try:
        while len(harness.jobs) < 500 or not retries():
            harness.enqueue(100)
            eventually(
                lambda: harness.rows.ended(*harness.jobs), within=60, every=0.2, state=harness.daemon.tail
            )
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert harness.reasons() == {"ok": len(harness.jobs)}
    assert harness.ran_once()
    harness.end()


@pytest.mark.slow
def test_a_statement_that_hangs(harness: OutageHarness, durable_server: DatabaseServer) -> None:
    """A table lock is held for long: statements end at their time limit and no role is killed."""
    database = urlsplit(harness.url).path[1:]
    waits = harness.running("waits", harness.folder / "go")
    roles = harness.roles()
    with durable_server.root(database) as other, other.cursor() as cursor:
        cursor.execute("LOCK TABLES workerd_jobs WRITE, workerd_nodes WRITE")
        usage = RoleUsage(harness)
        (harness.folder / "go").touch()
        eventually(lambda: harness.spool()["rows"] >= 1, within=40, state=harness.daemon.tail)
        eventually(lambda: lease_is_lost(harness), state=harness.daemon.tail)
        usage.assert_bounded()
        cursor.execute("UNLOCK TABLES")
    harness.assert_works()
    assert harness.rows.last(waits)["reason"] == "ok"
    assert all(process.is_running() for process in roles.values())
    harness.end()


# -- the embedded store


@pytest.mark.slow
def test_sqlite_locked_by_an_open_transaction(tmp_path: Path) -> None:
    """The log names the cause; work resumes when the transaction ends."""
    harness = OutageHarness(tmp_path, f"sqlite:///{tmp_path}/store.db")
    with harness.daemon:
        waits = harness.running("waits", tmp_path / "go")
        other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        usage = RoleUsage(harness)
        (tmp_path / "go").touch()
        eventually(lambda: harness.spool()["rows"] >= 1, within=40, state=harness.daemon.tail)
        eventually(lambda: lease_is_lost(harness), state=harness.daemon.tail)
        assert "another program keeps a transaction open" in harness.daemon.logged()
        usage.assert_bounded(seconds=3.0)  # SQLite polls the lock every 1 to 2 ms
        other.execute("ROLLBACK")
        other.close()
        harness.assert_works()
        assert harness.rows.last(waits)["reason"] == "ok"
        assert harness.ran_once()
        harness.end()


# -- full spool


@pytest.mark.slow
def test_a_full_spool_causes_back_pressure(tmp_path: Path, durable_server: DatabaseServer) -> None:
    """Outcomes that do not fit stay unacknowledged in their pool; status reports the full spool."""
    harness = OutageHarness(
        tmp_path, durable_server.url(durable_server.new_database()), '[ingester]\nspool = "1MiB"\n'
    )
    harness.daemon.cli("migrate")
    with harness.daemon:
        go = tmp_path / "go"
        large = [harness.running("large", go) for _ in range(6)]
        durable_server.kill9()
        usage = RoleUsage(harness)
        go.touch()
        eventually(lambda: harness.spool()["trouble"], within=40, state=harness.daemon.tail)
        eventually(lambda: unacknowledged(harness) >= 3, state=harness.daemon.tail)
        assert harness.spool()["bytes"] <= 1 << 20
        wait_until_away_for(harness, 1.0)
        usage.assert_bounded()
        assert "is full" in harness.daemon.cli("status", check=False).stdout
        durable_server.start()
        harness.assert_works()
        assert {harness.rows.last(job)["reason"] for job in large} == {"ok"}
        harness.end()


def unacknowledged(harness: OutageHarness) -> int:
    return int(harness.daemon.status()["pools"]["large"]["unacknowledged"])


# -- shutdown and data loss


def test_a_drain_while_the_store_is_away(harness: OutageHarness, durable_server: DatabaseServer) -> None:
    """Every outcome is spooled and the drain ends in time; the next start replays them before rescuing."""
    go = harness.folder / "go"
    waits = harness.running("waits", go)
    durable_server.kill9()
    eventually(harness.is_away)
    go.touch()
    assert harness.daemon.stop(within=30) == 0
    assert list((harness.daemon.folder / "state" / "spool").glob("*.db"))
    durable_server.start()
    assert harness.rows.last(waits)["status"] == "inprogress"
    harness.daemon.start()
    harness.assert_works()
    assert [row["reason"] for row in harness.rows.attempts(waits)] == ["ok"]
    assert harness.rows.last(waits)["losses"] == 0
    assert not list((harness.daemon.folder / "state" / "spool").glob("*.db"))
    harness.end()


def test_commits_lost_by_the_server_are_settled(tmp_path: Path) -> None:
    """A server that loses its last second of commits when killed: those jobs run again, none hangs."""
    server = DatabaseServer(DURABLE).start()
    try:
        harness = OutageHarness(tmp_path, server.url(server.new_database()))
        harness.daemon.cli("migrate")
        with harness.daemon:
            for _ in range(3):
                # Set only now, so that the kill does not lose the tables.
                server.sql("SET GLOBAL innodb_flush_log_at_trx_commit = 0")
                harness.enqueue(300)
                server.kill9()
                server.start()
                eventually(harness.is_back, state=harness.daemon.tail)
            accepted = {row["id"] for row in harness.rows.sql("SELECT id FROM workerd_jobs")}
            harness.jobs = [job for job in harness.jobs if job in accepted]
            harness.assert_works()
            harness.end()
    finally:
        server.remove()
