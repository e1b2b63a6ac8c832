"""Retention deletes old ended jobs completely and keeps live and still needed ones."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.support import storing as s
from tests.support.rows import Rows
from workerd import errors
from workerd.clock import SECOND, to_text
from workerd.config.schedule_config import ScheduleConfig
from workerd.job import COOLER_KEY, Status
from workerd.store import intervals, job_control, retention, schedule_control
from workerd.store.base import Store

HOUR = 3600 * SECOND
AGES = "created_at = %s, finished_at = %s, ingested_at = %s"


def age(store: Store, hours: int, where: str = "1 = 1", *params: object) -> None:
    """Let these rows have ended so many hours ago."""
    moment = to_text(store.read(lambda tx: tx.now) - hours * HOUR)
    s.sql(
        store,
        f"UPDATE workerd_jobs SET {AGES} WHERE status <> 'new' AND {where}",
        moment,
        moment,
        moment,
        *params,
    )


def limits(store: Store, completed: int | None = 10, failure: int | None = 100) -> retention.RetentionLimits:
    now = store.read(lambda tx: tx.now)
    return retention.RetentionLimits(
        None if completed is None else now - completed * HOUR,
        None if failure is None else now - failure * HOUR,
    )


def purge(store: Store, given: retention.RetentionLimits, limit: int = 4) -> int:
    """All slices; how many rows went."""
    cursor: bytes | None = None
    rows = 0
    while True:
        done = store.run(
            lambda tx, cursor=cursor: retention.purge_jobs(tx, given, limit=limit, cursor=cursor)
        )
        rows, cursor = rows + done.rows, done.cursor
        if cursor is None:
            return rows


def left(store: Store) -> int:
    return int(s.value(store, "SELECT COUNT(*) FROM workerd_jobs"))


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_all_rows_of_a_job_go_together(store: Store, limit: int) -> None:
    """Also where a slice cuts a job in half, or one job has more rows than a slice."""
    for _ in range(3):
        s.enqueue(store, "h")
        for _ in range(3):
            s.finish(store, "h", Status.RETRY)
        s.finish(store, "h")
    age(store, 11)
    young = s.enqueue(store, "h")
    s.finish(store, "h", Status.RETRY)
    s.finish(store, "h")
    assert purge(store, limits(store), limit) == 12
    assert left(store) == 2
    assert s.status(store, young) == "completed"


def test_the_end_of_the_job_counts(store: Store) -> None:
    """Old attempts of a job that ended lately, or lives, stay with it."""
    for ending in (Status.COMPLETED, None):
        job_id = s.enqueue(store, "h")
        s.finish(store, "h", Status.RETRY)
        age(store, 1000, "id = %s", job_id)
        if ending is not None:
            s.finish(store, "h", ending)
    assert purge(store, limits(store)) == 0


def test_each_ending_has_its_own_time(store: Store) -> None:
    """Completed and cancelled by `completed`, failures by `failure`; None keeps them indefinitely."""
    for ending in (Status.COMPLETED, Status.CANCELLED, Status.FAILURE):
        s.enqueue(store, "h")
        s.finish(store, "h", ending)
    age(store, 50)
    assert purge(store, limits(store, None, None)) == 0
    assert purge(store, limits(store, 10, 100)) == 2
    assert purge(store, limits(store, 10, 40)) == 1


def test_a_job_that_is_retried_meanwhile_stays(store: Store, store_url: str, opened: s.Opening) -> None:
    """Jobs revived before their deletion are kept."""
    job_id = s.enqueue(store, "h")
    s.finish(store, "h", Status.FAILURE)
    age(store, 1000)
    store.run(lambda tx: job_control.retry(tx, job_id))
    assert store.run(lambda tx: retention._remove(tx, [job_id], Counter())) == 0
    assert s.status(store, job_id) == "new"


def test_jobs_of_a_request_go_with_it(store: Store) -> None:
    """While it is there its jobs are, however old; it goes when it ended long ago, with all of them."""
    steps = s.workflow("w", "a", "b<a")
    done, open_ = s.submit(store, steps), s.submit(store, steps)
    s.finish(store, "a")
    (first, second) = sorted(s.claims(store, "b"), key=lambda c: c.request_id != done)
    s.close(store, [s.outcome(first)])
    assert second.request_id == open_
    age(store, 1000, "status = 'completed'")
    moment = to_text(store.read(lambda tx: tx.now) - 11 * HOUR)
    s.sql(store, "UPDATE workerd_requests SET created_at = %s", moment)
    assert purge(store, limits(store)) == 0
    given = limits(store)
    assert store.run(lambda tx: retention.purge_requests(tx, given, limit=100)) == 0
    s.sql(store, "UPDATE workerd_requests SET completed_at = %s WHERE id = %s", moment, done)
    given = limits(store)
    assert store.run(lambda tx: retention.purge_requests(tx, given, limit=100)) == 3
    assert (left(store), s.request(store, open_)[0].status) == (2, "inprogress")


def test_a_schedules_last_run_is_kept(store: Store) -> None:
    """It decides whether the next may begin."""
    store.run(lambda tx: schedule_control.upsert(tx, {"w": ScheduleConfig(cron="* * * * *")}))
    made = s.submit(store, s.workflow("w", "a"))
    s.finish(store, "a")
    s.sql(store, "UPDATE workerd_schedules SET last_job = %s", made)
    old = "2020-01-01 00:00:00"
    s.sql(store, "UPDATE workerd_requests SET created_at = %s, completed_at = %s", old, old)
    given = limits(store)
    assert store.run(lambda tx: retention.purge_requests(tx, given, limit=100)) == 0
    s.sql(store, "UPDATE workerd_schedules SET last_job = NULL")
    assert store.run(lambda tx: retention.purge_requests(tx, given, limit=100)) == 2


def test_the_newest_runs_of_a_recurring_handler_are_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However old they are; of a cooler no more than these, however young."""
    monkeypatch.setattr(retention, "RUNS_KEPT", 3)
    store.run(
        lambda tx: schedule_control.upsert(
            tx, {"beat": ScheduleConfig(cooler=0.0), "mail": ScheduleConfig(cron="* * * * *")}
        )
    )
    store.run(lambda tx: intervals.ensure_next(tx, "beat", 0.0))
    for _ in range(6):
        s.finish(store, "beat", next_run_us=0)
        s.enqueue(store, "mail")
        s.finish(store, "mail")
    kept = "SELECT COUNT(*) FROM workerd_jobs WHERE handler = %s AND status = 'completed'"
    assert store.run(lambda tx: retention.purge_runs(tx, "beat", limit=2)) == 2
    assert store.run(lambda tx: retention.purge_runs(tx, "beat", limit=2)) == 1
    assert store.run(lambda tx: retention.purge_runs(tx, "beat", limit=2)) == 0
    age(store, 1000)
    purge(store, limits(store))
    assert (s.value(store, kept, "beat"), s.value(store, kept, "mail")) == (3, 3)
    live = "SELECT COUNT(*) FROM workerd_jobs WHERE unique_key = %s AND status IN ('new','scheduled')"
    assert s.value(store, live, COOLER_KEY) == 1


def test_a_big_request_goes_in_slices(store: Store) -> None:
    """Its row goes last, so that no job is ever without its request."""
    made = s.submit(store, s.workflow("w", *[f"j{n}" for n in range(10)]))
    for n in range(10):
        s.finish(store, f"j{n}")
    old = "2020-01-01 00:00:00"
    s.sql(store, "UPDATE workerd_requests SET created_at = %s, completed_at = %s", old, old)
    given = limits(store)
    removed = [store.run(lambda tx: retention.purge_requests(tx, given, limit=4)) for _ in range(4)]
    assert (removed, left(store)) == ([4, 4, 3, 0], 0)
    with pytest.raises(errors.NotFound):
        s.request(store, made)


def test_a_locked_row_stops_no_other(mysql: Store, mysql_url: str) -> None:
    """The rows of its job stay together, for the next round."""
    kept, gone = s.enqueue(mysql, "a"), s.enqueue(mysql, "a")
    s.finish(mysql, "a", Status.RETRY)
    s.finish(mysql, "a")
    age(mysql, 20)
    with Rows(mysql_url).connection() as lock, lock.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT * FROM workerd_jobs WHERE id = %s AND attempt = 1 FOR UPDATE", (kept,))
        assert purge(mysql, limits(mysql), limit=100) == 2
        assert s.value(mysql, "SELECT COUNT(*) FROM workerd_jobs WHERE id = %s", kept) == 2
        assert s.value(mysql, "SELECT COUNT(*) FROM workerd_jobs WHERE id = %s", gone) == 0
        lock.rollback()
    assert purge(mysql, limits(mysql), limit=100) == 2
