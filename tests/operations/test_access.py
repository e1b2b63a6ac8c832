"""Opened stores are checked, and connections are pooled."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from workerd.config.model import Config, StoreConfig
from workerd.errors import StoreAway, WrongVersion
from workerd.operations.access import ConnectionPool, Store, join, migrate, open_checked


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


def test_a_failed_connection_frees_its_place() -> None:
    """Otherwise a pool would be used up by an unreachable store."""

    def make() -> Store:
        raise StoreAway("unreachable")

    pool = ConnectionPool(make, 1, 0.05)
    for _ in range(2):
        with pytest.raises(StoreAway, match="unreachable"), pool.connection():
            pass


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
