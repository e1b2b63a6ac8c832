"""Requests that were left behind half-done: every state of their rows goes on where it stopped."""

from __future__ import annotations

import pytest

from tests.support import storing
from workerd import workflow as wf
from workerd.job import Status
from workerd.store import requests, stuck_requests
from workerd.store.base import Store

DELETE = storing.workflow("delete", "get", "del1<get", "del2<get", "tell<del1,del2")


def row(
    store: Store, request_id: bytes, status: str, *, steps: bool = True, error: str | None = None
) -> None:
    storing.sql(
        store,
        "INSERT INTO workerd_requests (id, workflow, params, status, steps, error)"
        " VALUES (%s, 'delete', '{}', %s, %s, %s)",
        request_id,
        status,
        wf.encode(wf.graph_of(DELETE)).decode() if steps else None,
        error,
    )


def put(store: Store, request_id: bytes, **given: str) -> None:
    for name, status in given.items():
        ended = status in ("completed", "failure", "cancelled")
        job_id = storing.enqueue(
            store, name, request_id=request_id, name=name, step=0 if name == "get" else 1
        )
        storing.sql(
            store,
            "UPDATE workerd_jobs SET status = %s, finished_at = %s WHERE id = %s",
            status,
            "2099-01-01 00:00:00" if ended else None,
            job_id,
        )


HALF_DONE: list[tuple[dict[str, str], bool, tuple[str, dict[str, str]]]] = [
    ({}, False, ("inprogress", {"get": "new"})),
    ({}, True, ("inprogress", {"get": "new"})),
    ({"get": "completed"}, False, ("inprogress", {"get": "completed", "del1": "new", "del2": "new"})),
    ({"get": "completed"}, True, ("inprogress", {"get": "completed", "del1": "new", "del2": "new"})),
    (
        {"get": "completed", "del1": "completed"},
        True,
        ("inprogress", {"get": "completed", "del1": "completed", "del2": "new"}),
    ),
    (
        {"get": "completed", "del1": "completed", "del2": "completed", "tell": "completed"},
        True,
        ("completed", {"get": "completed", "del1": "completed", "del2": "completed", "tell": "completed"}),
    ),
    ({"get": "failure"}, True, ("failed", {"get": "failure"})),
    ({"get": "cancelled"}, True, ("cancelled", {"get": "cancelled"})),
    (
        {"get": "completed", "del1": "failure", "del2": "new"},
        True,
        ("failed", {"get": "completed", "del1": "failure", "del2": "cancelled"}),
    ),
    (
        {"get": "completed", "del1": "failure", "del2": "inprogress"},
        True,
        ("inprogress", {"get": "completed", "del1": "failure", "del2": "inprogress"}),
    ),
]


@pytest.mark.parametrize(("given", "steps", "expected"), HALF_DONE)
def test_the_sweep_repairs_half_done_requests(
    store: Store, given: dict[str, str], steps: bool, expected: tuple[str, dict[str, str]]
) -> None:
    """Rows in every half-done state continue where they stopped, once."""
    row(store, b"r" * 16, "inprogress", steps=steps)
    put(store, b"r" * 16, **given)
    store.run(lambda tx: stuck_requests.sweep(tx, {"delete": DELETE}, 10))
    assert storing.states(store, b"r" * 16) == expected
    swept = store.run(lambda tx: stuck_requests.sweep(tx, {"delete": DELETE}, 10))
    assert (swept.repaired, swept.handlers) == (0, set())


def test_pickup_continues_where_one_stopped(store: Store) -> None:
    """A queuing request whose first jobs are there already gets no second ones."""
    row(store, b"r" * 16, "queuing", steps=False)
    put(store, b"r" * 16, get="completed")
    store.run(lambda tx: requests.pickup(tx, {"delete": DELETE}, 10))
    assert storing.states(store, b"r" * 16) == (
        "inprogress", {"get": "completed", "del1": "new", "del2": "new"}
    )  # fmt: skip


def test_the_sweep_ends_a_request_that_cannot_be_read(store: Store) -> None:
    """Steps that are not a graph fail the request, with an error that names the remedy."""
    row(store, b"r" * 16, "inprogress")
    storing.sql(store, "UPDATE workerd_requests SET steps = '{'")
    put(store, b"r" * 16, get="new")
    store.run(lambda tx: stuck_requests.sweep(tx, {}, 10))
    found = storing.request(store, b"r" * 16)[0]
    assert (found.status, "submit it again" in (found.error or "")) == ("failed", True)


def test_a_request_of_no_known_workflow_can_be_cancelled(store: Store) -> None:
    """Without steps and without a workflow that could give them it ends with what runs of it."""
    row(store, b"r" * 16, "inprogress", steps=False)
    put(store, b"r" * 16, get="new")
    (claim,) = storing.claims(store, "get")
    assert store.run(lambda tx: stuck_requests.sweep(tx, {}, 10)).repaired == 0
    assert store.run(lambda tx: requests.cancel(tx, b"r" * 16)) == "asked"
    storing.close(store, [storing.outcome(claim, Status.CANCELLED)])
    assert storing.states(store, b"r" * 16) == ("cancelled", {"get": "cancelled"})


def test_the_sweep_goes_through_all_in_slices(store: Store) -> None:
    """Each slice returns where the next starts, also with many requests of the same time."""
    for n in range(25):
        row(store, bytes([n]) * 16, "inprogress")
    cursor: str | None = None
    mended, slices = 0, 0
    while slices == 0 or cursor is not None:
        swept = store.run(lambda tx, cursor=cursor: stuck_requests.sweep(tx, {}, 10, cursor))
        cursor, mended, slices = swept.cursor, mended + swept.repaired, slices + 1
    assert (mended, slices) == (25, 3)
