"""Depths and cycles of graphs, in time that grows no faster than the graph."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from workerd.cli.views import draw_graph
from workerd.config.build import build
from workerd.config.graph import cycle, depths, shortened
from workerd.config.reader import ConfigErrors, ConfigTree
from workerd.config.workflow_config import WorkflowJob
from workerd.gateway.dashboard.graph import columns, draw
from workerd.workflow import Graph

CHAIN = 10_000
"""Of a chain so long anything that looks at each pair of jobs takes minutes."""

NAMES = st.sampled_from("abcdefgh")
NEEDS = st.dictionaries(NAMES, st.lists(NAMES, max_size=4).map(tuple), max_size=8)


def depths_by_rounds(needs: dict[str, tuple[str, ...]]) -> dict[str, int]:
    """By the definition: in each round those whose needs are done."""
    found: dict[str, int] = {}
    while ready := [
        name
        for name, of in needs.items()
        if name not in found and all(need in found or need not in needs for need in of)
    ]:
        found |= {n: max((found[need] + 1 for need in needs[n] if need in found), default=0) for n in ready}
    return found


@given(NEEDS)
def test_depths_are_the_longest_paths(needs: dict[str, tuple[str, ...]]) -> None:
    """Each job comes after what it needs; what is in or behind a cycle is left out."""
    found = depths(needs)
    assert found == depths_by_rounds(needs)
    place = {name: n for n, name in enumerate(found)}
    assert all(place[need] < place[name] for name in found for need in needs[name] if need in needs)


@given(NEEDS)
def test_a_cycle_is_one(needs: dict[str, tuple[str, ...]]) -> None:
    """Each job of it needs the next, and it ends where it begins."""
    found = depths(needs)
    waiting = {name: of for name, of in needs.items() if name not in found}
    if waiting:
        way = cycle(waiting)
        assert way[0] == way[-1]
        assert all(after in needs[before] for before, after in itertools.pairwise(way))


def chain(length: int = CHAIN) -> list[WorkflowJob]:
    """A chain, the last job first: the order in which rounds find the least."""
    return [
        WorkflowJob(name=f"j{n}", handler="h", needs=(f"j{n - 1}",) if n else (), step=n)
        for n in reversed(range(length))
    ]


def test_a_long_chain_is_configured() -> None:
    """It is put into order, each job at the step of its depth."""
    jobs = [{"name": job.name, "handler": "h", "needs": list(job.needs)} for job in chain()]
    tree = ConfigTree()
    tree.add("test", {"handlers": {"h": {"call": "m:f"}}, "workflows": {"w": {"jobs": jobs}}})
    errors = ConfigErrors()
    made = build(tree, errors).workflows["w"].jobs
    assert [job.step for job in made] == list(range(CHAIN))


def test_a_long_chain_is_laid_out_and_printed() -> None:
    """The dashboard leaves the drawing of such a graph to the list of its jobs."""
    jobs = chain()
    assert len(columns(jobs)) == CHAIN
    assert draw(jobs, {}) is None
    assert len(draw_graph(Graph(name="w", jobs=tuple(jobs)), [])) == 2 * CHAIN


def test_a_long_cycle_is_named() -> None:
    """However far the first job is from it."""
    needs = {job.name: job.needs for job in chain()} | {"j0": ("j2",)}
    assert cycle(needs) in (["j2", "j1", "j0", "j2"], ["j0", "j2", "j1", "j0"], ["j1", "j0", "j2", "j1"])


def test_of_many_names_the_first_and_the_last_are_shown() -> None:
    """An error stays one that can be read."""
    names = [str(n) for n in range(100)]
    assert shortened(names) == [*names[:10], "(80 more)", *names[-10:]]
    assert shortened(names[:21]) == names[:21]
