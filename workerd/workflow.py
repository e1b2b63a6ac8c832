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
from typing import Any

import msgspec

from workerd.config.model import WorkflowConfig, WorkflowJob
from workerd.errors import InvalidValue
from workerd.job import LIVE, NAME_LIMIT, Status
from workerd.outcome import Reason


class RequestStatus(StrEnum):
    """The column `status` of `workerd_requests`."""

    QUEUING = "queuing"  # inserted, not picked up yet
    INPROGRESS = "inprogress"  # the jobs of its first step are inserted
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


REQUEST_ENDED = frozenset({RequestStatus.COMPLETED, RequestStatus.FAILED, RequestStatus.CANCELLED})

MAX_STEP = 2**32 - 1
"""The largest number of a step that the column `step` holds."""
MAX_SPAWNED = 10_000
"""Number of jobs that one job may spawn."""

_WAITING = frozenset({Status.SCHEDULED, Status.NEW})


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """A workflow as it was when its request was picked up: the content of the column `steps`.

    cooler
        Seconds between the end of a run and the start of the next, None without an interval.
    quiet
        Whether a job that ended as `ignored` ends the request as `completed`.
    """

    name: str
    jobs: tuple[WorkflowJob, ...]
    steps: tuple[str, ...] = ()
    cooler: float | None = None
    quiet: bool = False


class JobState(msgspec.Struct, frozen=True, gc=False):
    """A job of a request, by its current row. `name` is None for rows inserted by hand."""

    name: str | None
    status: Status
    reason: Reason | None = None


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
        cooler=workflow.schedule.cooler,
        quiet=workflow.schedule.recurs,
    )


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
    if not all(0 <= job.step <= MAX_STEP for job in graph.jobs):
        raise InvalidValue(f"its steps have a number above {MAX_STEP}; cancel it and submit it again")
    return graph


def decide(
    graph: Graph, jobs: Sequence[JobState], *, failing: RequestStatus | None = None
) -> WorkflowDecision:
    """What follows from the states of all jobs of a request in progress.

    `failing`: how the request will end, if a job failed or was cancelled, or the request was cancelled, since
    it was picked up or last reopened; its waiting jobs are cancelled. Without it, earlier failures only stop
    further jobs from starting, because a retry by hand may still repair them.
    """
    statuses = {job.status for job in jobs}
    there = {job.name for job in jobs}
    quiet_end = graph.quiet and any(job.reason is Reason.IGNORED for job in jobs)
    step = max((job.step for job in graph.jobs if job.name in there), default=0)
    if failing or quiet_end or statuses & {Status.FAILURE, Status.CANCELLED}:
        return _ending(statuses, step, failing, quiet_end)
    begin = ready(graph, jobs)
    if begin:
        return WorkflowDecision(
            status=RequestStatus.INPROGRESS, step=max(step, *(job.step for job in begin)), insert=begin
        )
    if statuses & LIVE:
        return WorkflowDecision(status=RequestStatus.INPROGRESS, step=step)
    # Only a graph written by hand can have jobs that never become ready.
    complete = _done(graph, jobs) >= {job.name for job in graph.jobs}
    return WorkflowDecision(status=RequestStatus.COMPLETED if complete else RequestStatus.FAILED, step=step)


def _ending(
    statuses: set[Status], step: int, failing: RequestStatus | None, quiet_end: bool
) -> WorkflowDecision:
    """No further job starts; the request ends when its running jobs have ended."""
    waits = bool(statuses & _WAITING)
    cancel = waits and (failing is not None or quiet_end)
    if Status.INPROGRESS in statuses or (waits and not cancel):
        return WorkflowDecision(status=RequestStatus.INPROGRESS, step=step, cancel_waiting=cancel)
    if Status.FAILURE in statuses or failing is RequestStatus.FAILED:
        status = RequestStatus.FAILED
    elif quiet_end:
        status = RequestStatus.COMPLETED
    else:
        status = RequestStatus.CANCELLED
    return WorkflowDecision(status=status, step=step, cancel_waiting=cancel)


def ready(graph: Graph, jobs: Sequence[JobState]) -> tuple[WorkflowJob, ...]:
    """The jobs that do not exist yet and whose needs are done, with everything that these spawned."""
    there = {job.name for job in jobs}
    done = _done(graph, jobs)
    return tuple(job for job in graph.jobs if job.name not in there and done.issuperset(job.needs))


def _done(graph: Graph, jobs: Sequence[JobState]) -> set[str]:
    names = {job.name for job in graph.jobs}
    there = {job.name for job in jobs if job.name in names}
    open_ = {owner(names, job.name) for job in jobs if job.status is not Status.COMPLETED}
    return {name for name in there if name is not None and name not in open_}


def owner(names: Container[str], name: str | None) -> str | None:
    """The job of the graph that `name` is, or that spawned it, directly or indirectly."""
    while name is not None and name not in names:
        cut = name.rfind("/")
        name = name[:cut] if cut > 0 else None
    return name


# -- spawned jobs -----------------------------------------------------------------------


class Spawn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One job of `Result(spawn=[…])`."""

    handler: str
    vars: dict[str, Any] = {}
    name: str | None = None


_SPAWNS = msgspec.json.Decoder(list[Spawn])


def read_spawn(spawn: bytes) -> list[Spawn]:
    """The jobs that a handler asked for. Raises InvalidValue."""
    try:
        items = _SPAWNS.decode(spawn)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidValue(f'expected tables {{"handler", "vars"?, "name"?}} ({error})') from None
    if len(items) > MAX_SPAWNED:
        raise InvalidValue(f"expected at most {MAX_SPAWNED} jobs, got {len(items)}")
    return items


def spawned(graph: Graph, parent: str | None, spawn: bytes, taken: Iterable[str | None]) -> list[WorkflowJob]:
    """The jobs that `parent` asked for and that are not in `taken`. Raises InvalidValue.

    A spawned job without a name is named by its number: "parent/0", "parent/1", …
    """
    try:
        items = read_spawn(spawn)
    except InvalidValue as error:
        raise InvalidValue(f'jobs spawned by "{parent}": {error}') from None
    names = {job.name for job in graph.jobs}
    step = next((job.step for job in graph.jobs if job.name == owner(names, parent)), 0)
    made: dict[str, WorkflowJob] = {}
    for number, item in enumerate(items):
        name = f"{parent or ''}/{item.name if item.name is not None else number}"
        _check_spawned(name, item.handler)
        if name in made or name in names:
            raise InvalidValue(f'"{parent}" spawned "{name}", the name of another job; give it another name')
        made[name] = WorkflowJob(name=name, handler=item.handler, vars=item.vars, step=step)
    there = set(taken)
    return [job for job in made.values() if job.name not in there]


def _check_spawned(name: str, handler: str) -> None:
    for text, what in ((name, "a name"), (handler, "the name of a handler")):
        if not 0 < len(text) <= NAME_LIMIT or "\0" in text:
            raise InvalidValue(
                f"a spawned job needs {what} of 1 to {NAME_LIMIT} characters, got {text[:NAME_LIMIT]!r}"
            )


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
