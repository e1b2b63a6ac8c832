"""Workflows: (graph, states of its jobs) -> which jobs are ready, and whether the request has ended. No I/O.

`decide` sees all jobs of a request at once and keeps no state: the same function advances a request when a
job ends, and repairs a stuck one in any state.

A job is done when it is completed, and so is everything that it spawned. A job spawned by `a` is called
`a/NAME`. A request ends when none of its jobs is live.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Literal, NamedTuple

import msgspec

from workerd.config.graph import of_first_cycle
from workerd.config.workflow_config import OnError, WorkflowConfig, WorkflowJob
from workerd.errors import InvalidValue
from workerd.job import LIVE, Status
from workerd.outcome import Reason


class RequestStatus(StrEnum):
    """The column `status` of `workerd_requests`."""

    QUEUING = "queuing"  # inserted, not picked up yet
    INPROGRESS = "inprogress"  # the jobs of its first step are inserted
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


def known_status(word: str) -> RequestStatus | None:
    """The status of a request; None for a word that is none, as MySQL keeps `''` for one that it refused."""
    try:
        return RequestStatus(word)
    except ValueError:
        return None


REQUEST_ENDED = frozenset({RequestStatus.COMPLETED, RequestStatus.FAILED, RequestStatus.CANCELLED})

MAX_STEP = 2**32 - 1
"""The largest number of a step that the column `step` holds."""
ADHOC = "~graph"
"""The column `workflow` of a request that brought its own graph."""

MAX_INLINE_JOBS = 200
"""Of a graph with more jobs that need others, each is a row from the start, so that an ending stays cheap."""
MAX_NEEDS_A_JOB = 10
"""On average, for a configured workflow's jobs to be such rows: each need is one too, which endings write."""

_WAITING = frozenset({Status.SCHEDULED, Status.NEW})


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """The jobs of a request, as they were when it was submitted or picked up: the column `steps`.

    then, final
        Jobs that follow when all others have ended: `then` if all succeeded, `final` in every case.
    max_failures
        More failed jobs fail the request, None: only one whose failure is not to be continued.
    members
        The other jobs are a batch: each its own row from the start, counted in the request, not in `jobs`.
    linked
        Members need others, wait, or differ in what their failure does: rows of their own say so. Those in
        `jobs` are still to be written, the first of them may have been.
    on_error
        That of each job of a batch.
    digest
        Of the members as they were submitted, so that a repeat with other ones is noticed; empty without
        members, and in requests of an earlier version.
    cooler
        Seconds between the end of a run and the start of the next, None without an interval.
    quiet
        Whether a job that ended as `ignored` ends the request as `completed`.
    """

    name: str
    jobs: tuple[WorkflowJob, ...]
    steps: tuple[str, ...] = ()
    then: tuple[WorkflowJob, ...] = ()
    final: tuple[WorkflowJob, ...] = ()
    max_failures: int | None = None
    members: bool = False
    linked: bool = False
    on_error: OnError = "fail"
    digest: str = ""
    cooler: float | None = None
    quiet: bool = False

    @property
    def all_jobs(self) -> tuple[WorkflowJob, ...]:
        """All jobs that are not members, in the order in which they can begin."""
        return self.jobs + self.then + self.final

    @property
    def unfolds(self) -> bool:
        """Whether members are still to be written: none of them begins before."""
        return self.linked and bool(self.jobs)


class JobState(msgspec.Struct, frozen=True, gc=False):
    """A job of a request, by its current row. `name` is None for rows inserted by hand."""

    name: str | None
    status: Status
    reason: Reason | None = None


class Members(NamedTuple):
    """How many jobs a batch has, and how many of them succeeded and failed. `held`: more will come to run."""

    total: int
    done: int
    failed: int
    held: bool = False

    @property
    def over(self) -> bool:
        return not self.held and self.done + self.failed >= self.total


class Counts(NamedTuple):
    """Jobs of a request without `then` and `final`: all, succeeded, failed or cancelled."""

    total: int
    done: int
    failed: int


class WorkflowDecision(msgspec.Struct, frozen=True, kw_only=True):
    """What the transaction has to write for a request, besides the rows of the attempts."""

    status: RequestStatus
    step: int
    insert: tuple[WorkflowJob, ...] = ()
    cancel_waiting: bool = False


def graph_of(workflow: WorkflowConfig) -> Graph:
    """The graph of a configured workflow."""
    return Graph(
        name=workflow.name,
        jobs=workflow.jobs,
        steps=workflow.step_names,
        then=workflow.then,
        final=workflow.final,
        max_failures=workflow.max_failures,
        cooler=workflow.schedule.cooler,
        quiet=workflow.schedule.recurs,
    )


def unfolding(graph: Graph) -> Graph:
    """The graph to begin with: one whose jobs are to be rows from the start, if it is large."""
    jobs = graph.jobs
    large = len(jobs) > MAX_INLINE_JOBS
    if not large or graph.quiet or sum(len(job.needs) for job in jobs) > MAX_NEEDS_A_JOB * len(jobs):
        return graph
    return msgspec.structs.replace(graph, members=True, linked=True, on_error="continue")


def encode(graph: Graph) -> bytes:
    """The graph as JSON, for the column `steps`."""
    return msgspec.json.encode(graph)


_GRAPH = msgspec.json.Decoder(Graph)


def decode(steps: bytes) -> Graph:
    """The graph of a request. Raises InvalidValue."""
    try:
        graph = _GRAPH.decode(steps)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidValue(f"its steps cannot be read ({error}); cancel it and submit it again") from None
    if not all(0 <= job.step <= MAX_STEP for job in graph.all_jobs):
        raise InvalidValue(f"its steps have a number above {MAX_STEP}; cancel it and submit it again")
    return graph


def of_cycle(graph: Graph, cycle: int) -> Graph:
    """The graph after its request was reopened `cycle` times: `final` runs again, under names of its own."""
    if not cycle or not graph.final:
        return graph
    mine = {job.name for job in graph.final}
    renamed = tuple(
        msgspec.structs.replace(
            job,
            name=cycle_name(job.name, cycle),
            needs=tuple(cycle_name(need, cycle) if need in mine else need for need in job.needs),
        )
        for job in graph.final
    )
    return msgspec.structs.replace(graph, final=renamed)


def cycle_name(name: str, cycle: int) -> str:
    """The name of a job of `final` in this cycle."""
    return f"{name}#{cycle + 1}" if cycle else name


class _Phases(NamedTuple):
    """The states of a request's jobs, by what they are for."""

    main: list[JobState]
    then: list[JobState]
    final: list[JobState]


def _phases(graph: Graph, jobs: Sequence[JobState]) -> _Phases:
    if not graph.then and not graph.final:
        return _Phases(list(jobs), [], [])
    found = _Phases([], [], [])
    phase_of = Stages(graph).of
    into = {"main": found.main, "then": found.then, "final": found.final}
    for job in jobs:
        phase = phase_of(job.name)
        if phase != "past":
            into[phase].append(job)
    return found


class Stages:
    """Tells what the jobs of a request are for, by their names."""

    def __init__(self, graph: Graph) -> None:
        self._then = {job.name for job in graph.then}
        self._final = {job.name for job in graph.final}
        self._names = {job.name: job.on_error for job in graph.all_jobs}
        self._past = {of_first_cycle(name) for name in self._final if "/" not in name}
        self._default = graph.on_error if graph.members else "fail"

    def of(self, name: str | None) -> Literal["main", "then", "final", "past"]:
        """What the job, or the one that spawned it, is for; `past`: `final` before it was reopened."""
        who = owner(self._names, name)
        if who in self._final:
            return "final"
        if who in self._then:
            return "then"
        if who is None and name is not None and self._past and of_first_cycle(name) in self._past:
            return "past"
        return "main"

    def tolerates(self, name: str | None) -> bool:
        """Whether the request goes on when this job fails."""
        return self._names.get(owner(self._names, name) or "", self._default) == "continue"


_FAILED = frozenset({Status.FAILURE, Status.CANCELLED})


def counts(graph: Graph, jobs: Sequence[JobState]) -> Counts:
    """The progress of a request whose jobs are all in its graph."""
    main = _phases(graph, jobs).main
    names = {job.name for job in graph.jobs}
    return Counts(
        total=len(names | {job.name for job in main if job.name is not None}),
        done=sum(1 for job in main if job.status is Status.COMPLETED),
        failed=sum(1 for job in main if job.status in _FAILED),
    )


def decide(
    graph: Graph,
    jobs: Sequence[JobState],
    *,
    failing: RequestStatus | None = None,
    members: Members | None = None,
) -> WorkflowDecision:
    """What follows from the states of all jobs of a request in progress; of a batch, from its `members`.

    `failing`: how the request will end, if a job failed or was cancelled, or the request was cancelled, since
    it was picked up or last reopened; its waiting jobs are cancelled. Without it, earlier failures only stop
    further jobs from starting, because a retry by hand may still repair them.
    """
    phases = _phases(graph, jobs)
    there = {job.name for job in jobs}
    step = max((job.step for job in graph.all_jobs if job.name in there), default=0)
    if members is not None:
        main, failures = _decide_members(graph, members, step, failing), members.failed
    else:
        main, failures = _decide_main(graph, phases.main, step, failing)
    if main.status is RequestStatus.INPROGRESS or main.cancel_waiting:
        return main
    outcome: RequestStatus = main.status
    if _live(phases.then) or (outcome is RequestStatus.COMPLETED and graph.then and not failures):
        stage = _decide_stage(graph.then, phases.then, step, stops=True)
        if stage is not None:
            if failing is None:
                return stage
            waits = any(job.status in _WAITING for job in phases.then)
            return msgspec.structs.replace(stage, cancel_waiting=waits, insert=())
    outcome = _after(outcome, phases.then)
    stage = _decide_stage(graph.final, phases.final, step, stops=False)
    return stage or WorkflowDecision(status=_after(outcome, phases.final), step=step)


def _decide_main(
    graph: Graph, jobs: Sequence[JobState], step: int, failing: RequestStatus | None
) -> tuple[WorkflowDecision, int]:
    """What follows from the jobs that are not in a stage, and how many of them have failed."""
    statuses = {job.status for job in jobs}
    quiet_end = graph.quiet and any(job.reason is Reason.IGNORED for job in jobs)
    tolerant = {job.name for job in graph.jobs if job.on_error == "continue"}
    names = {job.name for job in graph.jobs} if tolerant else set()
    failed = [job for job in jobs if job.status in _FAILED]
    hard = {job.status for job in failed if not tolerant or owner(names, job.name) not in tolerant}
    if graph.max_failures is not None and len(failed) > graph.max_failures:
        hard.add(Status.FAILURE)
    if failing or quiet_end or hard:
        return _ending(statuses - _FAILED | hard, step, failing, quiet_end), len(failed)
    begin = ready(graph, jobs)
    if begin:
        step = max(step, *(job.step for job in begin))
        return WorkflowDecision(status=RequestStatus.INPROGRESS, step=step, insert=begin), len(failed)
    if statuses & LIVE:
        return WorkflowDecision(status=RequestStatus.INPROGRESS, step=step), len(failed)
    # Only a graph written by hand can have jobs that never become ready.
    complete = _done(graph.jobs, jobs) >= {job.name for job in graph.jobs}
    status = RequestStatus.COMPLETED if complete else RequestStatus.FAILED
    return WorkflowDecision(status=status, step=step), len(failed)


def _decide_members(
    graph: Graph, members: Members, step: int, failing: RequestStatus | None
) -> WorkflowDecision:
    if not members.over:
        return WorkflowDecision(status=RequestStatus.INPROGRESS, step=step)
    if failing is not None:
        return WorkflowDecision(status=failing, step=step)
    most = graph.max_failures
    if (members.failed and graph.on_error == "fail") or (most is not None and members.failed > most):
        return WorkflowDecision(status=RequestStatus.FAILED, step=step)
    return WorkflowDecision(status=RequestStatus.COMPLETED, step=step)


def _decide_stage(
    stage: Sequence[WorkflowJob], jobs: Sequence[JobState], step: int, *, stops: bool
) -> WorkflowDecision | None:
    """What follows from the jobs of `then` or `final`, None if all is over.

    `stops`: one that failed keeps the others from beginning.
    """
    begin = () if stops and _has_failed(stage, jobs) else _ready(stage, jobs)
    if begin or _live(jobs):
        step = max([step, *(job.step for job in begin)])
        return WorkflowDecision(status=RequestStatus.INPROGRESS, step=step, insert=begin)
    return None


def _live(jobs: Sequence[JobState]) -> bool:
    return any(job.status in LIVE for job in jobs)


def _has_failed(stage: Sequence[WorkflowJob], jobs: Sequence[JobState]) -> bool:
    """Whether a job of the stage has failed, or what it spawned, of which that is not tolerated."""
    tolerant = {job.name: job.on_error == "continue" for job in stage}
    return any(job.status in _FAILED and not tolerant.get(owner(tolerant, job.name) or "") for job in jobs)


def _after(outcome: RequestStatus, stage: Sequence[JobState]) -> RequestStatus:
    """How the request ends after this stage: a job of it that fails, tolerated or not, fails the request."""
    if outcome is RequestStatus.COMPLETED and any(job.status in _FAILED for job in stage):
        return RequestStatus.FAILED
    return outcome


def stage_failure(graph: Graph, jobs: Sequence[JobState]) -> str | None:
    """The error of a request that fails by a job of a stage after which the others continued."""
    phases = _phases(graph, jobs)
    failed = next((job for job in (*phases.then, *phases.final) if job.status in _FAILED), None)
    return None if failed is None else f'"{failed.name}" failed'


def _ending(
    statuses: set[Status], step: int, failing: RequestStatus | None, quiet_end: bool
) -> WorkflowDecision:
    """No further job starts; the request ends when its running jobs have ended.

    One that is being cancelled ends so, even if jobs of it fail meanwhile, or too many are cancelled.
    """
    waits = bool(statuses & _WAITING)
    cancel = waits and (failing is not None or quiet_end)
    if Status.INPROGRESS in statuses or (waits and not cancel):
        return WorkflowDecision(status=RequestStatus.INPROGRESS, step=step, cancel_waiting=cancel)
    if failing is RequestStatus.FAILED or (failing is None and Status.FAILURE in statuses):
        status = RequestStatus.FAILED
    elif quiet_end:
        status = RequestStatus.COMPLETED
    else:
        status = RequestStatus.CANCELLED
    return WorkflowDecision(status=status, step=step, cancel_waiting=cancel)


def ready(graph: Graph, jobs: Sequence[JobState]) -> tuple[WorkflowJob, ...]:
    """The jobs that do not exist yet and whose needs are done, with everything that these spawned."""
    return _ready(graph.jobs, jobs)


def _ready(stage: Sequence[WorkflowJob], jobs: Sequence[JobState]) -> tuple[WorkflowJob, ...]:
    names = {job.name for job in stage}
    there = {job.name for job in jobs}
    open_ = names - _done(stage, jobs)
    return tuple(job for job in stage if job.name not in there and open_.isdisjoint(job.needs))


def _done(stage: Sequence[WorkflowJob], jobs: Sequence[JobState]) -> set[str]:
    """The jobs of the stage that completed, or failed where that is not to stop others."""
    tolerant = {job.name: job.on_error == "continue" for job in stage}
    there = {job.name for job in jobs if job.name in tolerant}
    open_ = set()
    for job in jobs:
        who = owner(tolerant, job.name)
        if job.status is not Status.COMPLETED and not (job.status in _FAILED and tolerant.get(who or "")):
            open_.add(who)
    return {name for name in there if name is not None and name not in open_}


def owner(names: Container[str], name: str | None) -> str | None:
    """The job of the graph that `name` is, or that spawned it, directly or indirectly."""
    while name is not None and name not in names:
        cut = name.rfind("/")
        name = name[:cut] if cut > 0 else None
    return name


# -- extras -------------------------------------------------------------------------


def merge(extras: bytes | None, given: Iterable[bytes]) -> bytes | None:
    """The request's extras, updated by those that its jobs returned. Raises InvalidValue."""
    merged: dict[str, Any] = {}
    for text in [extras, *given]:
        if text is not None:
            merged.update(_object(text))
    return msgspec.json.encode(merged) if merged or extras is not None else None


def _object(text: bytes) -> Mapping[str, Any]:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidValue(f"expected a JSON object: {error}") from None
    if not isinstance(value, dict):
        raise InvalidValue(f"expected a JSON object, got {type(value).__name__}")
    return value


def check_object(text: bytes) -> None:
    """Raises InvalidValue if `text` is not a JSON object."""
    _object(text)


def job_id(request_id: bytes, created_at: int, name: str) -> bytes:
    """The id of a request's job, the same each time, so that the primary key refuses a second one.

    A UUIDv7 at the request's `created_at` (microseconds) whose random bits come from its id and the name.
    """
    mixed = bytearray(hashlib.sha256(request_id + name.encode()).digest()[:16])
    mixed[:6] = (max(0, created_at) // 1000).to_bytes(6, "big")
    mixed[6] = 0x70 | mixed[6] & 0x0F
    mixed[8] = 0x80 | mixed[8] & 0x3F
    return bytes(mixed)
