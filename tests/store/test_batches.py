"""Requests with their own graph: batches in slices, `then`, `finally`, failures that continue, reopening."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.support import storing as s
from workerd.clock import SECOND, to_text
from workerd.config.handler_config import HandlerConfig, PoolConfig
from workerd.config.model import Config
from workerd.errors import Conflict, InvalidValue, TooManyWaiting
from workerd.job import Claim, Status, parse_id
from workerd.job_filter import JobFilter
from workerd.job_spec import JobSpec
from workerd.operations import bulk, request_graphs
from workerd.operations.actor import Actor
from workerd.operations.bulk import Act, Search
from workerd.operations.edit import Edit, edit
from workerd.operations.request_graphs import Plan
from workerd.operations.why import explain
from workerd.store import batches, job_control, polls, requests, stuck_requests
from workerd.store.base import Store

HANDLERS = tuple(HandlerConfig(name=name, call="m:f", pool="p") for name in ("h", "after", "last"))
CONFIG = Config(pools={"p": PoolConfig(name="p", handlers=HANDLERS)})
THEN = [{"name": "then", "handler": "after"}]
FINALLY = [{"name": "last", "handler": "last"}]


def plan(store: Store, **body: Any) -> Plan:
    return store.read(lambda tx: request_graphs.checked(tx, CONFIG, body))


def submit(store: Store, **body: Any) -> bytes:
    made = plan(store, **body)
    return parse_id(store.run(lambda tx: request_graphs.submit(tx, made)).id)


def members(count: int, **keys: Any) -> list[dict[str, Any]]:
    return [{"name": f"m{n}", "handler": "h", "vars": {"n": n}, **keys} for n in range(count)]


def work(store: Store) -> None:
    """Do every slice that is pending."""
    while store.run(batches.work).found:
        pass


def progress(store: Store, request_id: bytes) -> tuple[str, int, int, int]:
    row = s.request(store, request_id)[0]
    return row.status, row.done, row.failed, row.total


def fail_one(store: Store) -> None:
    (claim,) = s.claims(store, "h", 1)
    s.close(store, [s.outcome(claim, Status.FAILURE)])


def count(store: Store, handler: str, status: str = "new") -> int:
    return int(
        s.value(
            store, "SELECT COUNT(*) FROM workerd_jobs WHERE handler = %s AND status = %s", handler, status
        )
    )


def scheduled(store: Store) -> Search:
    search = Search(Act.RETRY, JobFilter(status=Status.SCHEDULED))
    search.finish(store.read)
    return search


def test_a_batch_runs_then_and_finally(store: Store) -> None:
    """Its jobs are held until it is complete; `then` follows the last, `finally` follows that."""
    made = plan(store, jobs=members(5), then=THEN, **{"finally": FINALLY})
    request_id = parse_id(store.run(lambda tx: request_graphs.begin(tx, made)).id)
    store.run(lambda tx: batches.add(tx, request_id, made.members[:3]))
    store.run(lambda tx: batches.add(tx, request_id, made.members[:3]))  # its commit had no answer
    work(store)
    assert s.claims(store, "h") == []
    assert progress(store, request_id) == ("queuing", 0, 0, 3)
    store.run(lambda tx: batches.add(tx, request_id, made.members[3:]))
    store.run(lambda tx: batches.seal(tx, request_id))
    with pytest.raises(Conflict, match="no more jobs"):
        store.run(lambda tx: batches.add(tx, request_id, made.members))
    work(store)
    assert len(s.finish(store, "h")) == 5
    assert progress(store, request_id) == ("inprogress", 5, 0, 5)
    assert count(store, "last") == 0
    s.finish(store, "after")
    assert len(s.finish(store, "last")) == 1
    assert progress(store, request_id) == ("completed", 5, 0, 5)


def test_a_failure_cancels_the_rest_and_finally_runs_once(store: Store) -> None:
    """In slices; what runs already ends by itself."""
    request_id = submit(store, jobs=members(1200), then=THEN, **{"finally": FINALLY})
    work(store)
    (running,) = s.claims(store, "h", 1)
    fail_one(store)
    work(store)
    assert count(store, "h", "cancelled") == 1198
    assert count(store, "last") == 0
    s.close(store, [s.outcome(running)])
    assert count(store, "last") == 1
    s.finish(store, "last")
    assert progress(store, request_id) == ("failed", 1, 1199, 1200)
    assert count(store, "after") == 0


def test_what_is_released_after_a_failure_is_cancelled_by_the_sweep(store: Store) -> None:
    """The slices had passed it when its claim was given back."""
    request_id = submit(store, jobs=members(3), **{"finally": FINALLY})
    work(store)
    held, failed, _ = s.claims(store, "h")
    s.close(store, [s.outcome(failed, Status.FAILURE)])
    work(store)
    s.sql(store, "UPDATE workerd_jobs SET status = 'new', node_id = NULL WHERE id = %s", held.id)
    assert store.run(lambda tx: stuck_requests.sweep(tx, {}, 10)).repaired == 1
    work(store)
    assert s.status(store, held.id) == "cancelled"
    assert progress(store, request_id)[:3] == ("inprogress", 0, 2)


@pytest.mark.parametrize(("most", "status"), [(2, "completed"), (1, "failed")])
def test_failures_that_continue_leave_the_request_completed(store: Store, most: int, status: str) -> None:
    """Unless there are more than `max_failures`; `then` needs all to have succeeded."""
    request_id = submit(store, jobs=members(5), then=THEN, max_failures=most, **{"finally": FINALLY})
    work(store)
    fail_one(store)
    fail_one(store)
    work(store)
    s.finish(store, "h")
    s.finish(store, "last")
    assert progress(store, request_id)[0] == status
    assert count(store, "after") == 0
    assert count(store, "last", "completed") == 1


def test_finally_runs_after_a_cancel(store: Store) -> None:
    """Of a batch in progress, and of one that is not complete yet."""
    for complete in (True, False):
        made = plan(store, jobs=members(3), **{"finally": FINALLY})
        request_id = parse_id(store.run(lambda tx, made=made: request_graphs.begin(tx, made)).id)
        store.run(lambda tx, made=made, key=request_id: batches.add(tx, key, made.members))
        if complete:
            store.run(lambda tx, key=request_id: batches.seal(tx, key))
        store.run(lambda tx, key=request_id: requests.cancel(tx, key))
        work(store)
        assert len(s.finish(store, "last")) == 1
        assert progress(store, request_id) == ("cancelled", 0, 3, 3)


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILURE])
@pytest.mark.parametrize("runs", [False, True])
def test_a_cancel_leaves_finally_that_has_begun(store: Store, status: Status, *, runs: bool) -> None:
    """Whether it waits or runs, with what it has spawned."""
    jobs = [{"name": "a", "handler": "h"}, {"name": "b", "handler": "h", "needs": ["a"]}]
    request_id = submit(store, jobs=jobs, **{"finally": [*FINALLY, {"name": "two", "handler": "last"}]})
    while s.finish(store, "h", status):
        pass
    (first,) = s.claims(store, "last", 1)
    s.close(store, [s.outcome(first, spawn=b'[{"handler":"last","name":"x"}]')])
    claims = s.claims(store, "last") if runs else []
    assert store.run(lambda tx: requests.cancel(tx, request_id)) == "asked"
    assert count(store, "last", "cancelled") == 0
    assert s.value(store, "SELECT COUNT(*) FROM workerd_jobs WHERE cancel_requested_at IS NOT NULL") == 0
    s.close(store, [s.outcome(claim) for claim in claims or s.claims(store, "last")])
    spawned, ended = (1, "cancelled") if status is Status.COMPLETED else (0, "failed")
    assert count(store, "last", "completed") == 2 + spawned
    assert progress(store, request_id)[0] == ended


@pytest.mark.parametrize("most", [None, 0])
@pytest.mark.parametrize("needs", [[], ["m0"]])
def test_a_cancelled_request_ends_as_cancelled(store: Store, most: int | None, needs: list[str]) -> None:
    """Whatever the job answers that ran, and however many were cancelled of those that waited."""
    jobs = [*members(2), {"name": "z", "handler": "h", "needs": needs}]
    request_id = submit(store, jobs=jobs, max_failures=most)
    work(store)
    (claim,) = s.claims(store, "h", 1)
    assert store.run(lambda tx: requests.cancel(tx, request_id)) == "asked"
    s.close(store, [s.outcome(claim, Status.FAILURE)])
    work(store)
    row = s.request(store, request_id)[0]
    assert (row.status, row.error) == ("cancelled", requests.CANCELLED_BY_PERSON)


def test_a_batch_that_is_never_completed_fails(store: Store) -> None:
    """After an hour."""
    made = plan(store, jobs=members(3), **{"finally": FINALLY})
    request_id = parse_id(store.run(lambda tx: request_graphs.begin(tx, made)).id)
    store.run(lambda tx: batches.add(tx, request_id, made.members[:2]))
    assert not store.run(batches.expire)
    old = to_text(store.read(lambda tx: tx.now) - 3601 * SECOND)
    s.sql(store, "UPDATE workerd_requests SET created_at = %s", old)
    assert store.run(batches.expire)
    work(store)
    row = s.request(store, request_id)[0]
    assert row.error is not None
    assert "never completed" in row.error
    assert count(store, "h", "cancelled") == 2


def test_the_limit_of_waiting_jobs_holds_for_the_jobs_of_a_request(store: Store) -> None:
    """Those that begin at once, in a batch all; what is refused writes nothing."""
    few = msgspec.structs.replace(HANDLERS[0], max_waiting=3)
    config = Config(pools={"p": PoolConfig(name="p", handlers=(few, *HANDLERS[1:]))})
    chain = [{"name": str(n), "handler": "h", "needs": [str(n - 1)] if n else []} for n in range(9)]
    for jobs, fits in ((members(3), True), (members(4), False), (chain, True)):
        body = {"jobs": jobs}
        if fits:
            store.read(lambda tx, body=body: request_graphs.checked(tx, config, body))
            continue
        with pytest.raises(TooManyWaiting, match="max_waiting"):
            store.read(lambda tx, body=body: request_graphs.checked(tx, config, body))


def test_an_empty_batch_ends_with_its_stages(store: Store) -> None:
    """Nothing has failed."""
    request_id = submit(store, jobs=[], then=THEN, **{"finally": FINALLY})
    s.finish(store, "after")
    s.finish(store, "last")
    assert progress(store, request_id) == ("completed", 0, 0, 0)


def test_a_job_of_an_incomplete_batch_cannot_be_made_due_by_hand(store: Store) -> None:
    """Neither by a retry nor by an edit, of one or of many: it begins with its batch."""
    made = plan(store, jobs=members(2))
    request_id = parse_id(store.run(lambda tx: request_graphs.begin(tx, made)).id)
    store.run(lambda tx: batches.add(tx, request_id, made.members))
    (held, *_) = [row[0] for row in store.read(lambda tx: tx.query("SELECT id FROM workerd_jobs"))]
    with pytest.raises(Conflict, match="waits for the rest of its request"):
        store.run(lambda tx: job_control.retry(tx, held))
    actor = Actor("ann", "cli")
    with pytest.raises(Conflict, match="waits for the rest of its request"):
        store.run(lambda tx: edit(tx, actor, CONFIG, held, Edit(run_at="2026-01-01T00:00:00Z")))
    store.run(lambda tx: edit(tx, actor, CONFIG, held, Edit(vars={"n": 7})))
    assert max(bulk.change_all(store.run, actor, scheduled(store))) == 0
    assert count(store, "h") == 0
    store.run(lambda tx: batches.seal(tx, request_id))
    work(store)
    assert count(store, "h") == 2


def test_a_retry_by_hand_reopens_a_batch_and_finally_runs_again(store: Store) -> None:
    """With what was cancelled beside the failed job."""
    request_id = submit(store, jobs=members(4), then=THEN, **{"finally": FINALLY})
    work(store)
    (claim,) = s.claims(store, "h", 1)
    s.close(store, [s.outcome(claim, Status.FAILURE)])
    work(store)
    s.finish(store, "last")
    assert progress(store, request_id) == ("failed", 0, 4, 4)
    store.run(lambda tx: job_control.retry(tx, claim.id))
    work(store)
    assert progress(store, request_id) == ("inprogress", 0, 0, 4)
    assert len(s.finish(store, "h")) == 4
    s.finish(store, "after")
    assert len(s.finish(store, "last")) == 1
    assert progress(store, request_id) == ("completed", 4, 0, 4)
    assert count(store, "last", "completed") == 2


def test_a_retry_by_hand_while_a_batch_is_released_leaves_none_held(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The jobs that were not released yet follow the retry."""
    monkeypatch.setattr(batches, "SLICE_ROWS", 2)
    request_id = submit(store, jobs=members(7, on_error="continue"))
    store.run(batches.work)
    (claim,) = s.claims(store, "h", 1)
    s.close(store, [s.outcome(claim, Status.FAILURE)])
    assert count(store, "h", "scheduled") == 5
    store.run(lambda tx: job_control.retry(tx, claim.id))
    held = store.read(lambda tx: tx.query("SELECT id FROM workerd_jobs WHERE status = 'scheduled'"))
    told = store.read(lambda tx: explain(tx, CONFIG, held[0][0], {}))[1]
    assert told == ["Its request starts its jobs in slices; this one starts with one of the next."]
    work(store)
    assert len(s.finish(store, "h")) == 7
    assert progress(store, request_id) == ("completed", 7, 0, 7)


def test_a_retry_by_hand_leaves_a_signal_that_finally_waits_for(store: Store) -> None:
    """Its row looks like one that its request holds."""
    request_id = submit(store, jobs=members(2), **{"finally": [{"name": "ok", "signal": "ok"}]})
    work(store)
    done = s.finish(store, "h")
    store.run(lambda tx: job_control.retry(tx, done[0].id))
    work(store)
    assert s.request(store, request_id)[1]["ok"].status == "scheduled"
    assert len(s.finish(store, "h")) == 1


@pytest.mark.parametrize("needs", [[], ["m1"]])
def test_a_reopened_request_counts_what_runs_again_as_neither(store: Store, needs: list[str]) -> None:
    """Of a batch and of a graph alike; the job that had succeeded stays counted."""
    jobs = [*members(2), {"name": "z", "handler": "h", "needs": needs}]
    request_id = submit(store, jobs=jobs)
    work(store)
    first, second = s.claims(store, "h", 2)
    s.close(store, [s.outcome(first)])
    s.close(store, [s.outcome(second, Status.FAILURE)])
    work(store)
    assert progress(store, request_id)[:2] == ("failed", 1)
    store.run(lambda tx: job_control.retry(tx, second.id))
    work(store)
    assert progress(store, request_id) == ("inprogress", 1, 0, 3)


def test_a_graph_continues_after_a_failure_that_it_tolerates(store: Store) -> None:
    """What needs the failed job sees None, and its name; so does `finally`, which needs nothing."""
    request_id = submit(
        store,
        jobs=[
            {"name": "a", "handler": "h", "on_error": "continue"},
            {"name": "b", "handler": "after", "needs": ["a"]},
        ],
        **{"finally": FINALLY},
    )
    assert progress(store, request_id) == ("inprogress", 0, 0, 2)
    fail_one(store)
    (claim,) = s.claims(store, "after")
    assert (claim.needs, claim.failed) == ({"a": b"null"}, ["a"])
    s.close(store, [s.outcome(claim)])
    (claim,) = s.claims(store, "last")
    assert claim.failed == ["a"]
    s.close(store, [s.outcome(claim)])
    assert progress(store, request_id) == ("completed", 1, 1, 2)


def stage_inputs(claim: Claim) -> tuple[dict[str, bytes] | None, list[str] | None]:
    return claim.needs, claim.failed


def test_stages_get_the_payloads_that_they_need_of_a_batch(store: Store) -> None:
    """With what its jobs spawned; of one that failed None, and its name."""
    then = [{"name": "then", "handler": "after", "needs": ["m0", "m1"]}]
    final = [{"name": "last", "handler": "last", "needs": ["m0", "then"]}]
    submit(store, jobs=members(2), then=then, **{"finally": final})
    work(store)
    first, second = s.claims(store, "h")
    spawn = b'[{"handler":"h","name":"x"}]'
    s.close(store, [s.outcome(first, payload=b"1", payload_type="json", spawn=spawn), s.outcome(second)])
    s.finish(store, "h", payload=b"7", payload_type="json")
    (claim,) = s.claims(store, "after")
    needs = {first.name: b"1", second.name: b"null", f"{first.name}/x": b"7"}
    assert stage_inputs(claim) == (needs, None)
    s.close(store, [s.outcome(claim, Status.FAILURE)])
    (claim,) = s.claims(store, "last")
    assert claim.needs is not None
    assert "m0" in claim.needs
    assert (claim.needs["then"], claim.failed) == (b"null", ["then"])


def test_finally_that_needs_a_job_which_never_began_gets_none_and_its_name(store: Store) -> None:
    """In its second run under the same names, though it has others then."""
    jobs = [{"name": "a", "handler": "h"}, {"name": "b", "handler": "h", "needs": ["a"]}]
    final = [
        {"name": "last", "handler": "last", "needs": ["a", "b"]},
        {"name": "very last", "handler": "after", "needs": ["last"]},
    ]
    request_id = submit(store, jobs=jobs, **{"finally": final})
    first = s.request(store, request_id)[1]["a"].id
    for again in (False, True):
        if again:
            store.run(lambda tx: job_control.retry(tx, first))
        fail_one(store)
        (claim,) = s.claims(store, "last")
        assert stage_inputs(claim) == ({"a": b"null", "b": b"null"}, ["a", "b"])
        s.close(store, [s.outcome(claim, payload=b"1", payload_type="json")])
        (claim,) = s.claims(store, "after")
        assert stage_inputs(claim) == ({"last": b"1"}, None)
        s.close(store, [s.outcome(claim)])


def test_a_failed_job_of_a_stage_fails_the_request(store: Store) -> None:
    """`finally` runs after a failed `then`; a failed `finally` fails a request that had succeeded."""
    request_id = submit(store, jobs=members(1), then=THEN, **{"finally": FINALLY})
    work(store)
    s.finish(store, "h")
    s.finish(store, "after", Status.FAILURE)
    s.finish(store, "last")
    assert progress(store, request_id)[0] == "failed"
    request_id = submit(store, jobs=members(1), **{"finally": FINALLY})
    work(store)
    s.finish(store, "h")
    s.finish(store, "last", Status.FAILURE)
    assert progress(store, request_id) == ("failed", 1, 0, 1)


@pytest.mark.parametrize("key", ["then", "finally"])
@pytest.mark.parametrize("count_", [1, 3])
def test_a_stage_continues_after_a_failure_that_it_tolerates(store: Store, key: str, count_: int) -> None:
    """What needs the failed job sees None and its name; the request fails, as by any failure of a stage."""
    stage = [
        {"name": "s", "handler": "after", "on_error": "continue"},
        {"name": "s2", "handler": "last", "needs": ["s"]},
    ]
    request_id = submit(store, jobs=members(count_), **{key: stage})
    work(store)
    s.finish(store, "h")
    s.finish(store, "after", Status.FAILURE)
    (claim,) = s.claims(store, "last")
    assert stage_inputs(claim) == ({"s": b"null"}, ["s"])
    s.close(store, [s.outcome(claim)])
    row = s.request(store, request_id)[0]
    assert (row.status, row.error) == ("failed", '"s" failed')


def test_a_job_that_very_many_need_lets_them_begin_in_slices(store: Store) -> None:
    """The poll finds the request after the ending, and all of them become new."""
    dependents = members(batches.SLICE_ROWS + 1, needs=["root"])
    request_id = submit(store, jobs=[{"name": "root", "handler": "after"}, *dependents])
    work(store)
    s.finish(store, "after")
    assert count(store, "h") == 0
    assert store.read(lambda tx: polls.poll(tx, s.NODE.id, ["h"])).batches
    work(store)
    assert count(store, "h") == len(dependents)
    assert not store.read(lambda tx: polls.poll(tx, s.NODE.id, ["h"])).batches
    assert progress(store, request_id) == ("inprogress", 1, 0, len(dependents) + 1)


def test_a_job_that_ends_twice_counts_once(store: Store) -> None:
    """An outcome that comes again, and one of a run that was rescued meanwhile."""
    request_id = submit(store, jobs=members(2), **{"finally": FINALLY})
    work(store)
    first, second = s.claims(store, "h")
    s.close(store, [s.outcome(first)])
    s.close(store, [s.outcome(first)])
    assert progress(store, request_id) == ("inprogress", 1, 0, 2)
    assert count(store, "last") == 0
    s.close(store, [s.outcome(second), s.outcome(first)])
    assert count(store, "last") == 1


def test_specs_in_stages_have_names_of_their_own(store: Store) -> None:
    """By their list and place."""
    specs = [JobSpec(handler="h")] * 2
    graph = plan(store, jobs=specs, then=specs, **{"finally": specs}).graph
    assert [job.name for job in graph.then + graph.final] == ["then-1", "then-2", "finally-1", "finally-2"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"jobs": [{"name": "a", "handler": "h", "needs": ["b"]},
                   {"name": "b", "handler": "h", "needs": ["a"]}]}, "a -> b -> a"),
        ({"jobs": [{"name": "a", "handler": "h"}, {"name": "b", "handler": "h", "needs": ["x"]}]},
         r"jobs\[1\]\.needs\[0\]: no job"),
        ({"jobs": [{"name": "a", "handler": "h"}, {"name": "b", "handler": "nope"}]}, r"jobs\[1\]\.handler"),
        ({"jobs": [{"name": "a", "handler": "h"}, {"name": "a", "handler": "h"}]}, r"jobs\[1\]\.name"),
        ({"jobs": [{"handler": "h"}]}, r"jobs\[0\]\.name"),
        ({"jobs": [{"name": "a"}]}, r"jobs\[0\]: expected one of handler, wait and signal"),
        ({"jobs": [{"name": "a", "wait": "1s", "handler": "h"}]}, r"jobs\[0\]: expected one of"),
        ({"jobs": [{"name": "a", "handler": "h", "on_error": "x"}]}, r"jobs\[0\]\.on_error"),
        ({"jobs": [], "then": [{"name": "t", "handler": "nope"}]}, r"then\[0\]\.handler"),
        (
            {"jobs": [{"name": "a", "handler": "h"}], "max_failures": -1},
            "max_failures: expected a whole number from 0 to [0-9]+, got",
        ),
        ({"jobs": [{"name": "a", "handler": "h"}, {"name": "last#2", "handler": "h"}], "finally": FINALLY},
         r'jobs\[1\]\.name: .* later run of finally.*"last#2" beside "last"'),
        ({"jobs": [{"name": "last/x", "handler": "h"}], "finally": FINALLY}, r"jobs\[0\]\.name"),
        ({"jobs": [], "finally": [*FINALLY, {"name": "last#10", "handler": "h"}]}, r"finally\[1\]\.name"),
        ({"jobs": [], "more": 1}, "more: expected one of"),
        ({"jobs": []}, "jobs: expected at least one job"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_graph_is_named(store: Store, body: dict[str, Any], message: str) -> None:
    """By its place, a cycle by its names."""
    with pytest.raises(InvalidValue, match=message):
        plan(store, **body)


def test_a_cycle_of_very_many_jobs_is_named(store: Store) -> None:
    """Without recursion."""
    ring = [{"name": str(n), "handler": "h", "needs": [str((n + 1) % 20_000)]} for n in range(20_000)]
    with pytest.raises(InvalidValue, match="expected no cycle, got 0 -> 1 -> 2"):
        plan(store, jobs=ring)
