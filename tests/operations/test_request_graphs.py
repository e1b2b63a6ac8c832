"""Requests with a graph are submitted once, however often and by however many they are sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from workerd.config.model import Config
from workerd.errors import Conflict, InvalidValue
from workerd.operations import request_graphs
from workerd.operations.request_graphs import SLICE_JOBS, Plan
from workerd.store import requests
from workerd.store.base import Store, Tx

ID = b"r" * 16


def jobs(count: int, **vars_: Any) -> list[dict[str, Any]]:
    return [{"name": f"n{n}", "handler": "mail", "vars": vars_} for n in range(count)]


def chain(count: int, **vars_: Any) -> list[dict[str, Any]]:
    """A graph that is kept in rows."""
    return [{**job, "needs": [f"n{n - 1}"] if n else []} for n, job in enumerate(jobs(count, **vars_))]


def plan(store: Store, config: Config, body: dict[str, Any]) -> Plan:
    return store.read(lambda tx: request_graphs.checked(tx, config, body))


@pytest.mark.parametrize("large", [False, True], ids=["at once", "in slices"])
@pytest.mark.parametrize(
    ("first", "other"),
    [
        (jobs(3), jobs(2)),
        (jobs(3), jobs(4)),
        (jobs(3), jobs(3, a=1)),
        (jobs(3), [{**job, "handler": "beat"} for job in jobs(3)]),
        (jobs(2), [{**job, "name": f"x{n}"} for n, job in enumerate(jobs(2))]),
        (chain(300), chain(300, a=1)),
        (chain(300), [{**job, "needs": []} if n == 7 else job for n, job in enumerate(chain(300))]),
        (chain(3), chain(3, a=1)),
    ],
)  # fmt: skip
def test_a_key_is_of_one_body(
    store: Store, config: Config, first: list[Any], other: list[Any], *, large: bool
) -> None:
    """Other handlers, vars, names, needs or another number of jobs are another body."""

    def submit(given: list[Any]) -> bool:
        made = plan(store, config, {"jobs": given})
        if large:
            return request_graphs.submit_in_slices(store.run, made, ID).created
        done = store.run(lambda tx: request_graphs.submit(tx, made, ID))
        if not done.created:
            store.read(lambda tx: request_graphs.check_repeat(tx, ID, made))
        return done.created

    assert submit(first)
    assert not submit([dict(reversed(job.items())) for job in first])
    with pytest.raises(InvalidValue, match="another body"):
        submit(other)


def test_a_request_of_an_earlier_version_may_be_repeated(store: Store, config: Config) -> None:
    """It has no digest of its jobs."""
    made = plan(store, config, {"jobs": jobs(3)})
    earlier = made._replace(graph=msgspec.structs.replace(made.graph, digest=""))
    store.run(lambda tx: request_graphs.submit(tx, earlier, ID))
    assert not store.read(lambda tx: request_graphs.check_repeat(tx, ID, made))


class Interrupted:
    """Runs transactions, and something else before one of them."""

    def __init__(self, store: Store, before: int, other: Callable[[], object]) -> None:
        self.store = store
        self.before = before
        self.other = other

    def __call__(self, work: Callable[[Tx], Any]) -> Any:
        self.before -= 1
        if self.before == 0:
            self.other()
        return self.store.run(work)


@pytest.mark.parametrize("before", range(2, 6))
def test_two_that_send_the_same_at_once(store: Store, config: Config, before: int) -> None:
    """A repeat completes the request while the first call is under way, and both have it."""
    made = plan(store, config, {"jobs": jobs(2 * SLICE_JOBS + 1)})
    repeats = []

    def repeat() -> None:
        repeats.append(request_graphs.submit_in_slices(store.run, made, ID))

    first = request_graphs.submit_in_slices(Interrupted(store, before, repeat), made, ID)
    [second] = repeats
    assert (first.created, second.created, first.id) == (True, False, second.id)
    row = store.read(lambda tx: requests.row_of(tx, ID))
    assert (row.total, row.pending) == (2 * SLICE_JOBS + 1, "release")


def test_one_that_ended_before_it_was_complete_takes_no_more(store: Store, config: Config) -> None:
    """A person has cancelled it."""
    made = plan(store, config, {"jobs": jobs(2 * SLICE_JOBS + 1)})
    cancel = Interrupted(store, 3, lambda: store.run(lambda tx: requests.cancel(tx, ID)))
    with pytest.raises(Conflict, match="takes no more jobs"):
        request_graphs.submit_in_slices(cancel, made, ID)
