"""The demand that a pool sends to the dispatcher."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pool.harness import PoolHarness, make_pool, warm_up
from workerd.pool.capacity import BATCHES_IN_BUFFER


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[PoolHarness]:
    with PoolHarness(tmp_path, make_pool("gate", "noop", "echo", "pid", "stopping", "swallows")) as harness:
        harness.up()
        yield harness


def test_demand_is_the_number_of_idle_workers_at_first(tmp_path: Path, marks: Path) -> None:
    """Until the pool knows that its jobs are short."""
    with PoolHarness(tmp_path, make_pool("gate", workers=3)) as harness:
        harness.give(*(harness.claim("gate", folder=str(marks), sign=f"gate{n}") for n in range(10)))
        harness.until(lambda: all((marks / f"gate{n}").exists() for n in range(3)))
        assert len(harness.dispatcher.jobs) == 7
        (marks / "go").touch()
        harness.until(lambda: len(harness.ingester.outcomes) == 10)


def test_demand_includes_a_buffer_for_short_jobs(harness: PoolHarness) -> None:
    """Some milliseconds of work, at most two batches."""
    warm_up(harness)
    harness.give(*(harness.claim("noop") for _ in range(2000)))
    harness.until(lambda: len(harness.ingester.outcomes) >= 2020)
    assert 5 < harness.dispatcher.most_at_once <= BATCHES_IN_BUFFER * harness.config.dispatcher.batch


def test_a_new_dispatcher_gets_a_demand_counted_from_zero(harness: PoolHarness) -> None:
    """Running and waiting jobs stay with the pool."""
    harness.run("noop")
    harness.dispatcher.down()
    harness.dispatcher.up()
    claims = [harness.claim("noop") for _ in range(20)]
    harness.dispatcher.jobs.extend(claims)
    harness.outcomes(claims)
    assert harness.dispatcher.demand.received <= 20
