"""Decisions on the next steps of a request, without a store."""

from __future__ import annotations

import uuid

import pytest

from workerd import workflow as w
from workerd.config.schedule_config import ScheduleConfig
from workerd.config.workflow_config import WorkflowConfig, WorkflowJob
from workerd.job import Status
from workerd.outcome import Reason
from workerd.spawned_jobs import spawned

NEW, RUNS, SCHEDULED = Status.NEW, Status.INPROGRESS, Status.SCHEDULED
DONE, FAILED, CANCELLED = Status.COMPLETED, Status.FAILURE, Status.CANCELLED
R = w.RequestStatus

DELETE_USER = w.Graph(
    name="delete_user",
    jobs=(
        WorkflowJob(name="get", handler="get"),
        WorkflowJob(name="del1", handler="del1", needs=("get",), step=1),
        WorkflowJob(name="del2", handler="del2", needs=("get",), step=1),
        WorkflowJob(name="tell", handler="tell", needs=("del1", "del2"), step=2),
    ),
    steps=("retrieve", "delete", "tell"),
)


def states(**given: Status | tuple[Status, Reason]) -> list[w.JobState]:
    return [
        w.JobState(name.replace("__", "/"), *(value if isinstance(value, tuple) else (value,)))
        for name, value in given.items()
    ]


def names(decision: w.WorkflowDecision) -> list[str]:
    return [job.name for job in decision.insert]


def test_the_first_step_begins_at_once() -> None:
    """A request without jobs inserts exactly what needs nothing."""
    decision = w.decide(DELETE_USER, [])
    assert (names(decision), decision.status, decision.step) == (["get"], R.INPROGRESS, 0)


def test_a_step_begins_when_the_one_before_has_completed() -> None:
    """The next step waits for every job of the one before and then begins whole."""
    assert names(w.decide(DELETE_USER, states(get=DONE))) == ["del1", "del2"]
    assert names(w.decide(DELETE_USER, states(get=DONE, del1=DONE, del2=RUNS))) == []
    decision = w.decide(DELETE_USER, states(get=DONE, del1=DONE, del2=DONE))
    assert (names(decision), decision.step) == (["tell"], 2)


def test_a_request_completes_with_its_last_job() -> None:
    """All jobs completed is the request completed."""
    decision = w.decide(DELETE_USER, states(get=DONE, del1=DONE, del2=DONE, tell=DONE))
    assert (decision.status, decision.step) == (R.COMPLETED, 2)


@pytest.mark.parametrize("reason", [Reason.IGNORED, Reason.SKIPPED])
def test_ignored_and_skipped_go_on_in_a_workflow_that_does_not_recur(reason: Reason) -> None:
    """Both are completed jobs, so the steps go on."""
    assert names(w.decide(DELETE_USER, states(get=(DONE, reason)))) == ["del1", "del2"]


def test_ignored_ends_a_recurring_workflow_quietly() -> None:
    """Waiting jobs are cancelled, running ones continue, and the request ends completed."""
    quiet = w.Graph(name="sync", jobs=DELETE_USER.jobs, cooler=1.0, quiet=True)
    first = w.decide(quiet, states(get=(DONE, Reason.IGNORED)))
    assert (first.status, first.insert) == (R.COMPLETED, ())
    beside = w.decide(quiet, states(get=DONE, del1=(DONE, Reason.IGNORED), del2=NEW))
    assert (beside.status, beside.cancel_waiting) == (R.COMPLETED, True)
    runs = w.decide(quiet, states(get=DONE, del1=(DONE, Reason.IGNORED), del2=RUNS))
    assert (runs.status, runs.cancel_waiting) == (R.INPROGRESS, False)
    assert names(w.decide(quiet, states(get=(DONE, Reason.SKIPPED)))) == ["del1", "del2"]


def test_a_failure_cancels_waiting_jobs_and_lets_running_ones_finish() -> None:
    """The request is failed once nothing of it lives any more, and no further step begins."""
    decision = w.decide(DELETE_USER, states(get=DONE, del1=FAILED, del2=RUNS), failing=R.FAILED)
    assert (decision.status, decision.insert, decision.cancel_waiting) == (R.INPROGRESS, (), False)
    decision = w.decide(DELETE_USER, states(get=DONE, del1=FAILED, del2=SCHEDULED), failing=R.FAILED)
    assert (decision.status, decision.cancel_waiting) == (R.FAILED, True)
    assert w.decide(DELETE_USER, states(get=DONE, del1=FAILED, del2=DONE)).status is R.FAILED


def test_a_cancelled_job_cancels_its_request() -> None:
    """Also if one beside it fails meanwhile; of a reopened one nobody knows which came first."""
    assert w.decide(DELETE_USER, states(get=CANCELLED), failing=R.CANCELLED).status is R.CANCELLED
    beside = w.decide(DELETE_USER, states(get=DONE, del1=CANCELLED, del2=FAILED), failing=R.CANCELLED)
    assert beside.status is R.CANCELLED
    beside = w.decide(DELETE_USER, states(get=DONE, del1=CANCELLED, del2=FAILED))
    assert beside.status is R.FAILED


def test_a_request_cancelled_by_a_person_begins_nothing() -> None:
    """Jobs that complete despite the cancel do not change it."""
    assert w.decide(DELETE_USER, states(get=DONE), failing=R.CANCELLED).status is R.CANCELLED


def test_a_reopened_request_waits_for_the_retried_job() -> None:
    """An older failure beside a job that was put back neither cancels it nor lets a step begin."""
    decision = w.decide(DELETE_USER, states(get=DONE, del1=FAILED, del2=NEW))
    assert (decision.status, decision.cancel_waiting, decision.insert) == (R.INPROGRESS, False, ())


def test_dependents_wait_for_spawned_jobs_too() -> None:
    """A job counts as done when all that it spawned, and what these spawned, is completed."""
    base = states(get=DONE, get__0=DONE, get__1=RUNS)
    assert names(w.decide(DELETE_USER, base)) == []
    deeper = states(get=DONE, get__0=DONE, get__0__x=NEW)
    assert names(w.decide(DELETE_USER, deeper)) == []
    assert names(w.decide(DELETE_USER, states(get=DONE, get__0=DONE, get__0__x=DONE))) == ["del1", "del2"]


def test_spawned_jobs_are_named_after_their_parent() -> None:
    """Names come from the spawned job or its number; existing jobs are not created again."""
    text = b'[{"handler":"h","vars":{"n":1}},{"handler":"h","name":"b"}]'
    made = spawned(DELETE_USER, "del1", text, ["del1"])
    assert [(j.name, j.handler, j.vars, j.step) for j in made] == [
        ("del1/0", "h", {"n": 1}, 1),
        ("del1/b", "h", {}, 1),
    ]
    assert [j.name for j in spawned(DELETE_USER, "del1", text, ["del1", "del1/0"])] == ["del1/b"]


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"{}",
        b'[{"vars":{}}]',
        b'[{"handler":""}]',
        b'[{"handler":"h","nmae":"x"}]',
        b'[{"handler":"h","name":"x"},{"handler":"h","name":"x"}]',
        b'[{"handler":"h","name":"' + b"x" * 191 + b'"}]',
        b'[{"handler":"h\\u0000"}]',
        b'[{"handler":"~webhook"}]',
        b'[{"handler":"~wait"}]',
        b"[" + b'{"handler":"h"},' * 10_000 + b'{"handler":"h"}]',
        b"[" * 100_000,
    ],
)
def test_a_bad_spawn_is_refused_with_a_sentence(text: bytes) -> None:
    """Whatever a handler asks to spawn, the store gets names that fit or a reason."""
    with pytest.raises(ValueError, match=r"spawned"):
        spawned(DELETE_USER, "get", text, [])


def test_a_spawned_name_may_not_be_one_of_the_graph() -> None:
    """A job of the graph that is called like a spawned one stays the graph's."""
    graph = w.Graph(name="g", jobs=(WorkflowJob(name="a", handler="h"), WorkflowJob(name="a/b", handler="h")))
    with pytest.raises(ValueError, match="name of another job"):
        spawned(graph, "a", b'[{"handler":"h","name":"b"}]', [])
    assert w.owner({"a", "a/b"}, "a/b/0") == "a/b"
    assert w.owner({"a"}, "/0") is None


def test_a_graph_survives_its_column() -> None:
    """Reading `steps` returns what was written."""
    workflow = WorkflowConfig(
        name="x", jobs=DELETE_USER.jobs, step_names=("a",), schedule=ScheduleConfig(cooler=2.0)
    )
    graph = w.graph_of(workflow)
    assert (graph.cooler, graph.quiet) == (2.0, True)
    assert w.decode(w.encode(graph)) == graph


@pytest.mark.parametrize("text", [b"", b"null", b"[]", b'{"name":"x"}', b"\xff", b"[" * 100_000])
def test_steps_that_cannot_be_read_say_so(text: bytes) -> None:
    """An invalid handwritten column becomes an error that names the remedy."""
    with pytest.raises(ValueError, match="submit it again"):
        w.decode(text)


def test_a_graph_with_a_cycle_ends_failed() -> None:
    """A handwritten graph that can never run still ends its request."""
    graph = w.Graph(name="c", jobs=(WorkflowJob(name="a", handler="h", needs=("a",)),))
    assert w.decide(graph, []).status is R.FAILED


def test_extras_of_several_jobs_are_merged_by_key() -> None:
    """Different keys both win, the same key is the later one's."""
    assert w.merge(b'{"a":1,"b":1}', [b'{"b":2}', b'{"c":3}']) == b'{"a":1,"b":2,"c":3}'
    assert w.merge(None, []) is None
    assert w.merge(None, [b"{}"]) is None
    for bad in (b"[]", b"{", b"\xff"):
        with pytest.raises(ValueError, match="JSON object"):
            w.merge(None, [bad])


def test_a_jobs_id_follows_from_request_and_name() -> None:
    """The same job of a request always has the same id, in the form and order of a UUIDv7."""
    one = w.job_id(b"r" * 16, 1_700_000_000_000_000, "a")
    assert one == w.job_id(b"r" * 16, 1_700_000_000_000_000, "a")
    assert one != w.job_id(b"r" * 16, 1_700_000_000_000_000, "b")
    assert uuid.UUID(bytes=one).version == 7
    assert one < w.job_id(b"r" * 16, 1_700_000_000_001_000, "a")
