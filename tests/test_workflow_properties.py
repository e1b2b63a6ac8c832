"""Any graph, any outcomes, in any order and reported twice: every request ends as it must."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workerd import workflow as w
from workerd.config.workflow_config import WorkflowJob
from workerd.job import LIVE, Status
from workerd.outcome import Reason
from workerd.spawned_jobs import spawned

R = w.RequestStatus


@st.composite
def graphs(draw: st.DrawFn) -> w.Graph:
    jobs: list[WorkflowJob] = []
    for number in range(draw(st.integers(1, 8))):
        needs = draw(st.sets(st.sampled_from([j.name for j in jobs]))) if jobs else set()
        step = max((j.step + 1 for j in jobs if j.name in needs), default=0)
        jobs.append(WorkflowJob(name=f"j{number}", handler="h", needs=tuple(sorted(needs)), step=step))
    return w.Graph(name="g", jobs=tuple(draw(st.permutations(jobs))), quiet=draw(st.booleans()))


OUTCOMES = [
    (Status.COMPLETED, Reason.OK),
    (Status.COMPLETED, Reason.OK),
    (Status.COMPLETED, Reason.OK),
    (Status.COMPLETED, Reason.SKIPPED),
    (Status.COMPLETED, Reason.IGNORED),
    (Status.FAILURE, Reason.ERROR),
    (Status.CANCELLED, Reason.CANCELLED),
    (Status.RETRY, Reason.RETRY),
    (Status.NEW, None),
]


@dataclass
class RequestModel:
    """The store's side of a request as plain values."""

    graph: w.Graph
    rows: dict[str, w.JobState] = field(default_factory=dict)
    status: w.RequestStatus = R.INPROGRESS
    failing: w.RequestStatus | None = None
    inserted: Counter[str] = field(default_factory=Counter)
    began: list[tuple[str, frozenset[str], frozenset[str]]] = field(default_factory=list)

    def completed(self) -> frozenset[str]:
        return frozenset(n for n, row in self.rows.items() if row.status is Status.COMPLETED)

    def insert(self, job: WorkflowJob) -> None:
        self.inserted[job.name] += 1
        self.rows[job.name] = w.JobState(job.name, Status.NEW)

    def move(self) -> None:
        decision = w.decide(self.graph, list(self.rows.values()), failing=self.failing)
        for job in decision.insert:
            completed = self.completed()
            self.began.append((job.name, completed, frozenset(self.rows.keys() - completed)))
            self.insert(job)
        if decision.cancel_waiting:
            for name, row in self.rows.items():
                if row.status in (Status.NEW, Status.SCHEDULED):
                    self.rows[name] = w.JobState(name, Status.CANCELLED, Reason.CANCELLED)
        self.status = decision.status

    def close(self, name: str, status: Status, reason: Reason | None, spawn: int) -> None:
        if self.rows[name].status is not Status.INPROGRESS:
            return  # a late or second report takes no effect
        if status is Status.RETRY:
            status = Status.SCHEDULED
        self.rows[name] = w.JobState(name, status, reason)
        if status in (Status.FAILURE, Status.CANCELLED) and self.failing is None:
            self.failing = R.FAILED if status is Status.FAILURE else R.CANCELLED
        quiet_end = self.graph.quiet and any(r.reason is Reason.IGNORED for r in self.rows.values())
        if status is Status.COMPLETED and spawn and self.failing is None and not quiet_end:
            text = msgspec.json.encode([{"handler": "h"}] * spawn)
            for job in spawned(self.graph, name, text, self.rows):
                self.insert(job)
        self.move()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graph=graphs(), data=st.data())
def test_every_request_ends_and_keeps_the_order(graph: w.Graph, data: st.DataObject) -> None:
    """Every request ends, nothing begins before its needs, nothing is inserted twice, nothing lives on."""
    model = RequestModel(graph)
    model.move()
    reports = 0
    while model.status is R.INPROGRESS:
        live = sorted(n for n, row in model.rows.items() if row.status in LIVE)
        assert live, "a request in progress has something that lives"
        name = data.draw(st.sampled_from(live))
        if model.rows[name].status in (Status.NEW, Status.SCHEDULED):
            model.rows[name] = w.JobState(name, Status.INPROGRESS)
            continue
        reports += 1
        # After so many reports only ends are drawn, or a job could be retried without end.
        status, reason = data.draw(st.sampled_from(OUTCOMES[:7] if reports > 30 else OUTCOMES))
        spawn = data.draw(st.integers(0, 2)) if reports < 20 else 0
        for _ in range(data.draw(st.integers(1, 2))):
            model.close(name, status, reason, spawn)
    check(model)


def check(model: RequestModel) -> None:
    assert set(model.inserted.values()) <= {1}
    assert not [n for n, row in model.rows.items() if row.status in LIVE]
    needs = {job.name: set(job.needs) for job in model.graph.jobs}
    for name, completed, unfinished in model.began:
        assert needs[name] <= completed
        assert not needs[name] & {w.owner(set(needs), other) for other in unfinished}
    statuses = {row.status for row in model.rows.values()}
    quiet = model.graph.quiet and any(r.reason is Reason.IGNORED for r in model.rows.values())
    if model.failing is R.FAILED:
        assert model.status is R.FAILED
    elif quiet:
        assert model.status is R.COMPLETED
    elif Status.CANCELLED in statuses:
        assert model.status is R.CANCELLED
    else:
        assert model.status is R.COMPLETED
        assert needs.keys() <= model.rows.keys()
    before = (model.status, dict(model.rows))
    model.move()
    assert (model.status, model.rows) == before, "deciding once more changes nothing"
