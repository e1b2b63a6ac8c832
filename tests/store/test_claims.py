"""Claims: no row twice, none skipped, and none that stops its handler because it cannot be read."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import storing as s
from tests.support.eventually import eventually
from tests.support.servers import DatabaseServer
from tests.support.storing import NODE, claims, close, enqueue, job, sql, status, value
from workerd import clock
from workerd.clock import SECOND
from workerd.errors import StoreBusy
from workerd.job import Claim, Status, new_id
from workerd.outcome import Reason
from workerd.store import claims as store_claims
from workerd.store import expiry, handlers, job_control, jobs, polls, servers
from workerd.store.base import Store, Tx
from workerd.store.claims import NodeIdent
from workerd.store.mysql_dialect import MYSQL
from workerd.store.polls import PollResult, poll

LOCK_WAITS = "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
OTHER = store_claims.NodeIdent(b"o" * 16, "two")


def claim(store: Store, handler: str, limit: int = 100, **given: Any) -> store_claims.ClaimBatch:
    return store.run(lambda tx: store_claims.claim(tx, handler, limit, NODE, **given))


def test_a_claim_carries_the_values_of_its_row(store: Store) -> None:
    """Every column that a worker or the pool needs comes with the claim, at the store's time."""
    made = enqueue(
        store, "h", vars=b'{"a": "\xc3\xbc\xf0\x9f\x98\x80"}', meta=b'{"t":1}', deadline_ms=1500,
        max_attempts=7, unique_key="k'\"\\\n\x00", priority=-3,
    )  # fmt: skip
    (found,) = claims(store, "h")
    row = job(store, made).row
    assert (found.id, found.attempt, found.handler) == (made, 1, "h")
    assert (found.vars, found.meta) == (b'{"a": "\xc3\xbc\xf0\x9f\x98\x80"}', b'{"t":1}')
    assert (found.deadline_ms, found.max_attempts, found.unique_key) == (1500, 7, "k'\"\\\n\x00")
    assert (found.run_at, found.claimed_at) == (row.run_at, row.claimed_at)
    assert (row.status, row.node_id, row.node) == ("inprogress", NODE.id, NODE.name)
    assert row.created_at is not None
    assert row.claimed_at is not None
    assert row.created_at <= row.claimed_at


def test_smaller_priority_comes_first_then_the_older(store: Store) -> None:
    """Priority orders within a handler, `run_at` within a priority."""
    late = enqueue(store, "h", run_at=clock.SECOND * 3)
    early = enqueue(store, "h", run_at=clock.SECOND * 2)
    urgent = enqueue(store, "h", run_at=clock.SECOND * 4, priority=-1)
    assert [c.id for c in claims(store, "h")] == [urgent, early, late]


def test_a_claim_takes_no_more_than_it_is_asked_for(store: Store) -> None:
    """The limit holds, and the next claim continues after the cursor."""
    made = [enqueue(store, "h", run_at=clock.SECOND * n) for n in range(1, 6)]
    first = claim(store, "h", 2)
    assert [c.id for c in first.claims] == made[:2]
    assert first.cursor is not None
    second = claim(store, "h", 2, cursor=first.cursor)
    assert [c.id for c in second.claims] == made[2:4]
    last = claim(store, "h", 2, cursor=second.cursor)
    assert ([c.id for c in last.claims], last.cursor) == (made[4:], None)


def test_a_cursor_passes_over_what_came_before_it(store: Store) -> None:
    """A row of a smaller priority is found from the beginning, not from a cursor behind it."""
    enqueue(store, "h", priority=5)
    cursor = claim(store, "h", 1).cursor
    urgent = enqueue(store, "h")
    assert claim(store, "h", 1, cursor=cursor).claims == []
    assert [c.id for c in claim(store, "h", 1).claims] == [urgent]


def test_claimers_never_meet(store: Store, store_url: str, opened: Callable[..., Store]) -> None:
    """Four claimers at once take 400 rows, each exactly once."""
    store.run(lambda tx: jobs.insert(tx, [jobs.NewJob(handler="h") for _ in range(400)]))
    taken: list[list[Claim]] = []
    together = threading.Barrier(4)

    def work(own: Store, node: store_claims.NodeIdent) -> None:
        mine: list[Claim] = []
        together.wait()
        while found := claims(own, "h", 7, node):
            mine += found
        taken.append(mine)

    threads = [
        threading.Thread(
            target=work, args=(opened(store_url), store_claims.NodeIdent(bytes([n]) * 16, f"n{n}"))
        )
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = [c.id for mine in taken for c in mine]
    left = len(claims(store, "h", 500))
    assert len(ids) == len(set(ids))
    assert len(ids) + left == 400  # one that met only locked rows went home early


def test_a_claim_passes_over_rows_that_another_holds(mysql_url: str, opened: Callable[..., Store]) -> None:
    """While one claimer's transaction is open, another gets the rows behind, at once."""
    one, two = opened(mysql_url), opened(mysql_url)
    one.migrate()
    enqueue(one, "h")  # makes the handler's row
    assert len(claims(one, "h")) == 1
    made = [enqueue(one, "h", run_at=clock.SECOND * n) for n in (1, 2, 3)]

    def both(tx: Any) -> None:
        first = store_claims.claim(tx, "h", 1, NODE).claims
        second = claims(two, "h", 1, OTHER)
        assert [c.id for c in first + second] == made[:2]

    one.run(both)
    assert [c.id for c in claims(two, "h", 9, OTHER)] == made[2:]


def test_a_row_is_taken_once_even_where_reading_locks_nothing(
    mysql_url: str, mysql: Store, opened: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers that ignore FOR UPDATE with SKIP LOCKED exist: another claim comes between."""
    other = opened(mysql_url)
    assert claims(other, "mail") == []  # the handler has its row
    enqueue(mysql, "mail")
    monkeypatch.setattr(type(MYSQL), "skip_locked", "")
    monkeypatch.setattr(servers, "can_pipeline", lambda *_: False)  # as such a server is used
    mysql.close()
    within, between = store_claims._within_budget, [lambda: claims(other, "mail")]
    taken: list[Claim] = []

    def interrupted(*given: Any) -> Any:
        if between:
            taken.extend(between.pop()())
        return within(*given)

    monkeypatch.setattr(store_claims, "_within_budget", interrupted)
    with pytest.raises(StoreBusy):
        mysql.run(lambda tx: store_claims.claim(tx, "mail", 10, NodeIdent(b"m" * 16, "two")), retry_for_s=0)
    assert len(taken) == 1
    assert close(other, [s.outcome(taken[0])]) == 1


def test_a_paused_handler_is_not_claimed(store: Store) -> None:
    """A claim reads the pause in its own transaction."""
    made = enqueue(store, "h")
    assert claims(store, "other") == []
    store.run(lambda tx: handlers.pause(tx, "h", "me", "why"))
    batch = claim(store, "h")
    assert (batch.claims, batch.paused, status(store, made)) == ([], True, "new")
    store.run(lambda tx: handlers.resume(tx, "h"))
    assert len(claims(store, "h")) == 1


def test_no_claim_commits_after_a_pause_returned(
    mysql_server: DatabaseServer, mysql_url: str, opened: Callable[..., Store]
) -> None:
    """A pause waits for a running claim, also for a handler never claimed before."""
    one, two = opened(mysql_url), opened(mysql_url)
    one.migrate()
    enqueue(one, "h")
    order: list[str] = []

    def pause() -> None:
        two.run(lambda tx: handlers.pause(tx, "h", "me", None))
        order.append("paused")

    thread = threading.Thread(target=pause)

    def work(tx: Any) -> None:
        order.clear()
        assert len(store_claims.claim(tx, "h", 1, NODE).claims) == 1
        if not thread.is_alive():
            thread.start()
        # The server renews this table only for who has not looked for 100 ms.
        eventually(lambda: mysql_server.sql(LOCK_WAITS)[0][0], every=0.2)
        order.append("claimed")

    one.run(work)
    thread.join()
    assert order == ["claimed", "paused"]


def test_an_unreadable_row_ends_as_failure_and_blocks_no_other(store: Store) -> None:
    """The claim continues with the other rows and reports the error of this one."""
    good = enqueue(store, "h")
    if store.dialect.name == "sqlite":
        bad = enqueue(store, "h", name="x")
        sql(store, "UPDATE workerd_jobs SET name = CAST(x'ff41' AS TEXT) WHERE id = %s", bad)
    else:
        bad = enqueue(store, "h")
        store.run(lambda tx: _zero_date(tx, bad))
    batch = claim(store, "h")
    assert [c.id for c in batch.claims] == [good]
    (broken,) = batch.broken
    assert (broken.id, broken.status, broken.reason) == (bad, Status.FAILURE, Reason.FAILURE)
    assert broken.error is not None
    assert "cannot be read" in broken.error
    assert close(store, batch.broken) == 1
    assert status(store, bad) == "failure"


def _zero_date(tx: Any, job_id: bytes) -> None:
    tx.execute("SET SESSION sql_mode = ''")
    tx.execute("UPDATE workerd_jobs SET run_at = '0000-00-00' WHERE id = %s", (job_id,))


@pytest.mark.parametrize("raw", ["ff", "00", "f09f9880", "c328", "7b7d00", "ed a0 80"])
def test_vars_are_handed_on_as_they_are(store: Store, raw: str) -> None:
    """`vars`, valid or not, reach the worker, which reports what is wrong with them."""
    data = bytes.fromhex(raw)
    made = enqueue(store, "h")
    if store.dialect.name == "sqlite":
        sql(store, "UPDATE workerd_jobs SET vars = CAST(%s AS TEXT) WHERE id = %s", data, made)
    else:
        try:
            data.decode()
        except UnicodeDecodeError:
            pytest.skip("the server lets no invalid UTF-8 in")
        sql(store, "UPDATE workerd_jobs SET vars = %s WHERE id = %s", data, made)
    assert [c.vars for c in claims(store, "h")] == [data]


def test_long_vars_are_claimed_a_few_at_a_time(store: Store) -> None:
    """A claim carries 8 MiB of vars at most; the rest stays `new`; a single longer row is claimed alone."""
    long = b'"' + b"x" * (3 << 20) + b'"'
    made = [enqueue(store, "h", vars=long, meta=long[: 1 << 15], run_at=clock.SECOND * n) for n in (1, 2, 3)]
    batch = claim(store, "h")
    assert ([c.id for c in batch.claims], batch.found) == (made[:2], 3)
    assert {(c.vars, c.meta) for c in batch.claims} == {(long, long[: 1 << 15])}
    assert [c.id for c in claims(store, "h")] == made[2:]


def test_a_job_that_is_too_long_to_carry_fails(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails with an error that names its length."""
    monkeypatch.setattr(store_claims, "MAX_JOB_BYTES", 20_000)
    enqueue(store, "h", vars=b'"' + b"x" * 20_000 + b'"')
    (broken,) = claim(store, "h").broken
    assert "20002 bytes" in (broken.error or "")


def test_a_cancel_that_was_asked_for_while_the_job_waited(store: Store) -> None:
    """A foreign program may set `cancel_requested_at` on a row that is `new`: it is not run."""
    made = enqueue(store, "h")
    now = clock.to_text(store.read(lambda tx: tx.now))
    sql(store, "UPDATE workerd_jobs SET cancel_requested_at = %s WHERE id = %s", now, made)
    batch = claim(store, "h")
    assert [(o.id, o.status) for o in batch.broken] == [(made, Status.CANCELLED)]


def test_peek_names_the_handlers_that_have_rows(store: Store) -> None:
    """One statement for all handlers; those without `new` rows are not in the answer."""
    enqueue(store, "a'b")
    enqueue(store, "later", delay=60 * clock.SECOND)
    assert store.read(lambda tx: polls.peek(tx, ["x", "a'b", "later"])).handlers == {"a'b"}
    assert store.read(lambda tx: polls.peek(tx, [])).handlers == set()


def test_due_rows_become_new_and_the_next_due_time_is_returned(store: Store) -> None:
    """Slice by slice, those that were due first first; then when to come back."""
    now = store.read(lambda tx: tx.now)
    made = [enqueue(store, f"h{n}", delay=3600 * clock.SECOND + n) for n in range(4)]
    for n, job_id in enumerate(made[:3]):
        past = clock.to_text(now - (3 - n) * clock.SECOND)
        sql(store, "UPDATE workerd_jobs SET run_at = %s WHERE id = %s", past, job_id)
    first = store.run(lambda tx: store_claims.promote_due(tx, 2))
    assert (first.count, first.handlers) == (2, {"h0", "h1"})
    assert first.next_due == now - clock.SECOND
    second = store.run(lambda tx: store_claims.promote_due(tx, 2))
    assert (second.count, second.handlers) == (1, {"h2"})
    assert second.next_due == job(store, made[3]).row.run_at
    assert [status(store, j) for j in made] == ["new", "new", "new", "scheduled"]
    assert store.run(lambda tx: store_claims.promote_due(tx, 2)).count == 0


@pytest.mark.parametrize("invalid", ["0000-00-00 00:00:00", "2024-02-31 00:00:00"])
@pytest.mark.parametrize("column", ["run_at", "expires_at", "created_at", "cancel_requested_at"])
def test_a_date_of_no_calendar_keeps_no_other_from_its_time(store: Store, column: str, invalid: str) -> None:
    """Another program may have written one; its row is promoted with the others, and can be cancelled."""
    odd, due = enqueue(store, "legacy", delay=3600 * clock.SECOND), enqueue(store, "h", delay=1)

    def write(tx: Tx) -> None:
        if tx.dialect.name == "mysql":
            tx.execute("SET SESSION sql_mode = 'ALLOW_INVALID_DATES'")
        past = clock.to_text(tx.now - clock.SECOND)
        tx.execute("UPDATE workerd_jobs SET run_at = %s", (past,))
        tx.execute(f"UPDATE workerd_jobs SET {column} = %s WHERE id = %s", (invalid, odd))

    store.run(write)
    store.close()
    assert store.run(lambda tx: store_claims.promote_due(tx, 100)).count == 2
    assert [status(store, one) for one in (odd, due)] == ["new", "new"]
    assert store.run(lambda tx: job_control.cancel(tx, odd)) == "ended"


@pytest.mark.parametrize("invalid", ["0000-00-00 00:00:00", "2024-02-31 00:00:00"])
def test_what_has_expired_keeps_nothing_from_its_time(store: Store, invalid: str) -> None:
    """However many there are: the due rows behind them are found, and the sweep ends them all."""

    def write(tx: Tx) -> None:
        if tx.dialect.name == "mysql":
            tx.execute("SET SESSION sql_mode = 'ALLOW_INVALID_DATES'")
        for _ in range(10):
            tx.execute(
                "INSERT INTO workerd_jobs (id, handler, expires_at) VALUES (%s, 'legacy', %s)",
                (new_id(), invalid),
            )

    store.run(write)
    store.close()
    due = enqueue(store, "h", delay=1)
    eventually(lambda: store.read(lambda tx: tx.now) > job(store, due).row.run_at)
    promoted = store.run(lambda tx: store_claims.promote_due(tx, 10))
    assert (promoted.count, promoted.full, promoted.expired) == (1, False, True)
    assert status(store, due) == "new"
    assert store.run(lambda tx: expiry.sweep(tx, 10)) == 10
    assert store.run(lambda tx: expiry.sweep(tx, 10)) == 0
    promoted = store.run(lambda tx: store_claims.promote_due(tx, 10))
    assert (promoted.count, promoted.expired, promoted.next_due) == (0, False, None)


def test_a_plain_insert_is_enough(store: Store) -> None:
    """Only `id` and `handler` are required; every default is such that the row can be claimed."""
    if store.dialect.name == "mysql":
        store.run(lambda tx: tx.execute("SET time_zone = '+09:00'"))
    sql(store, "INSERT INTO workerd_jobs (id, handler) VALUES (%s, 'plain')", b"\xff" * 16)
    (found,) = claims(store, "plain")
    assert (found.vars, found.attempt, found.run_at <= found.claimed_at) == (b"{}", 1, True)
    assert found.claimed_at - found.run_at < 3600 * clock.SECOND
    assert value(store, "SELECT created_at FROM workerd_jobs") is not None


def seen(store: Store, *names: str) -> PollResult:
    return store.alone(lambda tx: poll(tx, s.NODE.id, names), write=False)


def test_an_empty_store_has_nothing_to_tell(store: Store) -> None:
    """No rows, no orders, nothing due."""
    assert seen(store) == seen(store, "h") == PollResult(set(), set(), [], None)


def test_one_statement_tells_all_that_is_asked_at_a_poll(store: Store) -> None:
    """New rows of the handlers that it names, pauses, cancels of this node's claims, the next due row."""
    running = s.enqueue(store, "b")
    s.claims(store, "b")
    for handler in ("a", "c"):
        s.enqueue(store, handler)
    later = s.enqueue(store, "b", delay=60 * SECOND)
    s.enqueue(store, "b", delay=3600 * SECOND)
    assert store.run(lambda tx: job_control.cancel(tx, running)) == "asked"
    store.run(lambda tx: handlers.pause(tx, "é", "me", None))
    sight = seen(store, "b", "a")
    assert sight == PollResult({"a"}, {"é"}, [(running, 1)], s.job(store, later).row.run_at)


def test_a_look_ends_with_its_statement(store: Store) -> None:
    """A later commit is seen by the next poll, and no poll holds a lock."""
    assert not seen(store, "h").handlers
    s.enqueue(store, "h")
    assert seen(store, "h").handlers == {"h"}
    assert len(s.claims(store, "h")) == 1
    assert not seen(store, "h").handlers
