"""Outcomes whose rows other transactions lock wait beside the others, durably and in order."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from tests.ingester.test_ingester import MakeHarness, ends
from tests.support.ingesting import IngesterHarness
from workerd import transaction
from workerd.job import Status
from workerd.messages import Progress, Seen
from workerd.outcome import Reason

LOCK = "SELECT * FROM workerd_jobs WHERE id = %s FOR UPDATE"


@pytest.fixture
def harness(make_harness: MakeHarness, mysql_url: str) -> IngesterHarness:
    """An ingester on MariaDB."""
    harness = make_harness(mysql_url).start()
    harness.until(lambda: harness.info["mode"] == "live")
    return harness


@contextlib.contextmanager
def locking(harness: IngesterHarness, statement: str, *values: Any) -> Iterator[Callable[[], None]]:
    """Another program's transaction that is left open; call the value to end it."""
    with harness.rows.connection() as other, other.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute(statement, values)
        yield other.rollback


def never_unavailable(harness: IngesterHarness) -> bool:
    return not [beat.trouble for beat in harness.beats if beat.trouble or beat.state == "waiting"]


def test_a_locked_job_row_stops_no_other(harness: IngesterHarness) -> None:
    """All others are recorded while the lock is held, and that one when it is released."""
    pool = harness.pool().connect()
    made = harness.insert_claimed(300)
    with locking(harness, LOCK, made[100].id) as release:
        pool.send(*made)
        harness.until(lambda: ends(harness.rows).get(("completed", "ok")) == 299, within=10)
        harness.until(lambda: pool.all_durable)
        assert harness.info["mode"] == "live"
        assert harness.info["locked"] == 1
        more = harness.insert_claimed(50)
        pool.send(*more)
        harness.until(lambda: ends(harness.rows).get(("completed", "ok")) == 349, within=10)
        release()
    harness.until(lambda: ends(harness.rows) == {("completed", "ok"): 350})
    harness.until(lambda: not harness.info["locked"])
    assert never_unavailable(harness)
    assert harness.info["refused"] == 0


def test_many_locked_rows_cost_one_wait(harness: IngesterHarness) -> None:
    """Once one row was waited for, locked rows are looked for instead."""
    pool = harness.pool().connect()
    first, *rest = harness.insert_claimed(200)
    with locking(harness, "SELECT * FROM workerd_jobs FOR UPDATE") as release:
        pool.send(first)
        harness.until(lambda: harness.info["locked"] == 1)
        retries = harness.info["transaction_retries"]
        for outcome in rest:
            pool.send(outcome)
        harness.until(lambda: harness.info["locked"] == 200)
        assert harness.info["transaction_retries"] == retries
        release()
    harness.until(lambda: ends(harness.rows) == {("completed", "ok"): 200})
    assert never_unavailable(harness)


def test_a_key_that_an_open_transaction_looked_up_stops_no_other(
    harness: IngesterHarness, mysql_url: str
) -> None:
    """`enqueue` under the key of a running job locks that job's row until its transaction ends."""
    pool = harness.pool().connect()
    made = harness.insert_claimed(20)
    held = msgspec.structs.replace(made[7], unique_key="k")
    harness.rows.sql("UPDATE workerd_jobs SET unique_key = 'k' WHERE id = %s", held.id)
    with harness.rows.connection() as other:
        other.begin()
        transaction.enqueue(other, "echo", unique_key="k")
        pool.send(*[held if o.id == held.id else o for o in made])
        harness.until(lambda: ends(harness.rows).get(("completed", "ok")) == 19, within=10)
        other.rollback()
    harness.until(lambda: ends(harness.rows) == {("completed", "ok"): 20})
    assert never_unavailable(harness)


def test_a_locked_key_stops_no_other(harness: IngesterHarness) -> None:
    """A plain INSERT that met the key locks only the index entry."""
    pool = harness.pool().connect()
    made = harness.insert_claimed(20)
    held = msgspec.structs.replace(made[7], unique_key="k")
    harness.rows.sql("UPDATE workerd_jobs SET unique_key = 'k' WHERE id = %s", held.id)
    with harness.rows.connection() as other, other.cursor() as cursor:
        cursor.execute("BEGIN")
        with contextlib.suppress(Exception):
            cursor.execute("INSERT INTO workerd_jobs (id, handler, unique_key) VALUES ('x', 'echo', 'k')")
        pool.send(*[held if o.id == held.id else o for o in made])
        harness.until(lambda: ends(harness.rows).get(("completed", "ok")) == 19, within=10)
        other.rollback()
    harness.until(lambda: ends(harness.rows) == {("completed", "ok"): 20})
    assert never_unavailable(harness)


def test_a_locked_request_stops_no_other_job(harness: IngesterHarness) -> None:
    """Jobs of that request wait; those of others do not."""
    pool = harness.pool().connect()
    made = harness.insert_claimed(20)
    request = b"r" * 16
    harness.rows.sql("INSERT INTO workerd_requests (id, workflow, params) VALUES (%s, 'w', '{}')", request)
    mine = [msgspec.structs.replace(o, request_id=request) for o in made[3:5]]
    with locking(harness, "SELECT * FROM workerd_requests WHERE id = %s FOR UPDATE", request):
        pool.send(*made[:3], *mine, *made[5:])
        harness.until(lambda: ends(harness.rows).get(("completed", "ok")) == 18, within=10)
        assert harness.info["locked"] == 2
    harness.until(lambda: ends(harness.rows) == {("completed", "ok"): 20})
    assert never_unavailable(harness)


def test_further_outcomes_of_the_job_wait_behind_and_a_kill_loses_none(harness: IngesterHarness) -> None:
    """What a settlement says of it later must not come first; the file survives the process."""
    pool = harness.pool().connect()
    (made,) = harness.insert_claimed(1)
    late = msgspec.structs.replace(made, status=Status.FAILURE, reason=Reason.LOST, success=False)
    with locking(harness, LOCK, made.id) as release:
        pool.send(made)
        harness.until(lambda: pool.all_durable)
        pool.send(late)
        harness.until(lambda: pool.all_durable)
        assert harness.info["locked"] == 2
        pool.barrier(1)
        harness.until(lambda: pool.barriers)
        harness.kill(signal.SIGKILL)
        harness.start()
        harness.until(lambda: harness.info["mode"] == "live")
        assert harness.info["locked"] == 2
        release()
    harness.until(lambda: not harness.info["locked"])
    assert ends(harness.rows) == {("completed", "ok"): 1}


def test_an_outcome_that_is_sent_again_waits_once(harness: IngesterHarness) -> None:
    """As a rescue does for as long as the row of a dead node's claim is locked: it must not fill the file."""
    pool = harness.pool().connect()
    (made,) = harness.insert_claimed(1)
    with locking(harness, LOCK, made.id):
        for _ in range(3):
            pool.send(made)
            harness.until(lambda: pool.all_durable)
        assert harness.info["locked"] == 1
    harness.until(lambda: not harness.info["locked"])
    assert ends(harness.rows) == {("completed", "ok"): 1}


def test_progress_of_a_locked_row_stops_no_other(harness: IngesterHarness) -> None:
    """Neither the progress of other attempts nor outcomes wait for it."""
    pool = harness.pool().connect()
    locked, free, ended = harness.insert_claimed(3)
    with locking(harness, LOCK, locked.id):
        for made in (locked, free):
            pool.send_message(
                Progress(
                    id=made.id, attempt=1, claimed_at=made.claimed_at, started_at=made.claimed_at, pid=77,
                    progress=0.5, note="half",
                )
            )  # fmt: skip
        pool.send(ended)
        harness.until(lambda: harness.rows.last(free.id)["note"] == "half")
        harness.until(lambda: pool.all_durable)
        assert harness.info["transaction_retries"] == 0
    assert never_unavailable(harness)


def test_a_locked_handler_stops_no_other(harness: IngesterHarness) -> None:
    """It is written when the lock is released; nothing waits for it."""
    pool = harness.pool().connect()
    harness.rows.sql("INSERT INTO workerd_handlers (name) VALUES ('a')")
    with locking(harness, "SELECT * FROM workerd_handlers WHERE name = 'a' FOR UPDATE") as release:
        pool.send_message(Seen(handler="a", signature=b"{}"))
        pool.send_message(Seen(handler="b", signature=b"{}"))
        harness.until(lambda: seen(harness) == {"b"})
        pool.send(*harness.insert_claimed(10))
        harness.until(lambda: pool.all_durable)
        assert harness.info["transaction_retries"] == 0
        release()
    harness.until(lambda: seen(harness) == {"a", "b"})
    assert never_unavailable(harness)


def seen(harness: IngesterHarness) -> set[str]:
    rows = harness.rows.sql("SELECT name FROM workerd_handlers WHERE seen_at IS NOT NULL")
    return {row["name"] for row in rows}
