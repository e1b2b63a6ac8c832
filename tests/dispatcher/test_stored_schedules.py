"""Schedules that are set at run time: every node fires them, each tick once, and coolers by name run."""

from __future__ import annotations

import pytest

from tests.support.dispatching import EVERY_SECOND, MakeHarness, job_rows
from workerd.clock import SECOND
from workerd.config.schedule_config import NamedSchedule
from workerd.store import schedule_control, schedules
from workerd.store.base import Store

EVERY = NamedSchedule(name="beat", handler="beat", cron=EVERY_SECOND)


def put(store: Store, schedule: NamedSchedule) -> None:
    store.run(lambda tx: schedule_control.set_(tx, schedule))


@pytest.mark.slow
def test_a_schedule_fires_from_when_it_is_set_until_it_is_removed(
    make_harness: MakeHarness, store: Store
) -> None:
    """The node learns of each by its poll; no node has its handler, and its jobs wait."""
    harness = make_harness(poll=0.05)
    harness.start()
    harness.until(lambda: harness.is_up)
    put(store, EVERY)
    harness.until(lambda: len(job_rows(store, "beat")) >= 2)
    store.run(lambda tx: schedule_control.remove(tx, "beat"))
    harness.serve(0.3)
    made = len(job_rows(store, "beat"))
    harness.serve(2.2)
    assert len(job_rows(store, "beat")) == made
    assert harness.beat.info["fired"] == made


@pytest.mark.slow
def test_each_tick_fires_once_on_three_nodes_while_it_is_set_removed_and_a_node_is_killed(
    make_harness: MakeHarness, store: Store
) -> None:
    """No tick has two jobs, and none is left out while the schedule stays as it is."""
    harnesses = [make_harness(name, poll=0.05) for name in ("one", "two", "three")]
    for harness in harnesses:
        harness.start()
    living = list(harnesses)

    def until_more(count: int) -> None:
        wanted = len(job_rows(store, "beat")) + count

        def made() -> bool:
            for harness in living:
                harness.turn()
            return len(job_rows(store, "beat")) >= wanted

        harnesses[0].until(made)

    put(store, EVERY)
    until_more(2)
    for n in range(3):
        store.run(lambda tx: schedule_control.remove(tx, "beat"))
        put(store, NamedSchedule(name="beat", handler="beat", cron=EVERY_SECOND, vars={"n": n}))
        until_more(1)
    harnesses[2].kill()
    living.pop()
    before = len(job_rows(store, "beat"))
    until_more(3)
    due = [run_at for _, _, run_at in job_rows(store, "beat")]
    assert len(due) == len(set(due))
    steady = due[before - 1 :]
    assert steady == [steady[0] + n * SECOND for n in range(len(steady))]


def test_coolers_by_name_run_one_after_the_other(make_harness: MakeHarness, store: Store) -> None:
    """Two of one handler, each with one run at a time, set in the configuration and at run time."""
    configured = NamedSchedule(name="fast", handler="cool", cooler=0.1, vars={"which": "fast"})
    harness = make_harness(poll=0.05, schedules={"fast": configured})
    harness.start()
    put(store, NamedSchedule(name="slow", handler="cool", cooler=3600.0, vars={"which": "slow"}))
    harness.until(lambda: len(job_rows(store, "cool")) == 2)
    harness.serve(0.5)
    assert len(job_rows(store, "cool")) == 2
    store.run(lambda tx: tx.execute("UPDATE workerd_jobs SET status = 'cancelled', finished_at = run_at"))
    harness.until(lambda: len(job_rows(store, "cool")) == 3)
    assert store.read(lambda tx: schedules.find(tx, "fast")).last_job == job_rows(store, "cool")[2][0]


def test_a_schedule_that_cannot_be_read_keeps_no_other_from_firing(
    make_harness: MakeHarness, store: Store
) -> None:
    """Another program may write any row."""
    put(store, EVERY)
    put(store, NamedSchedule(name="bad", handler="bad", cron=EVERY_SECOND))
    store.run(
        lambda tx: tx.execute("UPDATE workerd_schedules SET expression = 'every day' WHERE name = 'bad'")
    )
    harness = make_harness(poll=0.05)
    harness.start()
    harness.until(lambda: job_rows(store, "beat"))
    assert not job_rows(store, "bad")
