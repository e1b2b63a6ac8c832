"""The engines read what they return: index order, no sorting, however many rows wait beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import pytest

from tests.support.storing import NODE, outcome
from workerd import clock
from workerd.config.model import StoreConfig
from workerd.duplicates import follower_key
from workerd.ingester import writer
from workerd.job import AttemptRef, Claim, Status
from workerd.job_filter import JobFilter
from workerd.outcome import released
from workerd.store import (
    bulk_control,
    claims,
    duplicates,
    errors,
    expiry,
    group_queues,
    held_attempts,
    hidden_groups,
    job_branches,
    job_selection,
    jobs,
    nodes,
    polls,
    reclaims,
    slot_numbers,
    stats,
)
from workerd.store.base import Store, Tx
from workerd.store.claim_window import LimitedHandler
from workerd.store.engines import open_store
from workerd.store.polls import PollResult, poll
from workerd.store.session import Params, Row, Session

T = TypeVar("T")
WAITING = 100_000
SEARCH = "SELECT j.id, j.attempt, j.run_at FROM"
"""How the statements of a search begin."""
FEW = 10
"""Rows that a statement may touch beside those that come of it."""


class StatementPlan(NamedTuple):
    """A statement, its plan as text, the rows that the server read for it, and how many came of it."""

    sql: str
    plan: str
    read: int
    count: int


class Watched(Session):
    """Explains each statement before it runs it, and counts what the server read for it."""

    def __init__(self, session: Session) -> None:
        self._inner = session
        self.dialect = session.dialect
        self.server_version = session.server_version
        self.max_packet = session.max_packet
        self.seen: list[StatementPlan] = []

    def execute(self, sql: str, params: Params = ()) -> int:
        return self._watch(sql, params, self._inner.execute, lambda changed: changed)

    def query(self, sql: str, params: Params = ()) -> list[Row]:
        return self._watch(sql, params, self._inner.query, len)

    def _watch(
        self, sql: str, params: Params, work: Callable[[str, Params], T], count: Callable[[T], int]
    ) -> T:
        explain = "EXPLAIN " if self.dialect.name == "mysql" else "EXPLAIN QUERY PLAN "
        plan = str(self._inner.query(explain + sql, params))
        before = self._rows_read()
        result = work(sql, params)
        self.seen.append(
            StatementPlan(" ".join(sql.split())[:200], plan, self._rows_read() - before, count(result))
        )
        return result

    def _rows_read(self) -> int:
        if self.dialect.name == "sqlite":
            return 0  # it does not count
        return sum(int(n) for _, n in self._inner.query("SHOW SESSION STATUS LIKE 'Handler_read%'"))

    def clock(self) -> int:
        return self._inner.clock()

    def begin(self, write: bool) -> None: ...

    def commit(self) -> None: ...

    def rollback(self) -> None: ...

    def close(self) -> None: ...


class Undo(Exception):
    """Leaves a transaction without a trace."""


def watch(store: Store, work: Callable[[Tx], T]) -> tuple[T, list[StatementPlan]]:
    """Return the result of `work` and its statements; the transaction is rolled back."""
    done: list[tuple[T, list[StatementPlan]]] = []

    def watched(tx: Tx) -> None:
        session = Watched(tx._session)
        result = work(Tx(session))
        done[:] = [(result, session.seen)]
        raise Undo

    with pytest.raises(Undo):
        store.run(watched)
    return done[0]


@pytest.fixture(scope="module", params=["mysql", "sqlite"])
def full(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """More than 100,000 rows that are `new` and as many that are `scheduled`, of one handler."""
    if request.param == "sqlite":
        store = open_store(
            StoreConfig(url=f"sqlite:///{tmp_path_factory.mktemp('full')}/store.db"), timeout=60
        )
        _fill(store, "randomblob(16)")
        yield store
        store.close()
        return
    server = request.getfixturevalue("mysql_server")
    name = server.new_database()
    store = open_store(StoreConfig(url=server.url(name)), timeout=60)
    _fill(store, "LEFT(UNHEX(SHA2(CONCAT(HEX(id), UUID_SHORT()), 256)), 16)")
    yield store
    store.close()
    server.drop_database(name)


def _fill(store: Store, fresh: str) -> None:
    store.migrate()
    later = clock.LATEST - 10**12
    new = [jobs.NewJob(handler="h") for _ in range(1563)]
    new += [jobs.NewJob(handler="h", run_at=later + n) for n in range(1563)]
    store.run(lambda tx: jobs.insert(tx, new))
    count = len(new)
    while count < 2 * WAITING:
        count += store.run(
            lambda tx: tx.execute(
                "INSERT INTO workerd_jobs (id, handler, status, run_at)"
                f" SELECT {fresh}, handler, status, run_at FROM workerd_jobs"
            )
        )


def unsorted(seen: list[StatementPlan]) -> None:
    """No statement sorts, builds a temporary table of rows, or scans the table of jobs."""
    for one in seen:
        for bad in ("filesort", "temporary", "TEMP B-TREE", "SCAN workerd_jobs"):
            assert bad not in one.plan, one


def by_key(seen: list[StatementPlan], rows: int) -> None:
    """No statement reads all rows of a status, or more than those that it names."""
    for one in seen:
        assert "workerd_holder (status=?)" not in one.plan, one
        assert one.read <= rows + FEW, one


def claimed(tx: Tx, n: int = 500) -> list[Claim]:
    return claims.claim(tx, "h", n, NODE).claims


@pytest.mark.parametrize("behind", [False, True], ids=["from the start", "from a cursor"])
def test_a_claim_reads_the_rows_that_it_takes(full: Store, behind: bool) -> None:
    """In the order of its index, 500 rows read for 500 claimed, and 500 written by primary key."""
    cursor = claims.Cursor(0, "2001-01-01 00:00:00.000000", bytes(16)) if behind else None
    batch, seen = watch(full, lambda tx: claims.claim(tx, "h", 500, NODE, cursor))
    assert len(batch.claims) == 500
    unsorted(seen)
    selected = next(one for one in seen if one.sql.startswith("SELECT id, attempt, priority"))
    assert "workerd_holder" in selected.plan
    by_key(seen, 500)


def test_a_claim_begins_at_the_first_row_of_the_one_before(full: Store) -> None:
    """Also where a bulk has one time: rows that were claimed of it are dead entries until they are purged."""
    waiting = full.read(lambda tx: claimed_rows(tx, 400))
    assert len({row[2:4] for row in waiting}) == 1
    cursor, begin = claims.cursor_at(waiting[300]), 300 if full.dialect.index_ends_with_id else 0
    batch, _ = watch(full, lambda tx: claims.claim(tx, "h", 100, NODE, cursor))
    assert [claim.id for claim in batch.claims] == [row[0] for row in waiting[begin : begin + 100]]


def test_a_walk_through_a_queue_reads_each_row_once(full: Store) -> None:
    """From where the step before ended, also where a bulk has one time."""
    handler = LimitedHandler("h", None, None, fair=True)
    place = None
    for _ in range(2):
        step, seen = watch(full, lambda tx, at=place: hidden_groups.walk(tx, handler, {""}, at))
        assert place != step.place
        place = step.place
        unsorted(seen)
        assert all(one.read <= hidden_groups.MAX_ROWS + FEW for one in seen), seen


def claimed_rows(tx: Tx, n: int) -> list[Any]:
    """The rows that are claimed next, in the order of the index."""
    return tx.query(
        f"SELECT id, attempt, priority, run_at FROM workerd_jobs {tx.dialect.hint('workerd_holder')}"
        " WHERE status = 'new' AND holder = 'h' ORDER BY priority, run_at LIMIT %s",
        (n,),
    )


@pytest.mark.parametrize("many", [1, 20, 500])
def test_rows_that_are_named_are_read_by_their_key(full: Store, many: int) -> None:
    """Whatever is asked of their status beside it, and however many rows have that status."""

    def work(tx: Any) -> list[int]:
        taken = claimed(tx, many)
        refs = [claim.ref for claim in taken]
        writer.close(tx, [released(claim) for claim in taken], NODE.id)
        del tx._session.seen[:]
        locked = claims.rows_of(tx, refs, 1000)
        group_queues.unpark(tx, refs)
        back = reclaims.take_ended(tx, NODE, refs)
        return [len(locked), len(back)]

    found, seen = watch(full, work)
    assert found == [many, many]
    by_key(seen, many)


@pytest.mark.parametrize("many", [1, 500])
def test_what_ran_before_a_limit_counted_it_is_found_among_what_runs(full: Store, many: int) -> None:
    """By the index, and then by key; the slots are not read for each row."""

    def work(tx: Any) -> list[AttemptRef]:
        claimed(tx, many)
        del tx._session.seen[:]
        return reclaims.count_running(tx, reclaims.LimitScopes("l", ("limit", "group")), ["h"])

    found, seen = watch(full, work)
    assert len(found) == many
    unsorted(seen)
    for one in seen:
        assert one.read <= 2 * many + FEW, one


def test_of_a_free_range_only_its_slots_are_read(full: Store) -> None:
    """However many others are taken."""

    def work(tx: Any) -> str:
        rows = ", ".join(f"('l', {n}, 1)" for n in range(2000))
        tx.execute(f"INSERT INTO workerd_slots (limit_name, n, attempt) VALUES {rows}")
        del tx._session.seen[:]
        assert tx.query(*slot_numbers.query_range("l", range(2500, 2700), 5000)) == []
        return str(tx.dialect.name)

    engine, (one,) = watch(full, work)
    assert one.read <= FEW, one
    assert engine != "sqlite" or one.plan.count("n>?") == 2


def test_a_look_at_many_handlers_reads_one_entry_of_each(full: Store) -> None:
    """However many rows each has."""
    names = ["h", *(f"x{n}" for n in range(20))]
    found, seen = watch(full, lambda tx: polls.peek(tx, names))
    assert found.handlers == {"h"}
    (one,) = seen
    assert "filesort" not in one.plan
    assert one.read <= 3 * len(names)


@pytest.mark.parametrize("due", [0, 300])
def test_due_rows_are_found_without_reading_those_that_are_not(full: Store, due: int) -> None:
    """A slice reads the rows it promotes and one index entry for the next due time."""

    def work(tx: Any) -> claims.Promoted:
        jobs.insert(tx, [jobs.NewJob(handler="d", delay=10**9) for _ in range(due)])
        tx.execute("UPDATE workerd_jobs SET run_at = '2001-01-01 00:00:00' WHERE handler = 'd'")
        before = len(tx._session.seen)
        done = claims.promote_due(tx, 500)
        del tx._session.seen[:before]
        return done

    done, seen = watch(full, work)
    assert done.count == due
    unsorted(seen)
    assert "workerd_scheduled" in seen[0].plan
    for one in seen:
        assert one.read <= one.count + FEW, one


def test_what_expires_is_found_without_reading_what_does_not(full: Store) -> None:
    """Jobs behind others of their unique key too, however many live jobs have such keys."""

    def work(tx: Any) -> int:
        claimed(tx, 1)  # its handler is known from now on
        jobs.insert(tx, [jobs.NewJob(handler="h", unique_key=f"k{n}") for n in range(500)])
        over = clock.from_text("2001-01-01 00:00:00.000000")
        jobs.insert(tx, [jobs.NewJob(handler="h", unique_key=follower_key("k"), expires_at=over)])
        del tx._session.seen[:]
        return expiry.sweep(tx, 500)

    ended, seen = watch(full, work)
    assert ended == 1
    unsorted(seen)
    for one in seen:
        assert one.read <= one.count + FEW, one


@pytest.mark.parametrize("many", [0, 300])
def test_what_waits_behind_a_job_that_is_no_more_is_found_by_its_key(full: Store, many: int) -> None:
    """One look-up for each that waits behind another, however many live jobs have keys."""

    def work(tx: Any) -> int:
        keys = [f"k{n}" for n in range(500)]
        jobs.insert(tx, [jobs.NewJob(handler="h", unique_key=key) for key in keys])
        waiting = [*keys[:many], "gone"]
        jobs.insert(
            tx,
            [jobs.NewJob(handler="h", unique_key=follower_key(key), given_key=key) for key in waiting],
        )
        del tx._session.seen[:]
        return duplicates.release(tx, duplicates.without_holder(tx, ["h", "x"], 500))

    released, seen = watch(full, work)
    assert released == 1
    unsorted(seen)
    assert "workerd_live" in seen[0].plan
    for one in seen:
        assert one.read <= 2 * many + FEW, one


@pytest.mark.parametrize("many", [1, 2, 500])
def test_closing_reads_the_rows_that_it_closes(full: Store, many: int) -> None:
    """By primary key, whatever the table's size lets the optimiser guess."""

    def work(tx: Any) -> int:
        taken = claimed(tx, many)
        del tx._session.seen[:]
        told = [outcome(c, Status.RETRY if n % 2 else Status.COMPLETED) for n, c in enumerate(taken)]
        return len(writer.close(tx, told, NODE.id).refs)

    closed, seen = watch(full, work)
    assert closed == many
    for one in seen:
        # The derived table (MySQL builds it by way of another), the rows that it names, and both to write.
        assert one.read <= 5 * one.count + FEW, one
        assert "SCAN workerd_jobs" not in one.plan


def test_successes_are_closed_as_they_are_found(full: Store) -> None:
    """The server does not put aside what it is to change, and find each row again."""

    def work(tx: Any) -> int:
        taken = claimed(tx)
        del tx._session.seen[:]
        return len(writer.close(tx, [outcome(claim) for claim in taken], NODE.id).refs)

    closed, seen = watch(full, work)
    assert closed == 500
    for one in seen:
        # Each row, and its values in the derived table.
        assert one.read <= 3 * one.count + FEW, one


def test_giving_back_reads_the_rows_that_it_gives_back(full: Store) -> None:
    """By primary key too."""
    back, seen = watch(
        full, lambda tx: len(writer.close(tx, [released(c) for c in claimed(tx)], NODE.id).refs)
    )
    assert back == 500
    by_key(seen, 500)


def test_what_a_node_holds_is_found_by_its_index(full: Store) -> None:
    """Its claims, and claims without a node, with all that wait beside them."""

    def work(tx: Any) -> tuple[int, int]:
        claimed(tx, 50)
        del tx._session.seen[:]
        return len(held_attempts.held(tx, NODE.id)), len(nodes.strays(tx))

    found, seen = watch(full, work)
    assert found == (50, 1)
    for one in seen:
        assert one.read <= 4 * 50 + FEW, one


def test_a_look_reads_one_row_of_each_that_waits(full: Store) -> None:
    """One that is new of each handler, one that is scheduled, and what the node itself holds."""

    def work(tx: Any) -> PollResult:
        claimed(tx, 50)
        del tx._session.seen[:]
        return poll(tx, NODE.id, ["g", "h"])

    sight, (seen,) = watch(full, work)
    assert (sight.handlers, sight.cancels) == ({"h"}, [])
    assert sight.next_due is not None
    assert seen.read <= 2 * 50 + FEW, seen


def test_figures_are_read_from_indexes_alone(full: Store) -> None:
    """Counting reads one entry of each job, once; all else a few, however many rows there are."""
    found, seen = watch(full, lambda tx: stats.by_handler(tx, ["h", *(f"x{n}" for n in range(20))]))
    assert found["h"].due >= WAITING
    assert found["h"].scheduled >= WAITING
    jobs_read = sum(one.read for one in seen)
    # What a derived table holds is read once more; those that came within the last minute are counted.
    assert jobs_read <= 2 * (found["h"].due + found["h"].scheduled + found["h"].came) + 40 * FEW
    for one in seen:
        assert "filesort" not in one.plan or "workerd_nodes" in one.sql, one
        assert "SCAN workerd_jobs" not in one.plan, one


def looked(tx: Tx, wanted: JobFilter, state: Status) -> list[AttemptRef]:
    """What the third slice of a search finds."""
    (branch,) = job_branches.branches(tx, wanted, [state])
    behind = None
    for _ in range(3):
        found = job_selection.read(tx, branch, wanted, behind, None)
        behind = found.behind
    return found.refs


@pytest.mark.parametrize("state", [Status.NEW, Status.SCHEDULED])
def test_a_search_reads_the_rows_of_its_slices(full: Store, state: Status) -> None:
    """In the order of the index, from where the slice before has ended."""
    refs, seen = watch(full, lambda tx: looked(tx, JobFilter(handler="h"), state))
    assert len(refs) == job_selection.SLICE_ROWS
    reads = [one for one in seen if one.sql.startswith(SEARCH)]
    assert sum(one.read for one in reads) <= 3 * (job_selection.SLICE_ROWS + FEW), reads
    for one in reads:
        assert "filesort" not in one.plan
        assert "SCAN" not in one.plan


@pytest.mark.parametrize("act", ["cancel", "retry"])
def test_a_slice_of_many_reads_its_own_rows(full: Store, act: str) -> None:
    """Some times as many rows as it changes, by primary key, however many others there are."""

    def work(tx: Tx) -> int:
        wanted = JobFilter(handler="h")
        refs = looked(tx, wanted, Status.SCHEDULED)[:500]
        jobs_, requests = bulk_control.locked(tx, wanted, refs, None)
        if act == "cancel":
            return len(bulk_control.cancel(tx, jobs_, requests))
        ended = [one._replace(status=Status.FAILURE) for one in jobs_]
        return len(bulk_control.retry(tx, ended))

    done, seen = watch(full, work)
    assert done == 500
    own = [one for one in seen if not one.sql.startswith(SEARCH)]
    assert len(own) < 20, own
    assert sum(one.read for one in own) < 8 * 500, own
    assert not [one for one in own if "SCAN workerd_jobs" in one.plan]


@pytest.fixture(scope="module")
def groups(full: Store) -> Store:
    """The same with 100,000 error groups: of two handlers, a tenth open, a hundredth of "rare"."""
    rows = [
        (
            f"x'{n:016x}'", "'rare'" if n % 100 == 0 else "'h'",
            f"'{clock.to_text(clock.SECOND * (1_700_000_000 + n))}'",
            "NULL" if n % 10 == 0 else "'2026-01-01 00:00:00.000000'",
        )
        for n in range(WAITING)
    ]  # fmt: skip
    for start in range(0, WAITING, 5000):
        values = ", ".join(
            f"({fp}, {handler}, 'E', 'e', x'{'11' * 16}', 1, {at}, {at}, 1, 1, {resolved})"
            for fp, handler, at, resolved in rows[start : start + 5000]
        )
        full.run(
            lambda tx, values=values: tx.execute(
                "INSERT INTO workerd_errors (fingerprint, handler, error_class, error, job_id, attempt,"
                f" first_seen, last_seen, count, kept, resolved_at) VALUES {values}"
            )
        )
    return full


def test_error_groups_are_read_in_the_order_of_their_index(groups: Store) -> None:
    """A page reads what it shows and what lies between; one group, by its key."""
    pages: list[tuple[dict[str, Any], int]] = [
        ({}, 600), ({"everything": True}, 100), ({"handler": "rare"}, 6_000), ({"since": 0}, 600),
    ]  # fmt: skip
    for given, most in pages:
        page, seen = watch(groups, lambda tx, given=given: errors.list_(tx, limit=50, **given))
        assert len(page.rows) == 50
        # SQLite sorts those of one moment alone.
        unsorted([one._replace(plan=one.plan.replace("TEMP B-TREE FOR RIGHT PART", "")) for one in seen])
        assert sum(one.read for one in seen) < most, (given, seen)
        _, following = watch(
            groups, lambda tx, given=given, page=page: errors.list_(tx, limit=50, after=page.next, **given)
        )
        assert sum(one.read for one in following) < most, (given, following)
    for work in (lambda tx: errors.get(tx, bytes(8)), lambda tx: errors.resolve(tx, bytes(8), "ann")):
        _, seen = watch(groups, work)
        assert sum(one.read for one in seen) < FEW, seen
