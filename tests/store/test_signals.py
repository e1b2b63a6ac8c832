"""Waits of requests: they end when they are due, or by a signal, of which the first counts."""

from __future__ import annotations

from typing import Any

import pytest

from tests.store import test_batches
from tests.store.test_batches import plan, progress, work
from tests.support import storing as s
from workerd import workflow as wf
from workerd.clock import LATEST, to_text
from workerd.errors import Conflict, InvalidValue, NotFound
from workerd.job import new_id
from workerd.operations.why import explain_request
from workerd.store import claims, job_control, requests, signals
from workerd.store.base import Store


@pytest.fixture(autouse=True, params=["inline", "rows"])
def _size_of_graphs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are kept in the request's row, and, large ones, in rows of their own."""
    monkeypatch.setattr(wf, "MAX_INLINE_JOBS", 200 if request.param == "inline" else 0)


AFTER = {"name": "b", "handler": "after", "needs": ["approve"]}


def submit(store: Store, **body: Any) -> bytes:
    """Submit a request, and let it begin."""
    request_id = test_batches.submit(store, **body)
    work(store)
    return request_id


def approval(**keys: Any) -> list[dict[str, Any]]:
    return [{"name": "approve", "signal": "approved", **keys}, AFTER]


def give(store: Store, request_id: bytes, payload: bytes = b'{"by":"me"}') -> None:
    store.run(lambda tx: signals.deliver(tx, request_id, "approved", payload, "me", {}))


def pass_due(store: Store) -> int:
    store.run(lambda tx: claims.promote_due(tx, 100))
    passed = store.run(lambda tx: signals.pass_due(tx, 100)).due
    work(store)
    return passed


def make_due(store: Store) -> None:
    s.sql(store, "UPDATE workerd_jobs SET run_at = '2026-01-01 00:00:00' WHERE handler = '~wait'")


def test_why_says_what_a_request_waits_for(store: Store) -> None:
    """And until when; a wait that needs others does not wait yet."""
    jobs = [
        {"name": "pause", "wait": "2030-01-02T03:04:05Z"},
        {"name": "approve", "signal": "approved", "timeout": "1d"},
        {"name": "later", "signal": "late", "needs": ["pause"]},
        {"name": "work", "handler": "h"},
    ]
    request_id = submit(store, jobs=jobs)
    reasons = store.read(lambda tx: explain_request(tx, test_batches.CONFIG, request_id))[1]
    told = " ".join(reasons)
    assert "Its job pause waits until 2030-01-02T03:04:05Z." in told
    assert "Its job approve waits for the signal approved, until 20" in told
    assert "Its job work is new." in told
    assert "the signal late" not in told


def test_a_signal_ends_its_wait(store: Store) -> None:
    """Later jobs find its payload; a second one is refused, and so is one for an ended request."""
    request_id = submit(store, jobs=approval())
    assert s.request(store, request_id)[1]["approve"].run_at == LATEST
    assert pass_due(store) == 0
    give(store, request_id)
    with pytest.raises(Conflict, match="already sent"):
        give(store, request_id)
    (claim,) = s.claims(store, "after")
    assert claim.needs == {"approve": b'{"by":"me"}'}
    s.close(store, [s.outcome(claim)])
    assert progress(store, request_id) == ("completed", 2, 0, 2)
    with pytest.raises(Conflict, match="already ended"):
        give(store, request_id)


def test_a_signal_that_comes_early_is_kept(store: Store) -> None:
    """Until the job that waits for it is reached."""
    request_id = submit(
        store,
        jobs=[
            {"name": "a", "handler": "h"},
            {"name": "approve", "signal": "approved", "needs": ["a"], "timeout": "7d"},
            AFTER,
        ],
    )
    give(store, request_id)
    s.finish(store, "h")
    assert pass_due(store) == 1
    (claim,) = s.claims(store, "after")
    assert claim.needs == {"approve": b'{"by":"me"}'}


def test_a_name_that_nothing_waits_for_is_refused(store: Store) -> None:
    """With the names there are."""
    request_id = submit(store, jobs=approval())
    with pytest.raises(InvalidValue, match='waits for "no"; its signals are: approved'):
        store.run(lambda tx: signals.deliver(tx, request_id, "no", b"1", "me", {}))
    with pytest.raises(NotFound):
        give(store, new_id())


@pytest.mark.parametrize(("on_timeout", "status"), [("fail", "failed"), ("continue", "completed")])
def test_a_signal_that_does_not_come_in_time(store: Store, on_timeout: str, status: str) -> None:
    """Fails the request, or leaves None and its name to what needs it."""
    request_id = submit(store, jobs=approval(timeout="1h", on_timeout=on_timeout))
    assert pass_due(store) == 0
    make_due(store)
    assert pass_due(store) == 1
    for claim in s.claims(store, "after"):
        assert (claim.needs, claim.failed) == ({"approve": b"null"}, ["approve"])
        s.close(store, [s.outcome(claim)])
    row, jobs = s.request(store, request_id)
    assert row.status == status
    assert jobs["approve"].reason == "deadline"


def test_a_wait_that_is_retried_by_hand_waits_again(store: Store) -> None:
    """Also one that was cancelled because another had failed."""
    jobs = approval(timeout="1h")
    jobs += [{"name": "other", "wait": "2h"}, {"name": "c", "handler": "after", "needs": ["other", "b"]}]
    request_id = submit(store, jobs=jobs)
    s.sql(store, "UPDATE workerd_jobs SET run_at = '2026-01-01 00:00:00' WHERE name = 'approve'")
    assert pass_due(store) == 1
    found = s.request(store, request_id)[1]
    assert progress(store, request_id)[0] == "failed"
    store.run(lambda tx: job_control.retry(tx, found["approve"].id))
    work(store)
    assert pass_due(store) == 0
    assert progress(store, request_id)[0] == "inprogress"
    give(store, request_id)
    s.finish(store, "after")
    assert pass_due(store) == 0
    make_due(store)
    assert pass_due(store) == 1
    s.finish(store, "after")
    assert progress(store, request_id)[0] == "completed"


def test_a_wait_cannot_be_made_due_by_hand(store: Store) -> None:
    """It would be taken for a signal that did not come in time."""
    request_id = submit(store, jobs=[*approval(), {"name": "cool", "wait": "2h"}])
    found = s.request(store, request_id)[1]
    for name in ("approve", "cool"):
        with pytest.raises(Conflict, match="ends at its time, or with its signal"):
            store.run(lambda tx, name=name: job_control.retry(tx, found[name].id))
        with pytest.raises(Conflict, match="ends at its time, or with its signal"):
            store.run(lambda tx, name=name: job_control.lock_waiting(tx, found[name].id))
    assert pass_due(store) == 0


def test_a_wait_counts_from_when_it_is_ready(store: Store) -> None:
    """Or ends at its time; nobody claims it."""
    request_id = submit(
        store,
        jobs=[
            {"name": "a", "handler": "h"},
            {"name": "cool", "wait": "2h", "needs": ["a"]},
            {"name": "until", "wait": "2026-01-01T00:00:00Z", "needs": ["a"]},
            {"name": "b", "handler": "after", "needs": ["cool", "until"]},
        ],
    )
    assert {name for name, job in s.request(store, request_id)[1].items() if job.run_at < LATEST} == {"a"}
    s.finish(store, "h")
    assert pass_due(store) == 1
    found = s.states(store, request_id)[1]
    assert (found["a"], found["cool"], found["until"]) == ("completed", "scheduled", "completed")
    make_due(store)
    pass_due(store)
    s.finish(store, "after")
    assert progress(store, request_id) == ("completed", 4, 0, 4)


def test_a_configured_workflow_waits_too(store: Store) -> None:
    """A signal that comes before it is picked up is kept."""
    made = plan(store, jobs=approval())
    flow = s.workflow("flow", "h")
    flow = type(flow)(name="flow", jobs=made.graph.jobs or tuple(made.nodes))
    request_id = store.run(lambda tx: requests.submit(tx, "flow", b"{}")).id
    store.run(lambda tx: signals.deliver(tx, request_id, "approved", b"1", "me", {"flow": flow}))
    store.run(lambda tx: requests.pickup(tx, {"flow": flow}, 10))
    work(store)
    pass_due(store)
    s.finish(store, "after")
    assert progress(store, request_id)[0] == "completed"


def test_a_cancelled_request_waits_no_more(store: Store) -> None:
    """Its wait is cancelled; a due one of an ended request changes nothing."""
    request_id = submit(store, jobs=approval(timeout="1h"))
    store.run(lambda tx: requests.cancel(tx, request_id))
    work(store)
    assert progress(store, request_id)[0] == "cancelled"
    s.sql(store, "UPDATE workerd_jobs SET finished_at = %s", to_text(1))
    assert pass_due(store) == 0
