"""The demand that a pool sends to the dispatcher."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pool.harness import Harness, make_pool, warm_up


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Harness]:
    with Harness(tmp_path, make_pool("gate", "noop", "echo", "pid", "stopping", "swallows")) as harness:
        harness.up()
        yield harness


def test_demand_is_the_number_of_idle_workers_at_first(tmp_path: Path, marks: Path) -> None:
    """Until the pool knows that its jobs are short."""
    with Harness(tmp_path, make_pool("gate", workers=3)) as node:
        node.give(*(node.claim("gate", folder=str(marks), sign=f"gate{n}") for n in range(10)))
        node.until(lambda: all((marks / f"gate{n}").exists() for n in range(3)))
        assert len(node.dispatcher.jobs) == 7
        (marks / "go").touch()
        node.until(lambda: len(node.ingester.outcomes) == 10)


def test_demand_includes_a_buffer_for_short_jobs(node: Harness) -> None:
    """Some milliseconds of work, at most one batch."""
    warm_up(node)
    node.give(*(node.claim("noop") for _ in range(2000)))
    node.until(lambda: len(node.ingester.outcomes) >= 2020)
    assert 5 < node.dispatcher.most_at_once <= node.config.dispatcher.batch


def test_a_new_dispatcher_gets_a_demand_counted_from_zero(node: Harness) -> None:
    """Running and waiting jobs stay with the pool."""
    node.run("noop")
    node.dispatcher.down()
    node.dispatcher.up()
    claims = [node.claim("noop") for _ in range(20)]
    node.dispatcher.jobs.extend(claims)
    node.outcomes(claims)
    assert node.dispatcher.demand.received <= 20
