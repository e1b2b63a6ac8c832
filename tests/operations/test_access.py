"""Opened stores are checked, and connections are pooled."""

from __future__ import annotations

import itertools
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.interrupting import interrupt, interrupts
from tests.support.servers import DatabaseServer
from workerd.config.model import Config, StoreConfig
from workerd.errors import StoreAway, WrongVersion
from workerd.job import new_id
from workerd.operations.access import ConnectionPool, Store, join, migrate, open_checked
from workerd.runtime.child import fork


@pytest.fixture
def config(store_url: str) -> Config:
    """A configuration with an empty store."""
    return Config(store=StoreConfig(url=store_url))


def test_a_store_is_opened_only_at_this_version(config: Config) -> None:
    """`migrate` brings it there, once."""
    with pytest.raises(WrongVersion, match="migrate"):
        open_checked(config)
    assert migrate(config)
    assert migrate(config) == []
    open_checked(config).close()


def test_a_pool_reuses_connections_up_to_its_size(config: Config) -> None:
    """When all are in use, the error names the setting to raise."""
    migrate(config)
    made: list[Store] = []

    def make() -> Store:
        made.append(open_checked(config))
        return made[-1]

    with closing(ConnectionPool(make, 1, 0.05)) as pool:
        with pool.connection(), pytest.raises(StoreAway, match="raise `connections`"), pool.connection():
            pass
        with pool.connection() as store:
            assert store is made[0]
    assert len(made) == 1


def test_a_connection_is_looked_at_before_each_use(mysql_server: DatabaseServer) -> None:
    """One that was killed while it lay in the pool is replaced, also if it was looked at there before."""
    name = mysql_server.new_database()
    config = Config(store=StoreConfig(url=mysql_server.url(name)))
    migrate(config)
    with closing(ConnectionPool(lambda: open_checked(config), 1, 1.0)) as pool:
        for looks in (0, 1, 2):
            with pool.connection() as store:
                killed = store.read(lambda tx: tx.query("SELECT CONNECTION_ID()"))[0][0]
            for _ in range(looks):
                pool.refresh()
            mysql_server.sql(f"KILL {killed}")
            gone = f"SELECT COUNT(*) FROM information_schema.processlist WHERE id = {killed}"
            eventually(lambda gone=gone: mysql_server.sql(gone)[0][0] == 0)
            with pool.connection() as store:
                assert store.read(lambda tx: tx.query("SELECT CONNECTION_ID()"))[0][0] != killed
    mysql_server.drop_database(name)


def test_a_failed_connection_frees_its_place() -> None:
    """Otherwise a pool would be used up by an unreachable store."""

    def make() -> Store:
        raise StoreAway("unreachable")

    pool = ConnectionPool(make, 1, 0.05)
    for _ in range(2):
        with pytest.raises(StoreAway, match="unreachable"), pool.connection():
            pass


@interrupts
def test_an_exception_at_any_place_loses_no_connection(config: Config, opened: Callable[..., Store]) -> None:
    """Nor leaves one in a transaction; the next call gets it, also while the exception is handled."""
    migrate(config)
    other = opened(config.store.url)
    with closing(ConnectionPool(lambda: open_checked(config), 1, 1.0)) as pool:
        _write(pool)
        for place in itertools.count(1):
            if not interrupt(lambda: _write(pool), place, lambda: _write(pool)):
                break
            other.run(lambda tx: tx.execute("UPDATE workerd_jobs SET priority = priority"))
    assert place > 30


def test_threads_take_turns(config: Config) -> None:
    """None waits for ever beside others that use the only connection again and again."""
    migrate(config)
    calls = dict.fromkeys(range(3), 0)
    failed: list[StoreAway] = []

    def use(number: int) -> None:
        while min(calls.values()) < 20 and not failed:
            try:
                _write(pool)
            except StoreAway as error:
                failed.append(error)
            calls[number] += 1

    with closing(ConnectionPool(lambda: open_checked(config), 1, 2.0)) as pool:
        threads = [threading.Thread(target=use, args=(number,)) for number in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed


HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


def _store(tmp_path: Path) -> Config:
    config = Config(store=StoreConfig(url=f"sqlite:///{tmp_path}/store.db"))
    migrate(config)
    return config


def _write(pool: ConnectionPool) -> None:
    with pool.connection() as store:
        store.run(
            lambda tx: tx.execute("INSERT INTO workerd_jobs (id, handler) VALUES (%s, 'x')", (new_id(),))
        )


def _in_child(main: Callable[[], None]) -> int:
    child = fork(lambda: main() or 0)
    eventually(lambda: child.reap() is not None)
    child.close()
    return child.status or 0


def test_a_forked_child_keeps_to_the_locks_of_others(tmp_path: Path) -> None:
    """SQLite keeps locks by process: with its parent's connections a child would write through them."""
    config = _store(tmp_path)

    def blocked() -> None:
        with pytest.raises(StoreAway, match="keeps a transaction open"):
            _write(pool)

    with closing(ConnectionPool(lambda: open_checked(config, 0.2), 2, 1.0)) as pool:
        _write(pool)
        argv = [sys.executable, "-c", HOLDER, str(tmp_path / "store.db")]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            assert _in_child(blocked) == 0
        assert _in_child(lambda: _write(pool)) == 0
        _write(pool)


def test_a_fork_waits_for_connections_in_use(tmp_path: Path) -> None:
    """A child would find the lock of another thread held for ever."""
    config = _store(tmp_path)
    with closing(ConnectionPool(lambda: open_checked(config, 2.0), 2, 2.0)) as pool:
        _write(pool)
        end = threading.Event()
        writers = [threading.Thread(target=_write_until, args=(pool, end)) for _ in range(2)]
        for writer in writers:
            writer.start()
        try:
            assert [_in_child(lambda: _write(pool)) for _ in range(20)] == [0] * 20
        finally:
            end.set()
            for writer in writers:
                writer.join()


def test_a_child_forked_in_the_middle_of_a_transaction_uses_nothing(tmp_path: Path) -> None:
    """The connection of its parent cannot be closed, and would lead the child's past the locks."""
    config = _store(tmp_path)

    def refused() -> None:
        with pytest.raises(StoreAway, match="fork between two calls"):
            _write(pool)
        assert _in_child(lambda: None) == 0

    with closing(ConnectionPool(lambda: open_checked(config, 1.0), 2, 0.1)) as pool:
        with pool.connection() as store:
            assert store.run(lambda tx: _in_child(refused)) == 0
        _write(pool)
        assert _in_child(lambda: _write(pool)) == 0


def _write_until(pool: ConnectionPool, end: threading.Event) -> None:
    while not end.is_set():
        _write(pool)


def test_join_reads_inside_the_callers_transaction(tmp_path: Path) -> None:
    """It neither opens nor ends a transaction."""
    with closing(sqlite3.connect(tmp_path / "db")) as connection:
        connection.execute("CREATE TABLE t (a)")
        tx = join(connection)
        assert tx.execute("INSERT INTO t VALUES (%s)", ["x"]) == 1
        assert tx.query("SELECT a FROM t") == [(b"x",)]
        connection.rollback()
        assert tx.query("SELECT a FROM t") == []
    with pytest.raises(TypeError, match="expected a"):
        join(object())
