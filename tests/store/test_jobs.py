"""Jobs into the store: once by id, once by unique key, all or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest

from tests.support.storing import claims, close, enqueue, job, outcome, sql, status, value
from workerd import clock
from workerd.errors import StoreRefused
from workerd.job import Status, new_id
from workerd.store import jobs
from workerd.store.base import Store
from workerd.store.jobs import Inserted, NewJob
from workerd.store.mysql_results import LeanResult
from workerd.store.mysql_session import MySQLSession
from workerd.store.patient_connection import PatientConnection


def insert(store: Store, *new: NewJob) -> list[Inserted]:
    return store.run(lambda tx: jobs.insert(tx, new))


def test_jobs_are_returned_in_order(store: Store) -> None:
    """A batch larger than one statement is inserted completely and answered in its order."""
    ids = [new_id() for _ in range(1100)]
    assert insert(store, *(NewJob(handler="h", id=i) for i in ids)) == [Inserted(i, True) for i in ids]
    assert value(store, "SELECT COUNT(*) FROM workerd_jobs WHERE status = 'new'") == 1100


def test_later_is_scheduled(store: Store) -> None:
    """A delay or a time in the future makes the row `scheduled`, a time in the past leaves it `new`."""
    now = store.read(lambda tx: tx.now)
    delayed = enqueue(store, "h", delay=60 * clock.SECOND)
    later = enqueue(store, "h", run_at=now + 3600 * clock.SECOND)
    past = enqueue(store, "h", run_at=now - 3600 * clock.SECOND)
    assert [status(store, j) for j in (delayed, later, past)] == ["scheduled", "scheduled", "new"]
    run_at = job(store, delayed).row.run_at
    assert run_at is not None
    assert run_at >= now + 60 * clock.SECOND


def test_an_id_is_inserted_once(store: Store) -> None:
    """A repeat is answered with the same id and changes nothing."""
    same = new_id()
    assert insert(store, NewJob(handler="h", id=same, vars=b"1")) == [Inserted(same, True)]
    other = new_id()
    again = insert(store, NewJob(handler="x", id=same, vars=b"2"), NewJob(handler="h", id=other))
    assert again == [Inserted(same, False), Inserted(other, True)]
    assert job(store, same).row.vars == b"1"


def test_an_id_that_one_transaction_gives_twice_is_created_once(store: Store) -> None:
    """Whether in one call or in two."""
    same, other = NewJob(handler="h", id=new_id()), NewJob(handler="h", id=new_id())
    first, second = store.run(lambda tx: (jobs.insert(tx, [same, same, other]), jobs.insert(tx, [same])))
    assert [one.created for one in first] == [True, False, True]
    assert second == [Inserted(first[0].id, False)]


def test_a_unique_key_has_one_live_job(store: Store) -> None:
    """A later insert gets the id of the live job, waiting or running; after its end the key is free."""
    (first,) = insert(store, NewJob(handler="h", unique_key="k"))
    assert insert(store, NewJob(handler="h", unique_key="k")) == [Inserted(first.id, False)]
    assert insert(store, NewJob(handler="other", unique_key="k"))[0].created
    (claim,) = claims(store, "h")
    assert insert(store, NewJob(handler="h", unique_key="k")) == [Inserted(first.id, False)]
    assert close(store, [outcome(claim)]) == 1
    assert insert(store, NewJob(handler="h", unique_key="k"))[0].created


def test_a_bulk_with_one_key_twice(store: Store) -> None:
    """The second of the same batch gets the first one's id."""
    first, second, third = insert(
        store, NewJob(handler="h", unique_key="k"), NewJob(handler="h", unique_key="k"), NewJob(handler="h")
    )
    assert (first.created, second, third.created) == (True, Inserted(first.id, False), True)
    assert value(store, "SELECT COUNT(*) FROM workerd_jobs") == 2


def test_keys_are_exact(store: Store) -> None:
    """Case, accents and emoji make different keys."""
    keys = ["k", "K", "ḱ", "ß", "ss", "😀", "😁", "k'; --", 'k"', "k\\"]
    assert all(done.created for done in insert(store, *(NewJob(handler="h", unique_key=k) for k in keys)))
    assert not any(done.created for done in insert(store, *(NewJob(handler="h", unique_key=k) for k in keys)))


def test_a_key_that_another_program_ended_with_a_space(store: Store) -> None:
    """Where the engine sees no difference its job is the holder; a job that is said to be created exists."""
    holder = new_id()
    sql(store, "INSERT INTO workerd_jobs (id, handler, unique_key) VALUES (%s, 'h', 'k ')", holder)
    (done,) = insert(store, NewJob(handler="h", unique_key="k"))
    assert status(store, done.id) == "new"
    assert done.created == (store.dialect.name == "sqlite")
    assert (done.id == holder) != done.created


def test_a_handler_that_another_program_ended_with_a_space(store: Store) -> None:
    """Its job runs where the engine sees no difference, and waits for a handler of that name elsewhere."""
    sql(store, "INSERT INTO workerd_jobs (id, handler) VALUES (%s, 'h ')", new_id())
    found = claims(store, "h")
    assert [claim.handler for claim in found] == ([] if store.dialect.name == "sqlite" else ["h"])
    assert close(store, [outcome(claim) for claim in found]) == len(found)


@pytest.mark.parametrize(
    "bad",
    [
        NewJob(handler="h", vars=b"\xff"),
        NewJob(handler="h\ud800"),
        NewJob(handler="h", id=b"short"),
        NewJob(handler="x" * 192),
        NewJob(handler="h", priority=1 << 40),
        NewJob(handler="h", deadline_ms=-1),
    ],
    ids=["vars", "surrogate", "id", "long name", "priority", "deadline"],
)
def test_oversized_values_refuse_the_whole_batch(store: Store, bad: NewJob) -> None:
    """One invalid job, and none of its batch is inserted."""
    if store.dialect.name == "sqlite" and bad.priority:
        pytest.skip("SQLite's integers are longer")
    with pytest.raises(StoreRefused):
        insert(store, NewJob(handler="h"), bad)
    assert value(store, "SELECT COUNT(*) FROM workerd_jobs") == 0


def test_two_bulks_with_the_same_keys_at_once(
    store: Store, store_url: str, opened: Callable[..., Store]
) -> None:
    """Two programs that insert the same keys in opposite order end up with one job for each key."""
    import threading

    keys = [f"k{n}" for n in range(40)]
    results: list[list[Inserted]] = []
    together = threading.Barrier(2)

    def work(own: Store, order: list[str]) -> None:
        together.wait()
        results.append(
            sorted(own.run(lambda tx: jobs.insert(tx, [NewJob(handler="h", unique_key=k) for k in order])))
        )

    threads = [threading.Thread(target=work, args=(opened(store_url), order)) for order in (keys, keys[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(store, "SELECT COUNT(*) FROM workerd_jobs") == 40
    one, two = results
    assert {d.id for d in one} == {d.id for d in two}
    assert sum(d.created for d in one + two) == 40


def test_long_vars_in_bulk(store: Store) -> None:
    """A bulk whose text is longer than one statement may be is split."""
    text = b'"' + b"x'\\" * 300_000 + b'"'
    made = insert(store, *(NewJob(handler="h", vars=text) for _ in range(8)))
    assert {job(store, done.id).row.vars for done in made} == {text}
    assert {job(store, done.id).row.status for done in made} == {Status.NEW}


QUOTES = b'"' + rb"'\\" * 700 + b'"'
"""JSON that is half as long again in a statement."""


@pytest.mark.parametrize(
    "new",
    [
        NewJob(handler="h", vars=b'"' + b"x" * 1500 + b'"'),
        NewJob(handler="h", vars=QUOTES, meta=QUOTES),
        NewJob(handler="h" * 190, group_key="'" * 190, name="ß" * 190),
    ],
    ids=["plain", "quotes", "names"],
)
def test_an_insert_is_a_quarter_of_what_the_server_takes(
    mysql: Store, monkeypatch: pytest.MonkeyPatch, new: NewJob
) -> None:
    """As it is sent, with what is escaped; and not much less."""
    sent: list[int] = []
    ask = PatientConnection.ask

    def note(self: PatientConnection, statement: bytes, *on_sent: Callable[[], None]) -> LeanResult:
        sent.append(len(statement))
        return ask(self, statement, *on_sent)

    max_packet = 256 * 1024
    mysql.read(lambda tx: tx.now)
    cast(MySQLSession, mysql._session).max_packet = max_packet
    monkeypatch.setattr(PatientConnection, "ask", note)
    assert len(insert(mysql, *[new] * 150)) == 150
    assert value(mysql, "SELECT COUNT(*) FROM workerd_jobs") == 150
    inserts = [size for size in sent if size > 10_000]
    assert max(inserts) <= max_packet // 4
    assert max(inserts) > max_packet // 12


def test_a_job_that_is_too_large_by_itself_is_refused(mysql: Store) -> None:
    """Beside others, too; one of more than a quarter is sent alone."""
    mysql.read(lambda tx: tx.now)
    cast(MySQLSession, mysql._session).max_packet = 256 * 1024
    small = NewJob(handler="h")
    large, too_large = (NewJob(handler="h", vars=b'"' + b"x" * size + b'"') for size in (200_000, 300_000))
    assert len(insert(mysql, small, large, small)) == 3
    with pytest.raises(StoreRefused, match="max_allowed_packet"):
        insert(mysql, small, too_large)
    assert value(mysql, "SELECT COUNT(*) FROM workerd_jobs") == 3


def test_keys_are_told_apart_as_the_engine_does(store: Store) -> None:
    """Of a bulk that is sent again each job gets its own id; MySQL sees no space at the end of a key."""

    def insert() -> list[bytes]:
        new = [NewJob(handler="h", vars=b"{}", unique_key=key) for key in ("a", "a ", "b")]
        return [one.id for one in store.run(lambda tx: jobs.insert(tx, new))]

    first = insert()
    assert len(set(first)) == (2 if store.dialect.ignores_end_spaces else 3)
    assert insert() == first
