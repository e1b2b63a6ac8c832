"""Types of the documents that every interface shows: jobs, requests, handlers, schedules, nodes, limits."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Any, Literal

import msgspec

Document = dict[str, Any]
"""JSON-compatible values; its keys are the fields of the type that describes it, in their order."""

_JobStatus = Literal["scheduled", "new", "inprogress", "completed", "retry", "failure", "cancelled"]
_RequestStatus = Literal["queuing", "inprogress", "completed", "failed", "cancelled"]


class Enqueued(msgspec.Struct, frozen=True):
    """The result of an enqueue. `created` is false if the id existed, or a job holds the unique key.

    `replaced`: whether a waiting job, which has this id, was given the new data.
    """

    id: str
    created: bool
    replaced: bool = False


class Changed(msgspec.Struct, frozen=True):
    """The result of an action on many jobs: how many matched, and how many of them were changed."""

    matched: int
    done: int


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a job."""

    attempt: int
    status: _JobStatus
    reason: str | None = None
    node: str | None = None
    pid: int | None = None
    error: str | None = None
    error_class: str | None = None
    fingerprint: str | None = None
    stack: str | None = None
    exit_signal: int | None = None
    exit_code: int | None = None
    claimed_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    ingested_at: datetime | None = None
    run_us: int | None = None
    cpu_us: int | None = None
    max_rss_kib: int | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job in the state of its newest attempt; `attempts` has all of them, oldest first.

    `complete`: it has ended. `payload`: what the handler returned as JSON, `payload_base64` as bytes.
    `state`: what it has saved, `{"saved", "steps"}`, until it succeeds.
    """

    id: str
    handler: str
    status: _JobStatus
    reason: str | None = None
    attempt: int
    priority: int = 0
    vars: Any = None
    run_at: datetime | None = None
    expires_at: datetime | None = None
    unique_key: str | None = None
    group: str | None = None
    request_id: str | None = None
    step: int | None = None
    name: str | None = None
    meta: Any = None
    complete: bool
    success: bool | None = None
    error: str | None = None
    error_class: str | None = None
    fingerprint: str | None = None
    progress: float | None = None
    note: str | None = None
    created_at: datetime | None = None
    claimed_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    ingested_at: datetime | None = None
    run_us: int | None = None
    cpu_us: int | None = None
    max_rss_kib: int | None = None
    exit_signal: int | None = None
    exit_code: int | None = None
    stack: str | None = None
    node: str | None = None
    pid: int | None = None
    state: Any = None
    payload: Any = None
    payload_base64: str | None = None
    attempts: tuple[Attempt, ...] = ()

    @property
    def result(self) -> Any:
        """What the handler returned: bytes, or the JSON value."""
        return self.payload if self.payload_base64 is None else base64.b64decode(self.payload_base64)


class EnqueuedJob(Job, frozen=True, kw_only=True):
    """A job, and whether this call created it, or replaced the data of one that waited."""

    created: bool
    replaced: bool


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a workflow or of its own graph, with its jobs.

    `workflow`: None for one with its own graph, which may have a `name`. `total`, `done`, `failed`: its jobs
    without `then` and `finally`, those that succeeded, and those that failed or were cancelled. `jobs`: of a
    large batch only some.
    """

    id: str
    workflow: str | None
    status: _RequestStatus
    step: int | None = None
    params: Any = None
    extras: Any = None
    error: str | None = None
    created_at: datetime | None = None
    completed_at: datetime | None = None
    name: str | None = None
    total: int = 0
    done: int = 0
    failed: int = 0
    jobs: tuple[Job, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether it has ended."""
        return self.status in ("completed", "failed", "cancelled")


class Handler(msgspec.Struct, frozen=True, kw_only=True):
    """A handler, with the live nodes that have it. `known`: a node has loaded it, or it is configured."""

    name: str
    known: bool
    signature: Any
    nodes: list[str]
    seen_at: datetime | None
    paused_at: datetime | None
    paused_by: str | None
    pause_reason: str | None


class HandlerStats(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one handler over all nodes, paused or not.

    `due`: jobs that could run now, `scheduled`: later; each is counted up to 1,000,000. `oldest_s`: age of
    the oldest due one, 0 without one. `workers`: of living nodes. Rates are averages of the last minute:
    `in_per_s` of jobs that became due for the first time, `out_per_s` of jobs that ended.
    """

    due: int
    scheduled: int
    running: int
    oldest_s: float
    workers: int
    in_per_s: float
    out_per_s: float


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """Figures for scalers, by handler."""

    at: datetime
    handlers: dict[str, HandlerStats]


class LimitHolder(msgspec.Struct, frozen=True, kw_only=True):
    """A running attempt that holds a limit. `since`: when it was claimed."""

    job_id: str
    attempt: int
    group: str | None
    handler: str | None
    node: str | None
    since: datetime | None


class LimitGroup(msgspec.Struct, frozen=True, kw_only=True):
    """What a group uses of a limit; the empty group is that of jobs without one."""

    group: str
    used: int
    held_until: datetime | None


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """A limit: its values over all nodes, what is used and waits. Rates are text such as "100/1m".

    `configured`: false for one that only running jobs still hold. `waiting`: jobs of its handlers that are
    `new`, up to 10000 of each. `held_until`: nothing starts before. `holders`: the first 200.
    """

    name: str
    configured: bool
    concurrency: int | None
    group_concurrency: int | None
    rate: str | None
    burst: int | None
    group_rate: str | None
    handlers: list[str]
    used: int
    waiting: int
    held_until: datetime | None
    groups: list[LimitGroup]
    holders: list[LimitHolder]


class ErrorGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Failures that have one cause: same handler, reason, error class, place in the code and kind of message.

    `error`, `job_id` and `attempt` are those of the newest one. `hours`: failures in each of the last 24
    hours, oldest first. `open`: neither resolved nor muted.
    """

    fingerprint: str
    handler: str
    error_class: str
    error: str | None
    job_id: str
    attempt: int
    first_seen: datetime | None
    last_seen: datetime | None
    count: int
    resolved_at: datetime | None
    resolved_by: str | None
    muted_until: datetime | None
    hours: list[int]
    open: bool


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A running daemon, or one whose lease has expired."""

    id: str
    name: str
    host: str
    pid: int | None
    version: str
    started_at: datetime | None
    lease_until: datetime | None
    state: Literal["up", "lost"]


class PastRun(msgspec.Struct, frozen=True, kw_only=True):
    """A tick of a schedule, and the status of the job or request that it started: `skipped` without one."""

    tick: datetime
    job_id: str | None
    status: str
    run_us: int | None


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """What recurs. `last_job`: the id of its last job, or of the last request of a workflow.

    `origin`: whether it is configured, or was set at run time. `jitter`: seconds. `history`: of one schedule,
    its last ticks, the newest first. `pause`: seconds before the waiting run of a cooler, where `cooler()` of
    its class decided them.
    `note`: a sentence on what keeps it from its usual times, such as a store's clock that was set back.
    """

    name: str
    kind: Literal["cron", "cooler"]
    expression: str
    timezone: str
    next_at: datetime | None
    last_tick: datetime | None
    last_job: str | None
    last_status: str | None
    last_end: datetime | None
    paused_at: datetime | None
    paused_by: str | None
    origin: Literal["config", "api"]
    handler: str | None
    workflow: str | None
    vars: Any
    params: Any
    misfire: str | None
    overlap: str | None
    jitter: float | None
    priority: int
    group: str | None
    enabled: bool
    pause: float | None
    note: str | None
    history: tuple[PastRun, ...] = ()


class Act(msgspec.Struct, frozen=True, kw_only=True):
    """What a person or program changed. `target`: an id or a name; `detail`: further information."""

    id: str
    at: datetime | None
    actor: str
    role: str
    via: Literal["http", "ui", "cli", "client"]
    action: str
    target: str | None
    detail: Any
    address: str | None
