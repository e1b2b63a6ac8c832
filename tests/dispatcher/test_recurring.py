"""What the dispatcher begins by itself: ticks, chains, requests; and what it removes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.dispatching import World, node
from workerd.clock import SECOND
from workerd.config.model import (
    Config,
    DispatcherConfig,
    HandlerConfig,
    PickupConfig,
    PoolConfig,
    RetentionConfig,
    ScheduleConfig,
    StoreConfig,
    WorkflowConfig,
    WorkflowJob,
)
from workerd.job import COOLER_KEY, new_id
from workerd.runtime.sockets import poke
from workerd.store import job_control, jobs, requests, schedules
from workerd.store.base import Store
from workerd.store.jobs import NewJob
from workerd.store.nodes import NodeRecord

Build = Callable[..., World]

EVERY_SECOND = "* * * * * *"
FLOW = WorkflowConfig(
    name="flow",
    jobs=(
        WorkflowJob(name="first", handler="h", step=0),
        WorkflowJob(name="second", handler="h", needs=("first",), step=1),
    ),
)


def pool_of(name: str, schedule: ScheduleConfig) -> dict[str, PoolConfig]:
    return {
        name: PoolConfig(
            name=name, handlers=(HandlerConfig(name=name, call="x:y", pool=name, schedule=schedule),)
        )
    }


@pytest.fixture
def build(tmp_path: Path, store: Store, store_url: str) -> Iterator[Build]:
    """Makes the world around one dispatcher with these parts of the configuration."""
    worlds: list[World] = []

    def building(name: str = "test", **parts: object) -> World:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        config = Config(
            node=node(folder, name),
            store=StoreConfig(url=store_url),
            dispatcher=DispatcherConfig(poll=0.05),
            **parts,  # type: ignore[arg-type]
        )
        worlds.append(World(folder, store, config))
        return worlds[-1]

    yield building
    for world in worlds:
        world.close()


def rows(store: Store, handler: str) -> list[tuple[bytes, str, int]]:
    """Id, status and due second of every row of a handler, by due time."""
    found = store.read(
        lambda tx: tx.query(
            "SELECT id, status, run_at FROM workerd_jobs WHERE handler = %s ORDER BY run_at", (handler,)
        )
    )
    from workerd.store import columns

    return [(row[0], columns.text(row[1]), columns.time(row[2])) for row in found]


def test_each_tick_inserts_one_job(build: Build, store: Store) -> None:
    """A cron of every second makes one job a second, due at the full second."""
    world = build(pools=pool_of("beat", ScheduleConfig(cron=EVERY_SECOND)))
    world.start()
    world.until(lambda: len(rows(store, "beat")) >= 4)
    due = [run_at for _, _, run_at in rows(store, "beat")]
    assert due == [due[0] + n * SECOND for n in range(len(due))]
    assert due[0] % SECOND == 0


def test_two_nodes_fire_each_tick_once_and_never_claim_the_same(build: Build, store: Store) -> None:
    """Both watch the same schedule and claim the same handler; one of them is killed in the middle."""
    pools = pool_of("beat", ScheduleConfig(cron=EVERY_SECOND))
    worlds = [build(name, pools=pools) for name in ("one", "two")]
    got = []
    for world in worlds:
        world.start()
        pool = world.pool("beat").connect()
        pool.demand(100)
        got.append(pool)

    def served(count: int) -> bool:
        for world in worlds:
            world.turn()
        return sum(len(pool.claims) for pool in got) >= count

    worlds[0].until(lambda: served(3))
    worlds[1].kill()
    worlds[0].until(lambda: served(6))
    due = [run_at for _, _, run_at in rows(store, "beat")]
    assert due == [due[0] + n * SECOND for n in range(len(due))]
    assert not got[0].claims.keys() & got[1].claims.keys()


def test_ticks_that_nobody_saw_are_made_up_for_once(build: Build, store: Store) -> None:
    """`misfire = "once"`: after an hour of silence the newest missed tick fires, and no other."""
    wanted = ScheduleConfig(cron="* * * * *")
    store.run(lambda tx: schedules.upsert(tx, {"beat": wanted}))
    hour = 3600 * SECOND
    before = store.run(lambda tx: (tx.now // (60 * SECOND)) * 60 * SECOND)
    from workerd.clock import to_text

    store.run(lambda tx: tx.execute("UPDATE workerd_schedules SET last_tick = %s", (to_text(before - hour),)))
    world = build(pools=pool_of("beat", wanted))
    world.start()
    world.until(lambda: rows(store, "beat"))
    world.serve(0.5)
    due = [run_at for _, _, run_at in rows(store, "beat")]
    assert due[0] >= before
    assert len(due) == 1 or due[1:] == [due[0] + 60 * SECOND]  # the next minute began just now


def test_a_tick_waits_for_the_run_before_it(build: Build, store: Store) -> None:
    """`overlap = "queue"`: while the last run lives no tick fires, and none is lost."""
    world = build(pools=pool_of("beat", ScheduleConfig(cron=EVERY_SECOND, overlap="queue")))
    world.start()
    world.until(lambda: len(rows(store, "beat")) == 1)
    world.serve(2.2)
    (only,) = rows(store, "beat")
    store.run(lambda tx: job_control.cancel(tx, only[0]))
    world.until(lambda: len(rows(store, "beat")) == 2)
    assert rows(store, "beat")[1][2] == only[2] + SECOND


def test_a_tick_is_skipped_while_the_last_run_lives(build: Build, store: Store) -> None:
    """`overlap = "skip"`: one live run, however many ticks pass."""
    world = build(pools=pool_of("beat", ScheduleConfig(cron=EVERY_SECOND, overlap="skip")))
    world.start()
    world.until(lambda: len(rows(store, "beat")) == 1)
    world.serve(2.2)
    assert len(rows(store, "beat")) == 1


def test_a_paused_schedule_fires_nothing(build: Build, store: Store) -> None:
    """Pausing stops the ticks; resuming goes on from then."""
    world = build(pools=pool_of("beat", ScheduleConfig(cron=EVERY_SECOND)))
    world.start()
    world.until(lambda: rows(store, "beat"))
    store.run(lambda tx: schedules.pause(tx, "beat", "me"))
    count = len(rows(store, "beat"))
    world.serve(2.2)
    assert len(rows(store, "beat")) <= count + 1
    count = len(rows(store, "beat"))
    store.run(lambda tx: schedules.resume(tx, "beat"))
    world.until(lambda: len(rows(store, "beat")) > count)


def test_a_cooler_gets_its_row(build: Build, store: Store) -> None:
    """The chain begins at once with a row that holds the reserved key, and only one."""
    world = build(pools=pool_of("cool", ScheduleConfig(cooler=60.0)))
    world.start()
    pool = world.pool("cool").connect()
    pool.demand(2)
    world.until(lambda: pool.claims)
    assert [claim.unique_key for claim in pool.claims.values()] == [COOLER_KEY]
    assert len(rows(store, "cool")) == 1


def test_what_no_node_has_configured_stops(build: Build, store: Store) -> None:
    """The schedule and the waiting row of its chain go, when no living node knows them."""
    store.run(lambda tx: schedules.upsert(tx, {"old": ScheduleConfig(cooler=3600.0)}))
    store.run(lambda tx: schedules.ensure_chain(tx, "old", 3600.0))
    assert rows(store, "old")
    world = build()
    world.start()
    world.until(lambda: not store.read(schedules.list_))
    assert not rows(store, "old")


def test_what_another_node_has_configured_stays(build: Build, store: Store) -> None:
    """A schedule of a living node is left alone."""
    from workerd.store import nodes

    other = NodeRecord(id=new_id(), name="other", info=b'{"schedules": ["theirs"]}')
    store.run(lambda tx: nodes.register(tx, other, 600.0))
    store.run(lambda tx: schedules.upsert(tx, {"theirs": ScheduleConfig(cron="0 0 1 1 *")}))
    world = build()
    world.start()
    world.until(lambda: world.beat.state == "up")
    world.serve(0.5)
    assert store.read(schedules.list_)


def test_a_request_is_picked_up(build: Build, store: Store) -> None:
    """A queuing request gets the jobs of its first step, and they carry what it hands them."""
    world = build(workflows={"flow": FLOW})
    world.start()
    pool = world.pool("h").connect()
    pool.demand(5)
    world.until(lambda: world.beat.state == "up")
    made = store.run(lambda tx: requests.submit(tx, "flow", b'{"id": 7}'))
    poke(world.paths.wake)
    world.until(lambda: pool.claims)
    (claim,) = pool.claims.values()
    assert (claim.request_id, claim.name, claim.params) == (made.id, "first", b'{"id": 7}')


def test_requests_may_be_picked_up_at_set_times(build: Build, store: Store) -> None:
    """With `pickup.requests_new` they wait for its tick; all that are there begin then."""
    world = build(workflows={"flow": FLOW}, pickup=PickupConfig(requests_new="*/2 * * * * *"))
    for _ in range(60):
        store.run(lambda tx: requests.submit(tx, "flow", b"{}"))
    world.start()
    world.until(lambda: len(rows(store, "h")) == 60)


def test_a_request_that_was_left_behind_goes_on(build: Build, store: Store) -> None:
    """Done half by hand: the sweep inserts what should have followed."""
    world = build(workflows={"flow": FLOW})
    made = store.run(lambda tx: requests.submit(tx, "flow", b"{}"))
    store.run(
        lambda tx: tx.execute("UPDATE workerd_requests SET status = 'inprogress' WHERE id = %s", (made.id,))
    )
    world.start()
    world.until(lambda: rows(store, "h"))


def test_a_recurring_workflow_runs(build: Build, store: Store) -> None:
    """A workflow with a cooler begins by itself."""
    recurring = WorkflowConfig(name="loop", jobs=FLOW.jobs[:1], schedule=ScheduleConfig(cooler=60.0))
    world = build(workflows={"loop": recurring})
    world.start()
    pool = world.pool("h").connect()
    pool.demand(5)
    world.until(lambda: pool.claims)
    (claim,) = pool.claims.values()
    assert claim.workflow == "loop"


def test_a_node_without_pickup_begins_nothing(build: Build, store: Store) -> None:
    """`pickup.enabled = false`: no tick, no request, no chain."""
    world = build(
        pools=pool_of("beat", ScheduleConfig(cron=EVERY_SECOND)),
        workflows={"flow": FLOW},
        pickup=PickupConfig(enabled=False),
    )
    store.run(lambda tx: requests.submit(tx, "flow", b"{}"))
    world.start()
    world.until(lambda: world.beat.state == "up")
    world.serve(1.5)
    assert not rows(store, "beat")
    assert not rows(store, "h")


def test_what_ended_long_ago_is_removed(build: Build, store: Store) -> None:
    """Retention removes ended jobs and leaves those that live."""
    ids = [i.id for i in store.run(lambda tx: jobs.insert(tx, [NewJob(handler="h") for _ in range(30)]))]
    for job in ids[:20]:
        store.run(lambda tx, j=job: job_control.cancel(tx, j))
    world = build(retention=RetentionConfig(completed=0.5, failure=0.5))
    world.start()
    world.until(lambda: len(rows(store, "h")) == 10)
    assert {status for _, status, _ in rows(store, "h")} == {"new"}
