"""Requests from their row to their end: in order, once, whatever was left behind."""

from __future__ import annotations

import base64
import threading

import msgspec
import pytest

from tests.support import storing
from workerd import documents, job
from workerd import workflow as wf
from workerd.config.workflow_config import WorkflowJob
from workerd.errors import Conflict, NotFound
from workerd.ingester import writer
from workerd.job import Status
from workerd.outcome import Reason
from workerd.redaction import NOTHING
from workerd.store import claims as store_claims
from workerd.store import job_control, requests, stuck_requests, workflow_inputs, workflows
from workerd.store.base import Store, Tx
from workerd.store.polls import poll

DELETE = storing.workflow("delete", "get", "del1<get", "del2<get", "tell<del1,del2")
FAILURE, RETRY, CANCELLED = Status.FAILURE, Status.RETRY, Status.CANCELLED


def test_a_request_runs_step_by_step_to_its_end(store: Store) -> None:
    """Each step starts in the transaction that ends the one before, with its handlers announced."""
    request_id = storing.submit(store, DELETE, b'{"user":7}')
    row, found = storing.request(store, request_id)
    assert (row.status, row.step, list(found)) == ("inprogress", 0, ["get"])
    assert wf.decode(row.steps or b"").jobs == DELETE.jobs
    (claim,) = storing.claims(store, "get")
    woken = store.run(lambda tx: writer.close(tx, [storing.outcome(claim)], storing.NODE.id)).woken
    assert woken == {"del1", "del2"}
    storing.finish(store, "del2")
    assert storing.states(store, request_id)[1] == {"get": "completed", "del1": "new", "del2": "completed"}
    storing.finish(store, "del1")
    storing.finish(store, "tell")
    row, found = storing.request(store, request_id)
    assert (row.status, row.step, row.error, set(found)) == (
        "completed",
        2,
        None,
        {"get", "del1", "del2", "tell"},
    )
    assert row.completed_at is not None
    assert row.version >= 5
    assert documents.request(row, NOTHING, [(one, NOTHING) for one in found.values()])["params"] == {
        "user": 7
    }


def test_jobs_carry_params_extras_and_payloads_of_needed_jobs(store: Store) -> None:
    """Extras of two jobs of one step are merged; payloads of needed jobs come by name, bytes as base64."""
    request_id = storing.submit(store, DELETE, b'{"user":7}')
    (first,) = storing.claims(store, "get")
    assert (first.workflow, first.params, first.extras, first.needs) == ("delete", b'{"user":7}', b"{}", {})
    assert (first.request_id, first.step, first.name) == (request_id, 0, "get")
    storing.close(
        store, [storing.outcome(first, extras=b'{"mail":"x"}', payload=b"\xff\x00", payload_type="bytes")]
    )
    taken = [*storing.claims(store, "del1"), *storing.claims(store, "del2")]
    for claim in taken:
        assert claim.extras == b'{"mail":"x"}'
        assert claim.needs is not None
        assert base64.b64decode(msgspec.json.decode(claim.needs["get"])) == b"\xff\x00"
    storing.close(
        store,
        [
            storing.outcome(taken[0], extras=b'{"one":1}', payload=b'"a"', payload_type="json"),
            storing.outcome(taken[1], extras=b'{"two":2}'),
        ],
    )
    (last,) = storing.claims(store, "tell")
    assert msgspec.json.decode(last.extras or b"") == {"mail": "x", "one": 1, "two": 2}
    assert last.needs == {"del1": b'"a"', "del2": b"null"}


def test_steps_may_be_left_to_the_sweep(store: Store) -> None:
    """Extras are merged at once, the next step starts with the sweep."""
    request_id = storing.submit(store, DELETE)
    (claim,) = storing.claims(store, "get")
    done = storing.outcome(claim, extras=b'{"n":1}')
    without = writer.FOLLOW_UPS_WITHOUT_STEPS
    store.run(lambda tx: writer.close(tx, [done], storing.NODE.id, without))
    row, found = storing.request(store, request_id)
    assert (row.extras, set(found)) == (b'{"n":1}', {"get"})
    swept = store.run(lambda tx: stuck_requests.sweep(tx, {}, 10))
    assert (swept.repaired, swept.handlers) == (1, {"del1", "del2"})


def test_a_second_report_moves_nothing(store: Store) -> None:
    """Extras, spawned jobs and the next step follow only from the report that took effect."""
    request_id = storing.submit(store, DELETE)
    (claim,) = storing.claims(store, "get")
    assert storing.close(store, [storing.outcome(claim, extras=b'{"n":1}')]) == 1
    version = storing.request(store, request_id)[0].version
    late = storing.outcome(claim, FAILURE, extras=b'{"n":2}', spawn=b'[{"handler":"x"}]')
    assert storing.close(store, [late]) == 0
    row, found = storing.request(store, request_id)
    assert (row.status, row.extras, row.version, len(found)) == ("inprogress", b'{"n":1}', version, 3)


def test_a_failure_ends_the_request(store: Store) -> None:
    """Waiting jobs are cancelled, running ones finish, and the error names the failed job."""
    request_id = storing.submit(store, storing.workflow("w", "a", "b", "c", "d<a,b,c"))
    (runs,) = storing.claims(store, "b")
    storing.finish(store, "a", FAILURE, error="out of paper")
    assert storing.states(store, request_id) == (
        "inprogress", {"a": "failure", "b": "inprogress", "c": "cancelled"}
    )  # fmt: skip
    storing.close(store, [storing.outcome(runs)])
    row, found = storing.request(store, request_id)
    assert (row.status, row.error) == ("failed", '"a" failed: out of paper')
    assert found["c"].error == workflows.REQUEST_OVER
    assert "d" not in found


def test_a_retry_beside_a_failure_is_cancelled(store: Store) -> None:
    """Otherwise a job that snoozes would keep a failed request open indefinitely."""
    request_id = storing.submit(store, storing.workflow("w", "a", "b"))
    (runs,) = storing.claims(store, "b")
    storing.finish(store, "a", FAILURE)
    storing.close(store, [storing.outcome(runs, RETRY)])
    assert storing.states(store, request_id) == ("failed", {"a": "failure", "b": "cancelled"})


def test_a_retry_keeps_the_step_waiting(store: Store) -> None:
    """The history stays, and the next step starts when the last attempt has completed."""
    request_id = storing.submit(store, storing.workflow("w", "a", "b<a"))
    storing.finish(store, "a", RETRY, error="503")
    storing.finish(store, "a", RETRY, error="503")
    assert storing.states(store, request_id)[1] == {"a": "new"}
    storing.finish(store, "a")
    found = storing.request(store, request_id)[1]
    assert (found["a"].attempt, found["b"].status) == (3, "new")


def test_spawned_jobs_are_waited_for(store: Store) -> None:
    """Dependants see the payloads of spawned jobs too, by their names."""
    request_id = storing.submit(store, storing.workflow("w", "split", "join<split"))
    storing.finish(store, "split", spawn=b'[{"handler":"part","vars":{"n":1}},{"handler":"part","name":"b"}]')
    assert storing.states(store, request_id)[1] == {"split": "completed", "split/0": "new", "split/b": "new"}
    first, second = storing.claims(store, "part")
    assert {first.vars, second.vars} == {b'{"n":1}', b"{}"}
    storing.close(store, [storing.outcome(first, payload=b"1", payload_type="json")])
    assert storing.claims(store, "join") == []
    storing.close(store, [storing.outcome(second, payload=b"2", payload_type="json")])
    (join,) = storing.claims(store, "join")
    assert join.needs is not None
    assert set(join.needs) == {"split", "split/0", "split/b"}


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"spawn": b"[1]"}, 'jobs spawned by "a": expected tables'),
        ({"extras": b"[1]"}, "extras: expected a JSON object"),
        ({"extras": b'{"x":"' + b"y" * workflows.MAX_EXTRAS_BYTES + b'"}'}, "return a reference"),
    ],
)
def test_inputs_that_cannot_be_passed_on_fail_the_request(
    store: Store, given: dict[str, bytes], error: str
) -> None:
    """The attempt is still recorded, and the request's error names the cause."""
    request_id = storing.submit(store, storing.workflow("w", "a", "b<a"))
    storing.finish(store, "a", **given)
    row, found = storing.request(store, request_id)
    assert found["a"].status == "completed"
    assert (row.status, error in (row.error or "")) == ("failed", True)


@pytest.mark.parametrize("params", ["[]", "{", '"x"'])
def test_a_plain_insert_with_bad_params_fails(store: Store, params: str) -> None:
    """An invalid row of another program ends with an error and blocks no other."""
    sql = "INSERT INTO workerd_requests (id, workflow, params) VALUES (%s, 'delete', %s)"
    storing.sql(store, sql, b"b" * 16, params)
    storing.sql(store, sql, b"g" * 16, "{}")
    storing.sql(
        store, "INSERT INTO workerd_requests (id, workflow, params) VALUES (%s, 'other', '{}')", b"o" * 16
    )
    picked = store.run(lambda tx: requests.pickup(tx, {"delete": DELETE}, 10))
    assert picked.picked_up == 2
    assert picked.handlers == {"get"}
    bad = storing.request(store, b"b" * 16)[0]
    assert (bad.status, "JSON object" in (bad.error or "")) == ("failed", True)
    assert storing.states(store, b"g" * 16) == ("inprogress", {"get": "new"})
    assert storing.states(store, b"o" * 16) == ("queuing", {})


def test_submitting_an_id_again_changes_nothing(store: Store) -> None:
    """The first one counts."""
    first = store.run(lambda tx: requests.submit(tx, "w", b'{"a":1}', b"i" * 16))
    again = store.run(lambda tx: requests.submit(tx, "w", b'{"a":2}', b"i" * 16))
    assert (first.created, again.created) == (True, False)
    assert storing.request(store, b"i" * 16)[0].params == b'{"a":1}'


# -- a person ----------------------------------------------------------------------------------


def test_cancel_ends_a_request(store: Store) -> None:
    """At once if no job runs; else when the running ones have ended, and no step starts meanwhile."""
    queued = store.run(lambda tx: requests.submit(tx, "w", b"{}")).id
    assert store.run(lambda tx: requests.cancel(tx, queued)) == "ended"
    waiting = storing.submit(store, DELETE)
    assert store.run(lambda tx: requests.cancel(tx, waiting)) == "ended"
    assert storing.states(store, waiting) == ("cancelled", {"get": "cancelled"})
    running = storing.submit(store, DELETE)
    (claim,) = storing.claims(store, "get")
    assert store.run(lambda tx: requests.cancel(tx, running)) == "asked"
    assert store.alone(lambda tx: poll(tx, storing.NODE.id, []), write=False).cancels == [claim.ref]
    storing.close(store, [storing.outcome(claim)])
    row, found = storing.request(store, running)
    assert (row.status, row.error, len(found)) == ("cancelled", requests.CANCELLED_BY_PERSON, 1)
    for request_id, error in ((running, Conflict), (b"x" * 16, NotFound)):
        with pytest.raises(error):
            store.run(lambda tx, request_id=request_id: requests.cancel(tx, request_id))


def test_cancel_leaves_finally_of_a_configured_workflow(store: Store) -> None:
    """It waits when the others are over, and runs."""
    final = (WorkflowJob(name="last", handler="last", step=1),)
    request_id = storing.submit(store, msgspec.structs.replace(storing.workflow("w", "a"), final=final))
    storing.finish(store, "a")
    assert store.run(lambda tx: requests.cancel(tx, request_id)) == "asked"
    assert len(storing.finish(store, "last")) == 1
    assert storing.states(store, request_id) == ("cancelled", {"a": "completed", "last": "completed"})


def test_cancelling_a_job_cancels_its_request(store: Store) -> None:
    """Waiting or running, the request ends as `cancelled`."""
    request_id = storing.submit(store, storing.workflow("w", "a", "b"))
    job_id = storing.request(store, request_id)[1]["a"].id
    assert store.run(lambda tx: job_control.cancel(tx, job_id)) == "ended"
    row, found = storing.request(store, request_id)
    assert (row.status, row.error, found["b"].status) == (
        "cancelled",
        'cancelled with its job "a"',
        "cancelled",
    )


def test_retry_reopens_a_request(store: Store) -> None:
    """The failed job runs again with the jobs cancelled because of it, and the steps continue."""
    request_id = storing.submit(store, storing.workflow("w", "a", "b", "c<a,b"))
    failed = storing.finish(store, "a", FAILURE)[0].id
    assert storing.states(store, request_id) == ("failed", {"a": "failure", "b": "cancelled"})
    assert store.run(lambda tx: job_control.retry(tx, failed)) == 2
    row, found = storing.request(store, request_id)
    assert (row.status, row.error, row.completed_at) == ("inprogress", None, None)
    assert {name: (one.status, one.attempt) for name, one in found.items()} == {
        "a": ("new", 2),
        "b": ("new", 2),
    }
    storing.finish(store, "a")
    storing.finish(store, "b")
    storing.finish(store, "c")
    assert storing.request(store, request_id)[0].status == "completed"


def test_retry_of_one_of_two_failures(store: Store) -> None:
    """The first retry does not complete a request in which another job failed; the second does."""
    request_id = storing.submit(store, storing.workflow("w", "a", "b", "c<a,b"))
    both = [*storing.claims(store, "a"), *storing.claims(store, "b")]
    storing.close(store, [storing.outcome(claim, FAILURE) for claim in both])
    store.run(lambda tx: job_control.retry(tx, both[0].id))
    storing.finish(store, "a", RETRY)
    assert storing.states(store, request_id) == ("inprogress", {"a": "new", "b": "failure"})
    storing.finish(store, "a")
    assert storing.states(store, request_id) == ("failed", {"a": "completed", "b": "failure"})
    store.run(lambda tx: job_control.retry(tx, both[1].id))
    storing.finish(store, "b")
    assert storing.states(store, request_id) == (
        "inprogress",
        {"a": "completed", "b": "completed", "c": "new"},
    )


# -- what claims are refused -------------------------------------------------------------------


def test_a_job_of_an_ended_request_is_not_run(store: Store) -> None:
    """Rows by hand: the claim ends as `cancelled`, or as `failure` where there is no request at all."""
    sql = "INSERT INTO workerd_requests (id, workflow, params, status) VALUES (%s, 'w', '{}', 'completed')"
    storing.sql(store, sql, b"e" * 16)
    for request_id in (b"e" * 16, b"m" * 16):
        storing.enqueue(store, "h", request_id=request_id, name="a", step=0)
    batch = store.run(lambda tx: store_claims.claim(tx, "h", 10, storing.NODE))
    assert batch.claims == []
    assert {(o.request_id, o.status, o.reason) for o in batch.broken} == {
        (b"e" * 16, CANCELLED, Reason.CANCELLED),
        (b"m" * 16, FAILURE, Reason.FAILURE),
    }
    assert storing.close(store, batch.broken) == 2


def test_inputs_of_jobs_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is too large fails alone; what does not fit into one hand-over stays `new`."""
    monkeypatch.setattr(workflow_inputs, "MAX_BATCH_BYTES", 2500)
    monkeypatch.setattr(workflow_inputs, "MAX_JOB_BYTES", 5000)
    small = [
        storing.submit(store, storing.workflow("w", "a"), b'{"x":"' + b"y" * 990 + b'"}') for _ in range(5)
    ]
    large = storing.submit(store, storing.workflow("w", "a"), b'{"x":"' + b"y" * 6000 + b'"}')
    batch = store.run(lambda tx: store_claims.claim(tx, "a", 10, storing.NODE))
    assert [o.request_id for o in batch.broken] == [large]
    assert len(batch.claims) == 2
    assert len(storing.claims(store, "a")) == 2
    assert len(storing.claims(store, "a")) == 1
    assert len(small) == 5


# -- lists, and several nodes -------------------------------------------------------------------


def test_lists_of_requests(store: Store) -> None:
    """Newest first, by status and workflow, page by page."""
    made = [storing.submit(store, storing.workflow("w", "a")) for _ in range(5)]
    other = store.run(lambda tx: requests.submit(tx, "v", b"{}")).id
    first = store.read(lambda tx: requests.list_(tx, limit=4))
    rest = store.read(lambda tx: requests.list_(tx, limit=4, after=first.next))
    assert [r.id for r in [*first.rows, *rest.rows]] == [other, *reversed(made)]
    assert rest.next is None
    assert [r.id for r in store.read(lambda tx: requests.list_(tx, workflow="v")).rows] == [other]
    assert len(store.read(lambda tx: requests.list_(tx, status="inprogress")).rows) == 5


def test_two_nodes_close_the_last_jobs_of_a_step_at_once(
    store: Store, store_url: str, opened: storing.Opening
) -> None:
    """The second transaction sees the first: the next step starts exactly once, 50 times."""
    two = storing.workflow("w", "a", "b", "c<a,b")
    other = opened(store_url)
    made = [storing.submit(store, two) for _ in range(50)]
    left, right = storing.claims(store, "a"), storing.claims(store, "b")
    both = threading.Barrier(2)

    def closing(by: Store, claims: list[job.Claim]) -> None:
        for claim in sorted(claims, key=lambda c: c.request_id or b""):
            both.wait(20)
            storing.close(by, [storing.outcome(claim)])

    thread = threading.Thread(target=closing, args=(other, right))
    thread.start()
    closing(store, left)
    thread.join()
    assert len(storing.finish(store, "c")) == 50
    assert {storing.request(store, request_id)[0].status for request_id in made} == {"completed"}


def write_unknown_status(store: Store, table: str, row_id: bytes) -> None:
    """As a program without strict mode: MySQL keeps '' for a word that it does not know."""

    def write(tx: Tx) -> None:
        tx.execute("SET SESSION sql_mode = ''")
        tx.execute(f"UPDATE {table} SET status = 'running' WHERE id = %s", (row_id,))

    store.run(write)
    store.close()


def test_a_request_with_a_status_that_is_none_fails_alone(mysql: Store) -> None:
    """By an outcome, a sweep of what expired, or a cancel, whichever meets it; others go on."""
    bad, other = storing.submit(mysql, DELETE), storing.submit(mysql, DELETE)
    write_unknown_status(mysql, "workerd_requests", bad)
    one, two = storing.claims(mysql, "get")
    storing.close(mysql, [storing.outcome(one), storing.outcome(two)])
    assert storing.states(mysql, other)[1]["del1"] == "new"
    row, _ = storing.request(mysql, bad)
    assert (row.status, row.error) == ("failed", "Its status, '', is none that a request can have.")


def test_a_job_with_a_status_that_is_none_counts_as_failed(mysql: Store) -> None:
    """The sweep of requests meets it, and repairs the others."""
    bad, other = storing.submit(mysql, DELETE), storing.submit(mysql, DELETE)
    write_unknown_status(mysql, "workerd_jobs", storing.request(mysql, bad)[1]["get"].id)
    assert mysql.run(lambda tx: stuck_requests.sweep(tx, {DELETE.name: DELETE}, 100)).repaired == 1
    row, found = storing.request(mysql, bad)
    assert row.status == "failed"
    with pytest.raises(Conflict, match="ended"):
        mysql.run(lambda tx: job_control.cancel(tx, found["get"].id))
    assert storing.states(mysql, other) == ("inprogress", {"get": "new"})
