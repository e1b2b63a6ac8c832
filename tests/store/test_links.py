"""Large graphs: needs in rows, so that an ending costs the same whatever the size of the graph."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.store.test_batches import CONFIG, FINALLY, count, plan, progress, submit, work
from tests.support import storing as s
from workerd import workflow as wf
from workerd.config.schedule_config import ScheduleConfig
from workerd.config.workflow_config import WAIT_HANDLER, WorkflowConfig, WorkflowJob
from workerd.errors import CommitUnknown, Conflict, InvalidValue, StoreAway
from workerd.job import Claim, Status, parse_id
from workerd.operations import request_graphs
from workerd.operations import requests as operations
from workerd.operations.why import explain
from workerd.store import batches, job_control, requests, retention, signals
from workerd.store.base import Store, Tx
from workerd.store.links import SLICE_NEEDS


@pytest.fixture(autouse=True)
def _rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every graph with needs is kept in rows."""
    monkeypatch.setattr(wf, "MAX_INLINE_JOBS", 0)


def node(name: str, *needs: str, **keys: Any) -> dict[str, Any]:
    return {"name": name, "handler": "h", "needs": list(needs), **keys}


def chain(length: int) -> list[dict[str, Any]]:
    return [node(str(n), *([str(n - 1)] if n else [])) for n in range(length)]


def run(store: Store, status: Status = Status.COMPLETED) -> list[str]:
    """Claim and end what waits; the names."""
    return sorted(claim.name or "" for claim in s.finish(store, "h", status))


def by_name(claims: list[Claim]) -> list[Claim]:
    return sorted(claims, key=lambda claim: claim.name or "")


class Cost:
    """Statements, and rows that they read."""

    statements = 0
    rows = 0


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cost]:
    cost = Cost()
    query, execute = Tx.query, Tx.execute

    def counting_query(tx: Tx, *arguments: Any) -> Any:
        found = query(tx, *arguments)
        cost.statements += 1
        cost.rows += len(found)
        return found

    def counting_execute(tx: Tx, *arguments: Any) -> int:
        cost.statements += 1
        return execute(tx, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Tx, "query", counting_query)
        patched.setattr(Tx, "execute", counting_execute)
        yield cost


def test_an_ending_costs_the_same_in_a_graph_of_any_size(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statements, and rows read, of the claim and of the ending of one job of a chain."""
    costs = []
    for length in (20, 2000):
        submit(store, jobs=chain(length), **{"finally": FINALLY})
        work(store)
        run(store)
        with counted(monkeypatch) as cost:
            assert run(store) == ["1"]
        costs.append((cost.statements, cost.rows))
        s.sql(store, "DELETE FROM workerd_jobs")
    assert costs[0] == costs[1]
    assert costs[0][1] < 20


def test_a_job_begins_when_all_that_it_needs_is_done_and_gets_their_payloads(store: Store) -> None:
    """And nothing is held back that needs nothing."""
    jobs = [node("a"), node("b"), node("c", "a", "b"), node("d", "c", "c")]
    request_id = submit(store, jobs=jobs, **{"finally": FINALLY})
    work(store)
    first, second = by_name(s.claims(store, "h"))
    s.close(store, [s.outcome(first, payload=b"1", payload_type="json")])
    assert s.claims(store, "h") == []
    s.close(store, [s.outcome(second, payload=b"2", payload_type="json")])
    (claim,) = s.claims(store, "h")
    assert (claim.name, claim.needs) == ("c", {"a": b"1", "b": b"2"})
    s.close(store, [s.outcome(claim, payload=b"3", payload_type="json")])
    (claim,) = s.claims(store, "h")
    assert claim.needs == {"c": b"3"}
    assert progress(store, request_id) == ("inprogress", 3, 0, 4)
    s.close(store, [s.outcome(claim)])
    assert len(s.finish(store, "last")) == 1
    assert progress(store, request_id) == ("completed", 4, 0, 4)


@pytest.mark.slow
def test_a_chain_of_a_hundred_thousand_jobs_is_checked_and_begins(mysql: Store) -> None:
    """Without recursion; each job is a row from the start, written in slices."""
    made = plan(mysql, jobs=chain(100_000))
    assert made.nodes[-1].step == 99_999
    request_id = parse_id(request_graphs.submit_in_slices(mysql.run, made).id)
    work(mysql)
    assert run(mysql) == ["0"]
    assert run(mysql) == ["1"]
    assert progress(mysql, request_id) == ("inprogress", 2, 0, 100_000)


def test_what_very_many_jobs_need_is_told_them_in_slices(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ending itself reads no more than a slice; the last job needs them all."""
    wide = 2 * SLICE_NEEDS + 10
    jobs = [node("a"), *(node(f"m{n}", "a") for n in range(wide))]
    jobs.append(node("z", *(f"m{n}" for n in range(wide))))
    request_id = submit(store, jobs=jobs)
    work(store)
    with counted(monkeypatch) as cost:
        assert run(store) == ["a"]
    assert cost.rows < SLICE_NEEDS + 50
    assert count(store, "h") == 0
    work(store)
    assert count(store, "h") == wide
    for _ in range(wide // 100 + 1):
        run(store)
    assert run(store) == ["z"]
    assert progress(store, request_id) == ("completed", wide + 2, 0, wide + 2)


def test_why_names_what_a_job_waits_for(store: Store) -> None:
    """And the signals that are waited for now are offered."""
    jobs = [
        node("a"),
        node("b", "a"),
        {"name": "go", "signal": "go"},
        {"name": "on", "signal": "on", "needs": ["b"]},
    ]
    request_id = submit(store, jobs=jobs)
    work(store)
    found = s.request(store, request_id)[1]
    told = {
        name: store.read(lambda tx, job=job: explain(tx, CONFIG, job.id, {}))[1][0]
        for name, job in found.items()
    }
    assert told["b"] == "The job waits for 1 job that it needs: a."
    assert told["on"] == "The job waits for 1 job that it needs: b."
    assert "waits for the signal go" in told["go"]
    details = store.read(lambda tx: operations.details(tx, CONFIG, request_id))
    assert details.signals == ["go"]
    run(store)
    run(store)
    assert list(store.read(lambda tx: operations.results(tx, request_id))) == []


def test_a_job_that_waits_for_others_cannot_be_run_by_hand(store: Store) -> None:
    """It would run without what it needs."""
    submit(store, jobs=chain(2))
    work(store)
    (held,) = store.read(lambda tx: tx.query("SELECT id FROM workerd_jobs WHERE status = 'scheduled'"))
    with pytest.raises(Conflict, match="jobs that it needs"):
        store.run(lambda tx: job_control.retry(tx, held[0]))


def test_what_a_job_spawned_holds_back_those_that_need_it(store: Store) -> None:
    """They get its payload too."""
    submit(store, jobs=[node("a"), node("b", "a")])
    work(store)
    (claim,) = s.claims(store, "h")
    s.close(store, [s.outcome(claim, spawn=b'[{"handler":"after","name":"x"}]')])
    assert count(store, "h") == 0
    s.finish(store, "after", payload=b"7", payload_type="json")
    (claim,) = s.claims(store, "h")
    assert (claim.name, claim.needs) == ("b", {"a": b"null", "a/x": b"7"})


def test_stages_get_the_payloads_that_they_need_of_a_large_graph(store: Store) -> None:
    """As of a small one; of a job that never began None, and its name."""
    final = [{"name": "last", "handler": "last", "needs": ["a", "b"]}]
    submit(store, jobs=[node("a"), node("b", "a"), node("c", "b")], **{"finally": final})
    work(store)
    s.finish(store, "h", payload=b"1", payload_type="json")
    run(store, Status.FAILURE)
    work(store)
    (claim,) = s.claims(store, "last")
    assert (claim.needs, claim.failed) == ({"a": b"1", "b": b"null"}, ["b"])


@pytest.mark.parametrize("cancel", [False, True])
def test_the_error_of_a_request_names_the_job(store: Store, cancel: bool) -> None:
    """As of a small graph; with a job that is cancelled, the request is."""
    request_id = submit(store, jobs=[node("a"), node("b", "a")])
    work(store)
    (claim,) = s.claims(store, "h")
    s.close(store, [s.outcome(claim, Status.CANCELLED if cancel else Status.FAILURE, error="no")])
    work(store)
    row = s.request(store, request_id)[0]
    expected = ("cancelled", 'cancelled with its job "a"') if cancel else ("failed", '"a" failed: no')
    assert (row.status, row.error) == expected


def test_a_request_knows_its_step(store: Store) -> None:
    """The highest one of which a job has begun."""
    request_id = submit(store, jobs=chain(3))
    work(store)
    steps = []
    while run(store):
        steps.append(s.request(store, request_id)[0].step)
    assert steps == [1, 2, 2]


def cancelled_on_arrival(store: Store, made: request_graphs.Plan) -> bytes:
    """Send a graph whose first job, "a", is cancelled before the others arrive; the request's id."""
    request_id = parse_id(store.run(lambda tx: request_graphs.begin(tx, made)).id)
    store.run(lambda tx: batches.add(tx, request_id, made.members[:1], made.nodes[:1]))
    first = wf.job_id(request_id, created_at(store, request_id), "a")
    store.run(lambda tx: job_control.cancel(tx, first))
    store.run(lambda tx: batches.add(tx, request_id, made.members[1:], made.nodes[1:]))
    store.run(lambda tx: batches.seal(tx, request_id))
    work(store)
    return request_id


def test_what_ends_before_the_graph_is_complete_is_told_to_those_that_come_later(store: Store) -> None:
    """A job that may fail is cancelled while the graph is sent: what needs it begins all the same."""
    request_id = cancelled_on_arrival(
        store, plan(store, jobs=[node("a", on_error="continue"), node("b", "a")])
    )
    assert run(store) == ["b"]
    assert progress(store, request_id) == ("completed", 1, 1, 2)


@pytest.mark.parametrize("needs", [(), ("a",)])
def test_a_job_that_is_cancelled_before_its_request_is_complete_cancels_it(
    store: Store, needs: tuple[str, ...]
) -> None:
    """Once all have arrived: none of them runs."""
    made = plan(store, jobs=[node("a"), node("b", *needs)], **{"finally": FINALLY})
    request_id = cancelled_on_arrival(store, made)
    assert run(store) == []
    assert len(s.finish(store, "last")) == 1
    assert progress(store, request_id) == ("cancelled", 0, 2, 2)


def test_a_store_that_is_away_while_a_graph_is_sent(store: Store) -> None:
    """The request exists: who sent it is told its id."""
    made, calls = plan(store, jobs=chain(3)), []

    def run_once(work: Any) -> Any:
        calls.append(work)
        if len(calls) > 1:
            raise StoreAway("gone")
        return store.run(work)

    with pytest.raises(CommitUnknown) as caught:
        request_graphs.submit_in_slices(run_once, made)
    (request_id,) = caught.value.ids
    assert progress(store, parse_id(request_id))[0] == "queuing"


def created_at(store: Store, request_id: bytes) -> int:
    return int(s.request(store, request_id)[0].created_at)


# -- workflows of the configuration


def configured(*jobs: WorkflowJob, **keys: Any) -> WorkflowConfig:
    final = (WorkflowJob(name="last", handler="last", step=9),)
    return WorkflowConfig(name="big", jobs=jobs, final=final, **keys)


def links_of(length: int) -> list[WorkflowJob]:
    return [
        WorkflowJob(name=str(n), handler="h", needs=(str(n - 1),) if n else (), step=n) for n in range(length)
    ]


@pytest.fixture
def short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "SLICE_ROWS", 4)


def test_a_large_workflow_is_written_in_slices_and_runs(store: Store, short_slices: None) -> None:
    """As a graph that came with its request: its jobs are rows from the start, its endings read few."""
    request_id = s.submit(store, configured(*links_of(10)))
    assert progress(store, request_id) == ("inprogress", 0, 0, 0)
    assert store.run(batches.work).found
    assert progress(store, request_id)[3] == 4
    assert run(store) == []
    work(store)
    assert progress(store, request_id)[3] == 10
    assert b'"jobs":[]' in (s.request(store, request_id)[0].steps or b"")
    assert [run(store) for _ in range(10)] == [[str(n)] for n in range(10)]
    assert len(s.finish(store, "last")) == 1
    row = s.request(store, request_id)[0]
    assert (row.status, row.step) == ("completed", 9)


def test_a_large_workflow_is_cancelled_and_retried_while_it_is_written(
    store: Store, short_slices: None
) -> None:
    """Retried by hand, it is written to its end."""
    request_id = s.submit(store, configured(*links_of(10)))
    store.run(batches.work)
    store.run(lambda tx: requests.cancel(tx, request_id))
    work(store)
    s.finish(store, "last")
    assert progress(store, request_id) == ("cancelled", 0, 4, 4)
    first = wf.job_id(request_id, created_at(store, request_id), "0")
    store.run(lambda tx: job_control.retry(tx, first))
    work(store)
    assert progress(store, request_id) == ("inprogress", 0, 0, 10)
    assert [run(store) for _ in range(10)] == [[str(n)] for n in range(10)]
    work(store)
    (claim,) = s.claims(store, "last")
    assert claim.name == "last#2"
    s.close(store, [s.outcome(claim)])
    assert progress(store, request_id) == ("completed", 10, 0, 10)


def test_a_signal_for_a_large_workflow_comes_before_it_is_written(store: Store, short_slices: None) -> None:
    """It is kept until the wait begins."""
    wait = WorkflowJob(name="go", handler=WAIT_HANDLER, signal="go", needs=("0",), step=1)
    after = WorkflowJob(name="after", handler="h", needs=("go",), step=2)
    request_id = s.submit(store, configured(links_of(1)[0], wait, after, *links_of(7)[1:]))
    store.run(batches.work)
    with pytest.raises(InvalidValue, match="its signals are: go"):
        store.run(lambda tx: signals.deliver(tx, request_id, "stop", b"1", "me", {}))
    store.run(lambda tx: signals.deliver(tx, request_id, "go", b"1", "me", {}))
    work(store)
    assert run(store) == ["0"]
    store.run(lambda tx: signals.pass_due(tx, 10))
    assert "after" in run(store)


def test_a_large_workflow_stays_in_one_piece_where_rows_would_not_pay(store: Store) -> None:
    """It has very many needs, or recurs: then a job that ended as `ignored` ends the run."""
    first = [WorkflowJob(name=f"a{n}", handler="h") for n in range(15)]
    needs = tuple(job.name for job in first)
    dense = [WorkflowJob(name=f"b{n}", handler="h", needs=needs) for n in range(40)]
    for workflow in (
        configured(*first, *dense),
        configured(*links_of(3), schedule=ScheduleConfig(cron="0 0 1 1 *")),
    ):
        graph = wf.unfolding(wf.graph_of(workflow))
        assert not graph.linked
        assert graph.jobs == workflow.jobs


def test_a_failure_fails_the_request_and_a_retry_by_hand_goes_on_from_there(store: Store) -> None:
    """What had not begun is held again; another failure that remains fails it again."""
    jobs = [node("a"), node("b"), node("c", "a"), node("d", "a", "b")]
    request_id = submit(store, jobs=jobs, **{"finally": FINALLY})
    work(store)
    first, second = by_name(s.claims(store, "h"))
    s.close(store, [s.outcome(first, Status.FAILURE), s.outcome(second)])
    work(store)
    s.finish(store, "last")
    assert progress(store, request_id) == ("failed", 1, 3, 4)
    store.run(lambda tx: job_control.retry(tx, first.id))
    work(store)
    assert progress(store, request_id) == ("inprogress", 1, 0, 4)
    assert run(store) == ["a"]
    assert run(store, Status.FAILURE) == ["c", "d"]
    work(store)
    assert len(s.finish(store, "last")) == 1
    assert progress(store, request_id) == ("failed", 2, 2, 4)
    found = s.request(store, request_id)[1]
    store.run(lambda tx: job_control.retry(tx, found["c"].id))
    work(store)
    assert run(store) == ["c"]
    work(store)
    s.finish(store, "last")
    assert progress(store, request_id)[0] == "failed"


def test_a_job_that_ends_while_its_request_is_reopened_lets_others_begin(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are held again already; the others when they are."""
    monkeypatch.setattr(batches, "SLICE_ROWS", 1)
    request_id = submit(store, jobs=[node("a"), node("b", "a"), node("c", "a"), node("d", "b", "c")])
    work(store)
    (claim,) = s.claims(store, "h")
    s.close(store, [s.outcome(claim, Status.FAILURE)])
    work(store)
    assert progress(store, request_id)[0] == "failed"
    store.run(lambda tx: job_control.retry(tx, claim.id))
    store.run(batches.work)
    store.run(batches.work)
    assert run(store) == ["a"]
    work(store)
    assert run(store) == ["b", "c"]
    assert run(store) == ["d"]
    assert progress(store, request_id) == ("completed", 4, 0, 4)


def test_what_became_ready_before_a_retry_by_hand_begins_after_it(store: Store) -> None:
    """Its last need was met when its request was failing, and nobody had cancelled it yet."""
    request_id = submit(store, jobs=[node("a"), node("b"), node("c", "b"), node("d", "a", "c")])
    work(store)
    first, second = by_name(s.claims(store, "h"))
    s.close(store, [s.outcome(first, Status.FAILURE)])
    s.close(store, [s.outcome(second)])
    store.run(lambda tx: job_control.retry(tx, first.id))
    work(store)
    assert run(store) == ["a", "c"]
    assert run(store) == ["d"]
    assert progress(store, request_id) == ("completed", 4, 0, 4)


def test_a_request_of_which_another_job_had_failed_fails_again_after_a_retry_by_hand(store: Store) -> None:
    """The retried job runs to its end, be that before its request is reopened or after."""
    request_id = submit(store, jobs=[node("a"), node("b"), node("c", "a", "b")], **{"finally": FINALLY})
    work(store)
    claims = by_name(s.claims(store, "h"))
    s.close(store, [s.outcome(claim, Status.FAILURE) for claim in claims])
    for early in (True, False):
        work(store)
        s.finish(store, "last")
        assert progress(store, request_id)[0] == "failed"
        store.run(lambda tx: job_control.retry(tx, claims[1].id))
        if not early:
            work(store)
        assert run(store) == ["b"]
    work(store)
    s.finish(store, "last")
    assert progress(store, request_id) == ("failed", 1, 2, 3)


def test_a_deleted_request_leaves_nothing(store: Store) -> None:
    """Neither jobs nor needs."""
    request_id = submit(store, jobs=chain(3))
    work(store)
    for _ in range(3):
        run(store)
    assert progress(store, request_id)[0] == "completed"
    limits = retention.RetentionLimits(completed=2**60, failure=2**60)
    while store.run(lambda tx: retention.purge_requests(tx, limits, limit=100)):
        pass
    for table in ("jobs", "requests", "request_jobs", "request_needs"):
        assert s.value(store, f"SELECT COUNT(*) FROM workerd_{table}") == 0, table


def graph(rng: random.Random) -> list[dict[str, Any]]:
    jobs = []
    for n in range(rng.randint(2, 12)):
        needs = rng.sample(range(n), min(n, rng.randint(0, 3)))
        jobs.append(node(f"j{n}", *(f"j{need}" for need in needs), on_error=rng.choice(["fail", "continue"])))
    return [*jobs, node("own", on_error="fail"), node("other", "own", on_error="continue")]


def outcome_of(store: Store, seed: int, inline: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """How a random graph ends whose jobs fail at random, and which of its jobs ran."""
    monkeypatch.setattr(wf, "MAX_INLINE_JOBS", inline)
    rng = random.Random(seed)
    bad = {f"j{n}" for n in range(12) if rng.random() < 0.2}
    most = rng.choice([None, 1])
    request_id = submit(store, jobs=graph(rng), max_failures=most, **{"finally": FINALLY})
    work(store)
    ran = []
    while claims := by_name(s.claims(store, "h")):
        ran += [(claim.name, sorted(claim.needs or {}), sorted(claim.failed or [])) for claim in claims]
        states = [Status.FAILURE if claim.name in bad else Status.COMPLETED for claim in claims]
        s.close(store, [s.outcome(*pair) for pair in zip(claims, states, strict=True)])
        work(store)
    assert len(s.finish(store, "last")) == 1
    row = s.request(store, request_id)[0]
    assert row.status in ("completed", "failed")
    return row.status, ran, row.done


def test_a_graph_ends_in_rows_as_it_does_in_one_piece(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random graphs, failures and limits of them."""
    for seed in range(25):
        inline, rows = (outcome_of(store, seed, size, monkeypatch) for size in (200, 0))
        assert inline == rows, seed


def test_a_graph_is_added_in_slices_and_cancelled(store: Store) -> None:
    """A slice that is added twice counts once; `finally` runs after a cancel."""
    made = plan(store, jobs=chain(10), **{"finally": FINALLY})
    request_id = parse_id(store.run(lambda tx: request_graphs.begin(tx, made)).id)
    for part in (slice(0, 6), slice(0, 6), slice(6, 10)):
        store.run(lambda tx, p=part: batches.add(tx, request_id, made.members[p], made.nodes[p]))
    store.run(lambda tx: batches.seal(tx, request_id))
    work(store)
    assert run(store) == ["0"]
    store.run(lambda tx: requests.cancel(tx, request_id))
    work(store)
    assert len(s.finish(store, "last")) == 1
    assert progress(store, request_id) == ("cancelled", 1, 9, 10)
