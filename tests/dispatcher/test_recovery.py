"""Settlement when the news come in another order than usual, against a real dispatcher process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dispatching import Pool, World, node
from workerd.config.model import Config, DispatcherConfig, StoreConfig
from workerd.store import jobs
from workerd.store.base import Store
from workerd.store.jobs import NewJob

LIFE = 50
"""Of a pool that connects before the dispatcher hears of it."""


@pytest.fixture
def world(tmp_path: Path, store: Store, store_url: str) -> Iterator[World]:
    """A dispatcher that has not heard of any pool."""
    config = Config(
        node=node(tmp_path),
        store=StoreConfig(url=store_url),
        dispatcher=DispatcherConfig(lease=30.0, poll=0.5),
    )
    world = World(tmp_path, store, config)
    world.start(told=False)
    yield world
    world.close()


def early(world: World) -> Pool:
    """A pool that the dispatcher knows by its connection alone."""
    pool = Pool(world, "h", ("h",), LIFE).connect()
    world.until(lambda: world.beat.info.get("pools"))
    return pool


def test_a_pool_that_connects_before_it_is_named_is_asked_what_it_holds(world: World, store: Store) -> None:
    """The supervisor forks many at once; older news must not make the dispatcher forget who is there."""
    pool = early(world)
    world.tell_roster()
    world.pools["h"] = LIFE
    world.tell_roster()
    world.until(lambda: world.settled())
    store.run(lambda tx: jobs.insert(tx, [NewJob(handler="h") for _ in range(3)]))
    pool.demand(3)
    world.until(lambda: len(pool.claims) == 3)
    rounds = world.beat.info["settlements"]
    dying = world.pool("g").connect()
    world.until(lambda: "g" in world.beat.info["pools"])
    world.bury(dying)
    world.until(lambda: world.settled(rounds + 1))
    assert not world.ingester.outcomes
    pool.disconnect()


def test_a_pool_that_is_gone_before_it_is_named_is_not_waited_for(world: World) -> None:
    """News of a younger one say that it is dead."""
    early(world).disconnect()
    world.tell_roster()
    world.pools["g"] = LIFE + 1
    world.tell_roster()
    world.until(lambda: world.settled())
    assert not world.ingester.outcomes
