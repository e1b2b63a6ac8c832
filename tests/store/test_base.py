"""Transactions: single statements, lost locks, and what surrounds them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, cast

import pytest

from tests.support.interrupting import interrupt, interrupts
from tests.support.servers import DatabaseServer
from tests.support.silent_commit import SilentCommit
from tests.support.storing import NODE, claims, enqueue, job, sql, value
from workerd.clock import SECOND
from workerd.errors import CommitUnknown, StoreAway, StoreBusy, StoreRefused
from workerd.store import base, jobs, servers
from workerd.store.base import Store, Tx
from workerd.store.polls import poll

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


@pytest.fixture
def early(store_url: str, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store whose server shows others what it commits before it answers; SQLite never does."""
    monkeypatch.setattr(servers, "shows_early", lambda *_: True)
    store = opened(store_url)
    store.migrate()
    return store


def test_a_caller_is_told_when_others_may_see_it(early: Store) -> None:
    """While the server answers."""
    sent: list[bool] = []
    made = early.alone(lambda tx: jobs.insert_alone(tx, NEW, lambda: sent.append(True)))
    assert job(early, made.id).attempts
    assert sent == ([] if early.dialect.name == "sqlite" else [True])


def test_a_caller_who_fails_meanwhile_leaves_nothing_behind(early: Store) -> None:
    """The answer that nobody reads any more is not taken for that of the next statement."""
    if early.dialect.name == "sqlite":
        return  # which calls nobody meanwhile

    def fail() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        early.alone(lambda tx: jobs.insert_alone(tx, NEW, fail))
    known = insert(early)
    assert all(job(early, known).attempts for _ in range(5))


@interrupts
def test_a_call_that_is_interrupted_leaves_no_answer_behind(store: Store) -> None:
    """Wherever that is: a later call gets its own answer, and what it has inserted is there."""
    known = insert(store)
    for place in itertools.count(1):
        if not interrupt(lambda: insert(store), place):
            break
        assert job(store, known).attempts[-1].vars == NEW.vars, place
        assert job(store, insert(store)).attempts, place
    assert place > 20


@interrupts
def test_a_transaction_that_is_interrupted_leaves_no_lock_behind(
    store: Store, store_url: str, opened: Opened
) -> None:
    """Wherever that is; the next use of the store at the latest ends it, without a part of its work."""
    other = opened(store_url)
    other.read(lambda tx: tx.now)

    def twice(tx: Tx) -> None:
        tx.execute("UPDATE workerd_jobs SET priority = priority + 1")
        tx.execute("UPDATE workerd_jobs SET priority = priority - 1")

    insert(store)
    for place in itertools.count(1):
        if not interrupt(lambda: store.run(twice), place):
            break
        store.settle()
        other.run(lambda tx: tx.execute("UPDATE workerd_jobs SET created_at = created_at"))
        assert value(other, "SELECT MIN(priority) = 3 AND MAX(priority) = 3 FROM workerd_jobs"), place
    assert place > 20


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


@pytest.mark.slow
def test_a_server_that_does_not_answer(own_server: DatabaseServer, opened: Opened) -> None:
    """A statement that writes has its commit in it: it may be there or not. A look leaves nothing open."""
    store = opened(own_server.url(own_server.new_database()), timeout=1.5)
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


@pytest.mark.slow
def test_a_statement_that_the_server_stopped(mysql_url: str, opened: Opened) -> None:
    """Its time limit is reported by a server that answers."""
    store = opened(mysql_url, timeout=4.0)
    endless = "SELECT COUNT(*) FROM " + ", ".join(f"information_schema.columns AS c{n}" for n in range(4))
    link = value(store, "SELECT CONNECTION_ID()")
    with pytest.raises(StoreBusy):
        value(store, endless)
    assert value(store, "SELECT CONNECTION_ID()") == link


# -- several statements in one round trip


def trips(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the store's connection sends from now on, a write each."""
    store.read(lambda tx: tx.now)
    sent: list[bytes] = []
    link: Any = cast(Any, store._session)._link
    write = link._write_bytes

    def noting(data: bytes) -> None:
        sent.append(data)
        write(data)

    monkeypatch.setattr(link, "_write_bytes", noting)
    return sent


def test_a_claim_takes_two_round_trips_and_a_poll_one(mysql: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each statement is a command of its own; and the claim is there for others when the call returns."""
    enqueue(mysql, "h")
    assert len(claims(mysql, "h")) == 1  # which inserts the handler's row
    made = enqueue(mysql, "h")
    sent = trips(mysql, monkeypatch)
    assert [claim.id for claim in claims(mysql, "h")] == [made]
    assert [data.count(b"\0\x03") for data in sent] == [2, 2]
    assert sent[1].endswith(b"\x03COMMIT")
    del sent[:]
    mysql.alone(lambda tx: poll(tx, NODE.id, ["h"]), write=False)
    assert [data.count(b"\0\x03") for data in sent] == [2]
    assert mysql.read(lambda tx: tx.one("SELECT status FROM workerd_jobs WHERE id = %s", (made,))) == (
        b"inprogress",
    )


def test_a_server_that_takes_one_statement_at_a_time(mysql: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, with a round trip for each."""
    monkeypatch.setattr(cast(Any, mysql._connected()), "can_pipeline", False)
    monkeypatch.setattr(base, "SERVER_CHECK_AGE_S", 1e9)
    enqueue(mysql, "h")
    sent = trips(mysql, monkeypatch)
    assert len(claims(mysql, "h")) == 1
    assert {data.count(b"\0\x03") for data in sent} == {1}
    assert mysql.alone(lambda tx: poll(tx, NODE.id, []), write=False).cancels == []


def test_a_parameter_cannot_begin_a_statement(store: Store) -> None:
    """Whatever it has in it."""
    evil = "x'; DELETE FROM workerd_jobs; COMMIT -- \0\x03"
    made = enqueue(store, "h")

    def work(tx: Tx) -> None:
        asked = ("SELECT CAST(%s AS CHAR)" if store.dialect.name == "mysql" else "SELECT %s", (evil,))
        assert tx.queries(asked, ("SELECT id FROM workerd_jobs", ())) == [[(evil.encode(),)], [(made,)]]
        tx.execute_last("UPDATE workerd_jobs SET note = %s", (evil,), count=1)

    store.run(work)
    assert store.read(lambda tx: tx.one("SELECT note FROM workerd_jobs")) == (evil.encode(),)


@pytest.mark.parametrize("value", ["x" * 300, "\ud800"], ids=["too long", "not Unicode"])
def test_a_last_statement_that_is_refused_leaves_nothing(store: Store, value: str) -> None:
    """Its error is that of the statement; the next transaction is good."""
    made = enqueue(store, "h")
    with pytest.raises(StoreRefused) as caught:
        store.run(lambda tx: tx.execute_last("UPDATE workerd_jobs SET handler = %s", (value,), count=1))
    assert not isinstance(caught.value, CommitUnknown)
    assert [claim.id for claim in claims(store, "h")] == [made]


def test_a_last_statement_that_loses_its_locks_is_run_again(
    mysql: Store, mysql_url: str, opened: Opened
) -> None:
    """The COMMIT behind it commits nothing, although it was sent with it."""
    made = enqueue(mysql, "h")
    other = opened(mysql_url)
    tries: list[int] = []

    def work(tx: Tx) -> None:
        tries.append(1)
        tx.execute_last("UPDATE workerd_jobs SET priority = 7 WHERE id = %s", (made,), count=1)

    def holding(tx: Tx) -> None:
        tx.execute("UPDATE workerd_jobs SET note = 'held' WHERE id = %s", (made,))
        with pytest.raises(StoreBusy) as caught:
            other.run(work, retry_for_s=0.1)
        assert not isinstance(caught.value, CommitUnknown)

    mysql.run(holding)
    assert tries
    assert value(mysql, "SELECT priority FROM workerd_jobs") == 0
    other.run(work)
    assert value(mysql, "SELECT priority FROM workerd_jobs") == 7


def test_a_last_statement_among_others_is_run_before_them(store: Store) -> None:
    """It waits for the COMMIT only if none else writes: a COMMIT sent with it must find nothing else."""
    made = enqueue(store, "h")

    def work(tx: Tx) -> None:
        tx.execute_last("UPDATE workerd_jobs SET priority = 1", count=1)
        tx.execute("UPDATE workerd_jobs SET priority = priority + 1")
        tx.execute_last("UPDATE workerd_jobs SET priority = priority * 10", count=1)
        assert tx.one("SELECT priority FROM workerd_jobs WHERE id = %s", (made,)) == (20,)

    store.run(work)


def test_what_is_sent_with_a_last_statement_that_fails_is_undone(store: Store) -> None:
    """Both may be sent in one round trip; the error is that of the first."""
    made = enqueue(store, "h")

    def work(tx: Tx, count: int, text: str) -> int:
        tx.execute_last("UPDATE workerd_jobs SET handler = %s", (text,), count=count)
        return tx.execute(
            "INSERT INTO workerd_slots (limit_name, n, id, attempt) VALUES ('l', 0, %s, 1)", (made,)
        )

    with pytest.raises(StoreRefused):
        store.run(lambda tx: work(tx, 1, "x" * 300))
    with pytest.raises(StoreBusy):
        store.run(lambda tx: work(tx, 2, "changed"))
    assert store.read(lambda tx: tx.query("SELECT n FROM workerd_slots")) == []
    assert [claim.id for claim in claims(store, "h")] == [made]
    assert store.run(lambda tx: work(tx, 1, "changed")) == 1
    assert store.read(lambda tx: tx.query("SELECT n FROM workerd_slots")) == [(0,)]


def test_a_commit_with_its_statement_that_is_not_answered_is_unknown(
    mysql_server: DatabaseServer, opened: Opened
) -> None:
    """Both were sent: the change may be there, and here it is."""
    url = mysql_server.url(mysql_server.new_database(), tcp=True)
    store = opened(url)
    store.migrate()
    made = enqueue(store, "h")
    proxy = SilentCommit(url)
    try:
        behind = opened(proxy.url, timeout=2.0)
        behind.read(lambda tx: tx.now)
        proxy.armed = True
        with pytest.raises(CommitUnknown):
            behind.run(lambda tx: tx.execute_last("UPDATE workerd_jobs SET priority = 7", count=1))
        assert store.read(lambda tx: tx.query("SELECT id, priority FROM workerd_jobs")) == [(made, 7)]
    finally:
        proxy.close()
