"""The store away in every way: nothing is lost, nothing spins, little is logged, work goes on by itself."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
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
[handlers.stopping]
call = "tests.support.handlers:until_stopping"
max_attempts = 1
[handlers.waits]
call = "tests.support.handlers:wait_for_file"
max_attempts = 1
[handlers.bulky]
call = "tests.support.handlers:bulk_when_told"
max_attempts = 1
workers = 6
"""


class World:
    """A daemon on a server of its own, and what its jobs wrote down outside of it."""

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
        more = {"size": BULK} if handler == "bulky" else {}
        job = self.rows.insert(handler, {"path": str(path), **more})
        eventually(lambda: self.daemon.runs(job), state=self.daemon.tail)
        self.jobs.append(job)
        return job

    def works(self) -> None:
        """Fresh jobs are run, and so was everything before them."""
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

    def log_lines(self) -> int:
        """Lines that warn: what a person would be woken by."""
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


class Calm:
    """What the roles spend and say from here on: bounded, however long the store is away."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._roles = world.roles()
        self._spent = {name: cpu(process) for name, process in self._roles.items()}
        self._said = world.log_lines()

    def spent(self, name: str) -> float:
        return cpu(self._roles[name]) - self._spent[name]

    def check(self, lines: int = 8, seconds: float = 1.0) -> None:
        """Nobody died, nobody spun, nobody flooded the log."""
        for name, process in self._roles.items():
            assert process.is_running(), name
            assert self.spent(name) < seconds, name
        assert self._world.log_lines() - self._said <= lines, self._world.daemon.tail()


@pytest.fixture
def server() -> Iterator[DatabaseServer]:
    """A server that this test may kill, and that keeps what it committed."""
    server = DatabaseServer(DURABLE)
    try:
        yield server.start()
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.thaw()
        server.remove()


@pytest.fixture
def world(tmp_path: Path, server: DatabaseServer) -> Iterator[World]:
    world = World(tmp_path, server.url(server.new_database()))
    world.daemon.cli("migrate")
    with world.daemon:
        yield world


def lasting(world: World, seconds: float) -> None:
    """Until the store has been away for so long, as the daemon itself counts it."""
    eventually(lambda: world.is_away() and world.daemon.status()["store"]["since"] >= seconds, within=60)


def lease_is_lost(world: World) -> bool:
    return not world.daemon.status()["pools"]["record"]["lease_held"]


# -- killed, frozen, cut


def test_killed_for_longer_than_the_lease(world: World, server: DatabaseServer) -> None:
    """What runs goes on and sees ctx.stopping; what ended is in the spool; then all is recorded once."""
    go = world.folder / "go"
    stopping, waits = world.folder / "stopping", world.running("waits", go)
    told = world.running("stopping", stopping)
    world.enqueue(200)
    server.kill9()
    calm = Calm(world)
    go.touch()
    eventually(stopping.exists, state=world.daemon.tail)  # ctx.stopping, when the lease was lost
    assert lease_is_lost(world)
    eventually(lambda: world.spool()["rows"] >= 2, state=world.daemon.tail)
    lasting(world, LEASE * 1.5)
    calm.check()
    server.start()
    eventually(world.is_back, state=world.daemon.tail)
    world.works()
    assert world.rows.last(told)["reason"] == world.rows.last(waits)["reason"] == "ok"
    assert world.reasons() == {"ok": len(world.jobs)}
    assert world.ran_once()
    assert world.logged_by("store.available")["dispatcher"] == 1
    world.end()


@pytest.mark.slow
def test_frozen_for_longer_than_the_lease(world: World, server: DatabaseServer) -> None:
    """A server that takes connections and answers nothing is away too."""
    waits = world.running("waits", world.folder / "go")
    server.freeze()
    calm = Calm(world)
    (world.folder / "go").touch()
    eventually(lambda: world.spool()["rows"] >= 1, state=world.daemon.tail)
    eventually(lambda: lease_is_lost(world))
    lasting(world, LEASE)
    calm.check()
    server.thaw()
    world.works()
    assert world.rows.last(waits)["reason"] == "ok"
    assert world.ran_once()
    world.end()


def test_connections_cut_again_and_again(world: World, server: DatabaseServer) -> None:
    """Whatever statement or COMMIT is on its way each time: everything ends once."""
    calm = Calm(world)
    for _ in range(15):
        world.enqueue(40)
        for (thread,) in server.sql(
            "SELECT ID FROM information_schema.PROCESSLIST WHERE USER = 'app' AND COMMAND <> 'Daemon'"
        ):
            with contextlib.suppress(pymysql.Error):
                server.sql(f"KILL {thread}")
    world.works()
    calm.check(lines=80, seconds=10)
    assert world.reasons() == {"ok": len(world.jobs)}
    assert world.ran_once()
    world.end()


# -- there, but not willing


def plain(server: DatabaseServer) -> str:
    """The URL of a database whose user may not write while the server is read-only."""
    name = server.new_database()
    server.sql(f"GRANT ALL ON {name}.* TO plain@'%' IDENTIFIED BY 'secret'")
    return f"mysql://plain:secret@127.0.0.1:{server.port}/{name}?unix_socket={server.socket}"


@pytest.mark.slow
def test_read_only(tmp_path: Path, server: DatabaseServer) -> None:
    """It answers every question and takes nothing: away, said once, and over by itself."""
    world = World(tmp_path, plain(server))
    world.daemon.cli("migrate")
    with world.daemon:
        waits = world.running("waits", tmp_path / "go")
        server.sql("SET GLOBAL read_only = 1")
        calm = Calm(world)
        (tmp_path / "go").touch()
        eventually(lambda: world.spool()["rows"] >= 1, state=world.daemon.tail)
        eventually(lambda: lease_is_lost(world), state=world.daemon.tail)
        calm.check()
        server.sql("SET GLOBAL read_only = 0")
        world.works()
        assert world.rows.last(waits)["reason"] == "ok"
        assert world.ran_once()
        world.end()


@pytest.mark.slow
def test_too_many_connections(world: World, server: DatabaseServer) -> None:
    """Others have taken all of them: it waits until there is one for it."""
    waits = world.running("waits", world.folder / "go")
    crowd = Crowd(world.rows)
    server.sql("SET GLOBAL max_connections = 12")
    try:
        eventually(lambda: crowd.push_out(world), every=0.1, state=world.daemon.tail)
        calm = Calm(world)
        (world.folder / "go").touch()
        eventually(lambda: world.spool()["rows"] >= 1, state=world.daemon.tail)
        lasting(world, 1.0)
        calm.check()
    finally:
        crowd.leave()
    world.works()
    assert world.rows.last(waits)["reason"] == "ok"
    world.end()


class Crowd:
    """Clients that take every connection that the server has."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._held = contextlib.ExitStack()
        self._first = self._enter()
        self._ours: set[int] = {self._first.thread_id()}

    def _enter(self) -> Any:
        return self._held.enter_context(self._rows.connection())

    def push_out(self, world: World) -> bool:
        """Cut who is connected and is not of the crowd, and take the place; true when all are out."""
        cursor = self._first.cursor()
        cursor.execute("SELECT ID FROM information_schema.PROCESSLIST WHERE USER = 'app'")
        strangers = {row[0] for row in cursor.fetchall()} - self._ours
        for thread in strangers:
            with contextlib.suppress(pymysql.Error):
                cursor.execute(f"KILL {thread}")
        with contextlib.suppress(pymysql.Error):
            while True:
                self._ours.add(self._enter().thread_id())
        return bool(world.daemon.status()["store"]["code"] == 1040)

    def leave(self) -> None:
        """Give all of them back."""
        self._held.close()


@pytest.mark.slow
def test_a_full_disk(tmp_path: Path) -> None:
    """The table space is full: what ended waits in the spool until there is room again."""
    server = DatabaseServer(disk("24M")).start()
    try:
        world = World(tmp_path, server.url(server.new_database()))
        world.daemon.cli("migrate")
        with world.daemon:
            go = tmp_path / "go"
            bulky = [world.running("bulky", go) for _ in range(2)]
            filler = server.new_database()
            server.sql(f"CREATE TABLE {filler}.filler (text LONGTEXT)")
            for size in (500_000, 50_000, 5_000):
                fill(server, filler, size)
            calm = Calm(world)
            go.touch()
            eventually(lambda: world.spool()["rows"] >= 2, state=world.daemon.tail)
            eventually(lambda: world.daemon.status()["roles"]["ingester"]["mode"] == "away")
            calm.check()
            server.stop()
            server.options = disk("200M")
            server.start()
            world.works()
            assert {world.rows.last(job)["reason"] for job in bulky} == {"ok"}
            assert len(world.rows.last(bulky[0])["payload"]) == BULK
            world.end()
    finally:
        server.remove()


def disk(size: str) -> tuple[str, ...]:
    return (
        *FAST, "--innodb-file-per-table=0", f"--innodb-data-file-path=ibdata1:12M:autoextend:max:{size}"
    )  # fmt: skip


def fill(server: DatabaseServer, database: str, size: int) -> None:
    """Rows of that size until the server takes no more."""
    with pytest.raises(pymysql.Error) as refused:  # noqa: PT012
        while True:
            server.sql(f"INSERT INTO {database}.filler VALUES (REPEAT('x', {size}))")
    assert refused.value.args[0] == 1114


# -- in the way


@pytest.mark.slow
def test_locks_that_another_program_holds(world: World, server: DatabaseServer) -> None:
    """A forgotten transaction on rows that are to be closed: what ended waits in the spool."""
    waits = world.running("waits", world.folder / "go")
    database = urlsplit(world.url).path[1:]
    with server.root(database) as other, other.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT id FROM workerd_jobs FOR UPDATE")
        calm = Calm(world)
        (world.folder / "go").touch()
        eventually(lambda: world.spool()["rows"] >= 1, within=40, state=world.daemon.tail)
        eventually(lambda: world.daemon.status()["roles"]["ingester"]["transaction_retries"] >= 4, within=40)
        calm.check()
        cursor.execute("ROLLBACK")
    world.works()
    assert world.rows.last(waits)["reason"] == "ok"
    assert lease_was_kept(world)
    world.end()


def lease_was_kept(world: World) -> bool:
    return "lease.expired" not in world.daemon.logged()


@pytest.mark.slow
@pytest.mark.parametrize("table", ["workerd_handlers", "workerd_nodes"])
def test_locks_on_what_the_dispatcher_needs(world: World, server: DatabaseServer, table: str) -> None:
    """Claims wait, the log stays short however long it lasts, and the lease is lost only if it is its row."""
    world.works()
    with server.root(urlsplit(world.url).path[1:]) as other, other.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute(f"SELECT * FROM {table} FOR UPDATE")
        calm = Calm(world)
        world.enqueue(20)
        eventually(lambda: locks_lost(world) >= 4, within=60, every=0.1, state=world.daemon.tail)
        calm.check()
        assert lease_was_kept(world) == (table == "workerd_handlers")
        cursor.execute("ROLLBACK")
    world.works()
    assert world.ran_once()
    world.end()


def locks_lost(world: World) -> int:
    errors = world.daemon.status()["store"]["errors"]
    return int(errors.get("1205", 0) + errors.get("1969", 0))


@pytest.mark.slow
def test_deadlocks(world: World, server: DatabaseServer) -> None:
    """Another program that updates the same rows in the opposite order: whole transactions are run again."""
    over = threading.Event()
    database = urlsplit(world.url).path[1:]

    def meddle() -> None:
        with server.root(database) as other, other.cursor() as cursor:
            while not over.is_set():
                with contextlib.suppress(pymysql.Error):
                    cursor.execute("BEGIN")
                    cursor.execute(
                        "UPDATE workerd_jobs SET priority = priority WHERE status IN ('inprogress', 'new')"
                        " ORDER BY id DESC LIMIT 50"
                    )
                    cursor.execute("SELECT id FROM workerd_jobs ORDER BY attempt DESC LIMIT 50 FOR UPDATE")
                    cursor.execute("COMMIT")

    meddlers = [threading.Thread(target=meddle) for _ in range(2)]
    for meddler in meddlers:
        meddler.start()
    try:
        for _ in range(5):
            world.enqueue(100)
        eventually(lambda: world.rows.ended(*world.jobs), within=60, every=0.2, state=world.daemon.tail)
    finally:
        over.set()
        for meddler in meddlers:
            meddler.join()
    assert world.reasons() == {"ok": 500}
    assert world.ran_once()
    world.end()


@pytest.mark.slow
def test_a_statement_that_hangs(world: World, server: DatabaseServer) -> None:
    """A table lock that nobody gives back: the statement ends by its limit, no role is killed for it."""
    database = urlsplit(world.url).path[1:]
    waits = world.running("waits", world.folder / "go")
    roles = world.roles()
    with server.root(database) as other, other.cursor() as cursor:
        cursor.execute("LOCK TABLES workerd_jobs WRITE, workerd_nodes WRITE")
        calm = Calm(world)
        (world.folder / "go").touch()
        eventually(lambda: world.spool()["rows"] >= 1, within=40, state=world.daemon.tail)
        eventually(lambda: lease_is_lost(world), state=world.daemon.tail)
        calm.check()
        cursor.execute("UNLOCK TABLES")
    world.works()
    assert world.rows.last(waits)["reason"] == "ok"
    assert all(process.is_running() for process in roles.values())
    world.end()


# -- the embedded store


@pytest.mark.slow
def test_sqlite_locked_by_a_transaction_that_is_left_open(tmp_path: Path) -> None:
    """It is said what to do; when the transaction ends, everything goes on."""
    world = World(tmp_path, f"sqlite:///{tmp_path}/store.db")
    with world.daemon:
        waits = world.running("waits", tmp_path / "go")
        other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        calm = Calm(world)
        (tmp_path / "go").touch()
        eventually(lambda: world.spool()["rows"] >= 1, within=40, state=world.daemon.tail)
        eventually(lambda: lease_is_lost(world), state=world.daemon.tail)
        assert "another program keeps a transaction open" in world.daemon.logged()
        calm.check(seconds=3.0)  # it asks for the lock every millisecond or two
        other.execute("ROLLBACK")
        other.close()
        world.works()
        assert world.rows.last(waits)["reason"] == "ok"
        assert world.ran_once()
        world.end()


# -- nowhere to put it


@pytest.mark.slow
def test_a_full_spool_is_back_pressure(tmp_path: Path, server: DatabaseServer) -> None:
    """What does not fit is not acknowledged but kept by its pool; nothing is lost, and it is said."""
    world = World(tmp_path, server.url(server.new_database()), '[ingester]\nspool = "1MiB"\n')
    world.daemon.cli("migrate")
    with world.daemon:
        go = tmp_path / "go"
        bulky = [world.running("bulky", go) for _ in range(6)]
        server.kill9()
        calm = Calm(world)
        go.touch()
        eventually(lambda: world.spool()["trouble"], within=40, state=world.daemon.tail)
        eventually(lambda: unacknowledged(world) >= 3, state=world.daemon.tail)
        assert world.spool()["bytes"] <= 1 << 20
        lasting(world, 1.0)
        calm.check()
        assert "is full" in world.daemon.cli("status", check=False).stdout
        server.start()
        world.works()
        assert {world.rows.last(job)["reason"] for job in bulky} == {"ok"}
        world.end()


def unacknowledged(world: World) -> int:
    return int(world.daemon.status()["pools"]["bulky"]["unacknowledged"])


# -- and the end


def test_a_drain_while_the_store_is_away(world: World, server: DatabaseServer) -> None:
    """It ends in time, every outcome in the spool; the next start replays them before it rescues."""
    go = world.folder / "go"
    waits = world.running("waits", go)
    server.kill9()
    eventually(world.is_away)
    go.touch()
    assert world.daemon.stop(within=30) == 0
    assert list((world.daemon.folder / "state" / "spool").glob("*.db"))
    server.start()
    assert world.rows.last(waits)["status"] == "inprogress"
    world.daemon.start()
    world.works()
    assert [row["reason"] for row in world.rows.attempts(waits)] == ["ok"]
    assert world.rows.last(waits)["losses"] == 0
    assert not list((world.daemon.folder / "state" / "spool").glob("*.db"))
    world.end()


def test_what_a_server_lost_of_its_own_is_settled(tmp_path: Path) -> None:
    """A server that forgets the last second when it dies: what it forgot runs again, and nothing hangs."""
    server = DatabaseServer(DURABLE).start()
    try:
        world = World(tmp_path, server.url(server.new_database()))
        world.daemon.cli("migrate")
        with world.daemon:
            for _ in range(3):
                # Only from here on, so that it does not forget the tables too.
                server.sql("SET GLOBAL innodb_flush_log_at_trx_commit = 0")
                world.enqueue(300)
                server.kill9()
                server.start()
                eventually(world.is_back, state=world.daemon.tail)
            accepted = {row["id"] for row in world.rows.sql("SELECT id FROM workerd_jobs")}
            world.jobs = [job for job in world.jobs if job in accepted]
            world.works()
            world.end()
    finally:
        server.remove()
