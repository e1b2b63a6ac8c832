"""Transactions: single statements, lost locks, and what surrounds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.servers import DatabaseServer
from tests.support.storing import enqueue, job, sql, value
from workerd.clock import SECOND
from workerd.errors import CommitUnknown, StoreAway, StoreBusy, StoreRefused
from workerd.store import jobs
from workerd.store.base import Store, Tx

Opened = Callable[..., Store]
NEW = jobs.NewJob(handler="h", vars=b'{"a": 1}', meta=b"[2]", priority=3, deadline_ms=4, max_attempts=5)


def insert(store: Store, new: jobs.NewJob = NEW) -> bytes:
    return store.alone(lambda tx: jobs.insert_alone(tx, new)).id


@pytest.fixture
def store(store_url: str, opened: Opened) -> Store:
    store = opened(store_url)
    store.migrate()
    return store


def test_it_is_there_for_others_when_the_call_returns(store: Store, store_url: str, opened: Opened) -> None:
    """With everything that it was given, due at the moment of its creation."""
    row = job(opened(store_url), insert(store)).attempts[-1]
    assert (row.handler, row.status, row.attempt, row.vars, row.meta) == ("h", "new", 1, NEW.vars, NEW.meta)
    assert (row.priority, row.deadline_ms, row.max_attempts) == (3, 4, 5)
    assert abs(row.run_at - row.created_at) < SECOND // 100


def test_a_transaction_after_it_is_still_atomic(store: Store) -> None:
    """A later failure rolls back earlier statements too."""
    insert(store)

    def breaking(tx: Tx) -> None:
        tx.execute("UPDATE workerd_jobs SET priority = 9")
        raise KeyError

    with pytest.raises(KeyError):
        store.run(breaking)
    assert value(store, "SELECT priority FROM workerd_jobs") == 3
    enqueue(store, "h")
    insert(store)
    assert value(store, "SELECT COUNT(*) FROM workerd_jobs") == 3


def test_a_single_read_sees_writes_of_others(store: Store, store_url: str, opened: Opened) -> None:
    """Each read gets a new snapshot, whatever came before it."""
    other = opened(store_url)
    for count in range(3):
        rows = store.alone(lambda tx: tx.query("SELECT COUNT(*) FROM workerd_jobs"), write=False)
        assert rows == [(count,)]
        insert(other)


def test_a_row_that_cannot_be_stored_is_refused(store: Store) -> None:
    """And the next one goes in."""
    with pytest.raises(StoreRefused):
        insert(store, jobs.NewJob(handler="h", vars=b"\xff"))
    insert(store)


def test_a_server_that_died_before_the_statement(own_server: DatabaseServer, opened: Opened) -> None:
    """No statement was sent: the store is away and certainly nothing was stored."""
    store = opened(own_server.url(own_server.new_database()))
    store.migrate()
    insert(store)
    own_server.kill9()
    with pytest.raises(StoreAway) as caught:
        insert(store)
    assert not isinstance(caught.value, CommitUnknown)
    own_server.start()
    insert(store)
    assert value(store, "SELECT COUNT(*) FROM workerd_jobs") == 2


def test_a_server_that_does_not_answer(own_server: DatabaseServer, opened: Opened) -> None:
    """A statement that writes has its commit in it: it may be there or not. A look leaves nothing open."""
    store = opened(own_server.url(own_server.new_database()), timeout=0.5)
    store.migrate()
    insert(store)
    for write in (True, False):
        own_server.freeze()
        try:
            with pytest.raises(StoreAway) as caught:
                store.alone(lambda tx: tx.execute("UPDATE workerd_jobs SET priority = 7"), write=write)
        finally:
            own_server.thaw()
        assert isinstance(caught.value, CommitUnknown) == write
    insert(store)


def test_rows_that_another_holds(mysql_url: str, opened: Opened) -> None:
    """A lock that was not had is certain: the statement alone is busy, not unknown."""
    store, other = opened(mysql_url), opened(mysql_url)
    store.migrate()
    made = insert(store)

    def holding(tx: Any) -> None:
        tx.execute("UPDATE workerd_jobs SET priority = 1 WHERE id = %s", (made,))
        with pytest.raises(StoreBusy) as caught:
            other.alone(lambda alone: alone.execute("UPDATE workerd_jobs SET priority = 2"))
        assert not isinstance(caught.value, CommitUnknown)

    store.run(holding)
    sql(other, "UPDATE workerd_jobs SET priority = 2 WHERE id = %s", made)


def test_a_table_that_is_missing_is_the_store_s_state(mysql_url: str, opened: Opened) -> None:
    """The server has answered: nothing is unknown."""
    store = opened(mysql_url)
    with pytest.raises(StoreAway) as caught:
        insert(store)
    assert not isinstance(caught.value, CommitUnknown)


def test_a_row_that_another_holds(mysql: Store, mysql_url: str, opened: Opened) -> None:
    """1205 to the end: busy, with the server's code; the connection and its next transaction are good."""
    made = enqueue(mysql, "h")
    other = opened(mysql_url)
    link = value(other, "SELECT CONNECTION_ID()")

    def holding(tx: Any) -> None:
        tx.execute("UPDATE workerd_jobs SET priority = 1 WHERE id = %s", (made,))
        with pytest.raises(StoreBusy) as caught:
            sql(other, "UPDATE workerd_jobs SET priority = 2 WHERE id = %s", made)
        assert caught.value.code == 1205

    mysql.run(holding)
    assert value(other, "SELECT CONNECTION_ID()") == link
    sql(other, "UPDATE workerd_jobs SET priority = 2 WHERE id = %s", made)


def test_a_statement_that_the_server_stopped(mysql_url: str, opened: Opened) -> None:
    """Its time limit is reported by a server that answers."""
    store = opened(mysql_url, timeout=1.0)
    endless = "SELECT COUNT(*) FROM " + ", ".join(f"information_schema.columns AS c{n}" for n in range(4))
    link = value(store, "SELECT CONNECTION_ID()")
    with pytest.raises(StoreBusy):
        value(store, endless)
    assert value(store, "SELECT CONNECTION_ID()") == link
