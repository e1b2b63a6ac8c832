"""Recurring work: cron ticks, intervals, and the sync of schedules."""

from __future__ import annotations

import pytest

from tests.support import storing
from tests.support.dispatching import EVERY_SECOND, MakeHarness, job_rows, pool_of
from tests.support.rows import Rows
from workerd.clock import SECOND, to_text
from workerd.config.schedule_config import ScheduleConfig
from workerd.job import COOLER_KEY, new_id
from workerd.store import intervals, job_control, nodes, schedule_control, schedules
from workerd.store.base import Store
from workerd.store.nodes import NodeRecord


@pytest.mark.slow
def test_each_tick_inserts_one_job(make_harness: MakeHarness, store: Store) -> None:
    """A cron of every second makes one job a second, due at the full second."""
    harness = make_harness(poll=0.05, pools=pool_of("beat", ScheduleConfig(cron=EVERY_SECOND)))
    harness.start()
    harness.until(lambda: len(job_rows(store, "beat")) >= 4)
    due = [run_at for _, _, run_at in job_rows(store, "beat")]
    assert due == [due[0] + n * SECOND for n in range(len(due))]
    assert due[0] % SECOND == 0


@pytest.mark.slow
def test_two_nodes_fire_each_tick_once_and_never_claim_the_same(
    make_harness: MakeHarness, store: Store
) -> None:
    """Both watch the same schedule and claim the same handler; one of them is killed in the middle."""
    pools = pool_of("beat", ScheduleConfig(cron=EVERY_SECOND))
    harnesses = [make_harness(name, poll=0.05, pools=pools) for name in ("one", "two")]
    got = []
    for harness in harnesses:
        harness.start()
        pool = harness.pool("beat").connect()
        pool.demand(100)
        got.append(pool)

    def served(count: int) -> bool:
        for harness in harnesses:
            harness.turn()
        return sum(len(pool.claims) for pool in got) >= count

    harnesses[0].until(lambda: served(3))
    harnesses[1].kill()
    harnesses[0].until(lambda: served(6))
    due = [run_at for _, _, run_at in job_rows(store, "beat")]
    assert due == [due[0] + n * SECOND for n in range(len(due))]
    assert not got[0].claims.keys() & got[1].claims.keys()


def test_missed_ticks_fire_once(make_harness: MakeHarness, store: Store) -> None:
    """`misfire = "once"`: after an hour of silence the newest missed tick fires, and no other."""
    wanted = ScheduleConfig(cron="* * * * *")
    store.run(lambda tx: schedule_control.upsert(tx, {"beat": wanted}))
    hour = 3600 * SECOND
    before = store.run(lambda tx: (tx.now // (60 * SECOND)) * 60 * SECOND)
    store.run(lambda tx: tx.execute("UPDATE workerd_schedules SET last_tick = %s", (to_text(before - hour),)))
    harness = make_harness(poll=0.05, pools=pool_of("beat", wanted))
    harness.start()
    harness.until(lambda: job_rows(store, "beat"))
    harness.serve(0.5)
    due = [run_at for _, _, run_at in job_rows(store, "beat")]
    assert due[0] >= before
    assert len(due) == 1 or due[1:] == [due[0] + 60 * SECOND]  # the next minute began just now


@pytest.mark.slow
def test_a_tick_waits_for_the_run_before_it(make_harness: MakeHarness, store: Store) -> None:
    """`overlap = "queue"`: while the last run lives no tick fires, and none is lost."""
    harness = make_harness(
        poll=0.05, pools=pool_of("beat", ScheduleConfig(cron=EVERY_SECOND, overlap="queue"))
    )
    harness.start()
    harness.until(lambda: len(job_rows(store, "beat")) == 1)
    harness.serve(2.2)
    (only,) = job_rows(store, "beat")
    store.run(lambda tx: job_control.cancel(tx, only[0]))
    harness.until(lambda: len(job_rows(store, "beat")) == 2)
    assert job_rows(store, "beat")[1][2] == only[2] + SECOND


@pytest.mark.parametrize("ends", [False, True])
def test_ticks_that_wait_outlive_the_dispatcher(
    make_harness: MakeHarness, store: Store, *, ends: bool
) -> None:
    """One that starts anew fires those that waited for the last run, be it over meanwhile or not."""
    wanted = ScheduleConfig(cron=EVERY_SECOND, overlap="queue")
    last = store.run(lambda tx: (tx.now // SECOND - 20) * SECOND)
    job = storing.enqueue(store, "beat", run_at=last)
    store.run(lambda tx: schedule_control.upsert(tx, {"beat": wanted}))
    storing.sql(store, "UPDATE workerd_schedules SET last_tick = %s, last_job = %s", to_text(last), job)
    harness = make_harness(poll=0.05, pools=pool_of("beat", wanted))
    if ends:
        store.run(lambda tx: job_control.cancel(tx, job))
    harness.start()
    if not ends:
        harness.until(harness.settled)
        assert len(job_rows(store, "beat")) == 1
        store.run(lambda tx: job_control.cancel(tx, job))
    harness.until(lambda: len(job_rows(store, "beat")) == 2)
    assert job_rows(store, "beat")[1][2] == last + SECOND


def test_a_tick_is_skipped_while_the_last_run_lives(make_harness: MakeHarness, store: Store) -> None:
    """`overlap = "skip"`: one live run, however many ticks pass."""
    harness = make_harness(
        poll=0.05, pools=pool_of("beat", ScheduleConfig(cron=EVERY_SECOND, overlap="skip"))
    )
    harness.start()
    harness.until(lambda: len(job_rows(store, "beat")) == 1)
    harness.serve(2.2)
    assert len(job_rows(store, "beat")) == 1


@pytest.mark.slow
def test_a_paused_schedule_fires_nothing(make_harness: MakeHarness, store: Store) -> None:
    """Pausing stops the ticks; resuming continues from then."""
    harness = make_harness(poll=0.05, pools=pool_of("beat", ScheduleConfig(cron=EVERY_SECOND)))
    harness.start()
    harness.until(lambda: job_rows(store, "beat"))
    store.run(lambda tx: schedule_control.pause(tx, "beat", "me"))
    count = len(job_rows(store, "beat"))
    harness.serve(2.2)
    assert len(job_rows(store, "beat")) <= count + 1
    count = len(job_rows(store, "beat"))
    store.run(lambda tx: schedule_control.resume(tx, "beat"))
    harness.until(lambda: len(job_rows(store, "beat")) > count)


def test_a_cooler_gets_its_row(make_harness: MakeHarness, store: Store) -> None:
    """The first run is inserted at once, with the reserved key, and only one."""
    harness = make_harness(poll=0.05, pools=pool_of("cool", ScheduleConfig(cooler=60.0)))
    harness.start()
    pool = harness.pool("cool").connect()
    pool.demand(2)
    harness.until(lambda: pool.claims)
    assert [claim.unique_key for claim in pool.claims.values()] == [COOLER_KEY]
    assert len(job_rows(store, "cool")) == 1


@pytest.mark.slow
def test_a_schedule_that_no_node_has_is_removed(make_harness: MakeHarness, store: Store) -> None:
    """The schedule and its waiting row are removed once no live node has it configured."""
    store.run(lambda tx: schedule_control.upsert(tx, {"old": ScheduleConfig(cooler=3600.0)}))
    store.run(lambda tx: intervals.ensure_next(tx, "old", 3600.0))
    assert job_rows(store, "old")
    harness = make_harness(poll=0.05)
    harness.start()
    harness.until(lambda: not store.read(schedules.list_))
    assert not job_rows(store, "old")


def test_a_schedule_of_another_live_node_stays(make_harness: MakeHarness, store: Store) -> None:
    """It is another node that has it configured."""
    other = NodeRecord(id=new_id(), name="other", info=b'{"schedules": ["theirs"]}')
    store.run(lambda tx: nodes.register(tx, other, 600.0))
    store.run(lambda tx: schedule_control.upsert(tx, {"theirs": ScheduleConfig(cron="0 0 1 1 *")}))
    harness = make_harness(poll=0.05)
    harness.start()
    harness.until(lambda: harness.is_up)
    harness.serve(0.5)
    assert store.read(schedules.list_)


AHEAD = 600 * SECOND


@pytest.mark.slow
def test_a_cron_goes_on_when_the_clock_of_the_store_was_set_back(
    make_harness: MakeHarness, store: Store
) -> None:
    """Two nodes find the last tick ten minutes ahead: each tick from now on fires, once."""
    pools = pool_of("beat", ScheduleConfig(cron=EVERY_SECOND))
    store.run(lambda tx: schedule_control.upsert(tx, {"beat": ScheduleConfig(cron=EVERY_SECOND)}))
    ahead = store.run(lambda tx: tx.now + AHEAD)
    store.run(lambda tx: tx.execute("UPDATE workerd_schedules SET last_tick = %s", (to_text(ahead),)))
    harnesses = [make_harness(name, poll=0.05, pools=pools) for name in ("one", "two")]
    for harness in harnesses:
        harness.start()

    def fired() -> bool:
        for harness in harnesses:
            harness.turn()
        return len(job_rows(store, "beat")) >= 4

    harnesses[0].until(fired)
    due = [run_at for _, _, run_at in job_rows(store, "beat")]
    assert due == [due[0] + n * SECOND for n in range(len(due))]
    assert due[-1] < ahead


def test_a_cooler_goes_on_when_the_clock_of_the_store_was_set_back(
    make_harness: MakeHarness, store: Store
) -> None:
    """Its waiting run was scheduled in what is now the future: the pause before it stays what it was."""
    store.run(lambda tx: schedule_control.upsert(tx, {"sync": ScheduleConfig(cooler=0.5)}))
    store.run(lambda tx: intervals.ensure_next(tx, "sync", 0.5))
    (made,) = job_rows(store, "sync")
    ahead = store.run(lambda tx: tx.now + AHEAD)
    store.run(
        lambda tx: tx.execute(
            "UPDATE workerd_jobs SET status = 'scheduled', run_at = %s, created_at = %s",
            (to_text(ahead + SECOND // 2), to_text(ahead)),
        )
    )
    harness = make_harness(poll=0.05, pools=pool_of("sync", ScheduleConfig(cooler=0.5)))
    harness.start()
    pool = harness.pool("sync").connect()
    pool.demand(1)
    harness.until(lambda: pool.claims)
    assert [claim.id for claim in pool.claims.values()] == [made[0]]


@pytest.mark.slow
def test_a_schedule_whose_jobs_the_store_refuses_stops_no_other(
    make_harness: MakeHarness, store: Store, store_url: str
) -> None:
    """The other goes on; its own ticks are made up for once the store takes them."""
    rows, condition = Rows(store_url), "NEW.handler = 'bad'"
    if rows.sqlite:
        rows.sql(
            f"CREATE TRIGGER curse BEFORE INSERT ON workerd_jobs WHEN {condition}"
            " BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )
    else:
        rows.sql(
            f"CREATE TRIGGER curse BEFORE INSERT ON workerd_jobs FOR EACH ROW IF {condition}"
            " THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'refused'; END IF"
        )
    every = ScheduleConfig(cron=EVERY_SECOND)
    harness = make_harness(poll=0.05, pools=pool_of("bad", every) | pool_of("good", every))
    try:
        harness.start()
        harness.until(lambda: len(job_rows(store, "good")) >= 8)
        assert not job_rows(store, "bad")
        harness.until(lambda: 'schedule "bad"' in harness.beat.trouble)
    finally:
        rows.sql("DROP TRIGGER curse")
    harness.until(lambda: job_rows(store, "bad"))
    harness.until(lambda: not harness.beat.trouble)


@pytest.mark.slow
@pytest.mark.parametrize("store_url", ["mysql"], indirect=True)
def test_a_locked_schedule_stops_no_other(make_harness: MakeHarness, store: Store, store_url: str) -> None:
    """The ticks of the other fire while the row of one is locked; its own are made up for."""
    every = ScheduleConfig(cron=EVERY_SECOND)
    harness = make_harness(poll=0.05, pools=pool_of("held", every) | pool_of("other", every))
    harness.start()
    harness.until(lambda: job_rows(store, "held") and job_rows(store, "other"))
    with Rows(store_url).connection() as lock, lock.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT * FROM workerd_schedules WHERE name = 'held' FOR UPDATE")
        held, others = len(job_rows(store, "held")), len(job_rows(store, "other"))
        harness.until(lambda: len(job_rows(store, "other")) >= others + 6)
        assert len(job_rows(store, "held")) == held
        lock.rollback()
    harness.until(lambda: len(job_rows(store, "held")) > held)
