"""An INSERT that an event loop posts: what its answer tells, and what each failure means."""

from __future__ import annotations

import select
from collections.abc import Iterator

import pytest

from tests.support.eventually import eventually
from tests.support.servers import DatabaseServer
from tests.support.silent_commit import SilentCommit
from workerd.config.model import StoreConfig
from workerd.errors import CommitUnknown, StoreAway, StoreRefused
from workerd.job import id_text, new_id
from workerd.job_spec import JobSpec, NewJob, check
from workerd.store import jobs, queries
from workerd.store.base import Store
from workerd.store.engines import open_store
from workerd.store.mysql_posting import MAX_POSTED_BYTES, Posting

TIMEOUT_S = 2.0


@pytest.fixture
def url(mysql_server: DatabaseServer) -> Iterator[str]:
    """The URL of a migrated database, by TCP."""
    name = mysql_server.new_database()
    with_schema = open_store(StoreConfig(url=mysql_server.url(name)))
    with_schema.migrate()
    with_schema.close()
    yield mysql_server.url(name, tcp=True) if mysql_server.private else mysql_server.url(name)
    mysql_server.drop_database(name)


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    store = open_store(StoreConfig(url=url), timeout=TIMEOUT_S)
    yield store
    store.close()


def posting_of(store: Store) -> Posting:
    posting = store.posting()
    assert posting is not None
    return posting


def specs(count: int = 1, size: int = 1) -> list[NewJob]:
    return [check(JobSpec(handler="noop", vars={"n": n, "text": "x" * size})) for n in range(count)]


def send(posting: Posting, new: list[NewJob]) -> list[bytes]:
    """The ids of jobs whose INSERT is sent."""
    ids = [new_id() for _ in new]
    posting.send(*jobs.posted_insert(new, ids, posting.first_attempt))
    return ids


def answer(posting: Posting, ids: list[bytes]) -> int:
    """When the jobs were inserted, once the answer is there."""
    return int(eventually(lambda: posting.receive(ids)))


@pytest.mark.parametrize("count", [1, 3])
def test_the_answer_tells_the_time_of_the_rows(store: Store, count: int) -> None:
    """All rows are inserted at the time that is told, as `row_of` says, and committed."""
    posting = posting_of(store)
    new = specs(count)
    ids = send(posting, new)
    now = answer(posting, ids)
    posting.end()
    rows = store.read(lambda tx: queries.first_attempts(tx, ids))
    assert {job_id: jobs.row_of(spec, job_id, now) for spec, job_id in zip(new, ids, strict=True)} == rows


def test_threads_and_loops_take_turns(store: Store) -> None:
    """A transaction runs between two posted statements."""
    for _ in range(2):
        posting = posting_of(store)
        ids = send(posting, specs())
        answer(posting, ids)
        posting.end()
        assert len(store.run(lambda tx, ids=ids: queries.first_attempts(tx, ids))) == 1


def test_an_answer_in_pieces(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever has arrived of it is kept."""
    posting = posting_of(store)
    ids = send(posting, specs())
    select.select([posting.fileno()], [], [], TIMEOUT_S)
    pieces = [bytes([byte]) for byte in posting._link.take()]

    def take() -> bytes:
        if len(taken := pieces[:3]) == 3 and not waited:
            waited.append(True)
            raise BlockingIOError
        waited.clear()
        del pieces[:3]
        return b"".join(taken)

    waited: list[bool] = []
    monkeypatch.setattr(posting._link, "take", take)
    assert posting.receive(ids) is None
    assert answer(posting, ids) > 0
    assert not pieces


def test_what_the_server_refuses(store: Store) -> None:
    """It is refused as a whole, and the next statement runs."""
    posting = posting_of(store)
    new = specs(2)
    ids = send(posting, new)
    answer(posting, ids)
    posting.send(*jobs.posted_insert(new, [new_id(), ids[0]], posting.first_attempt))
    with pytest.raises(StoreRefused):
        answer(posting, ids)
    answer(posting, send(posting, specs()))
    posting.end()
    assert store.read(lambda tx: tx.one("SELECT COUNT(*) FROM workerd_jobs")) == (3,)


def test_what_is_too_long_to_send_at_once(store: Store) -> None:
    """Nothing is sent."""
    posting = posting_of(store)
    with pytest.raises(StoreRefused):
        send(posting, specs(1, MAX_POSTED_BYTES))
    answer(posting, send(posting, specs()))


def test_a_lost_connection(store: Store, mysql_server: DatabaseServer) -> None:
    """One that is found closed has done nothing; the store connects again."""
    (connection,) = store.read(lambda tx: tx.query("SELECT CONNECTION_ID()"))[0]
    posting = posting_of(store)
    mysql_server.sql(f"KILL {connection}")
    eventually(posting._link.is_unusable)
    with pytest.raises(StoreAway) as caught:
        send(posting, specs())
    assert not isinstance(caught.value, CommitUnknown)
    again = posting_of(store)
    answer(again, send(again, specs()))


def test_no_answer(url: str, mysql_server: DatabaseServer) -> None:
    """What was sent may be done: the error names the ids."""
    if not mysql_server.private:
        pytest.skip("another's server need not listen here")
    line = SilentCommit(url)
    store = open_store(StoreConfig(url=line.url), timeout=TIMEOUT_S)
    posting = posting_of(store)
    line.armed = True
    ids = send(posting, specs(2))
    error = posting.lost(ids)
    assert isinstance(error, CommitUnknown)
    assert error.ids == tuple(map(id_text, ids))
    line.close()


def test_a_connection_that_breaks_before_the_answer(url: str, mysql_server: DatabaseServer) -> None:
    """The same: what was sent may be done."""
    if not mysql_server.private:
        pytest.skip("another's server need not listen here")
    line = SilentCommit(url)
    posting = posting_of(open_store(StoreConfig(url=line.url), timeout=TIMEOUT_S))
    line.armed = True
    ids = send(posting, specs())
    line.close()
    with pytest.raises(CommitUnknown) as caught:
        answer(posting, ids)
    assert caught.value.ids == tuple(map(id_text, ids))
