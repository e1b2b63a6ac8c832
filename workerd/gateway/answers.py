"""The types of answers that are no document of `workerd.document_types`: pages of lists, health, problems."""

from __future__ import annotations

from typing import Literal

import msgspec

from workerd.document_types import (
    Act,
    Enqueued,
    ErrorGroup,
    Handler,
    Job,
    Limit,
    Node,
    Request,
    Schedule,
)


class ProblemDocument(msgspec.Struct, kw_only=True):
    """An error (RFC 9457). `incident`: an internal error's id in the log.

    `unknown`: the change may have been made; `ids`: the jobs or requests that then exist. `matched`, `done`:
    progress of an action on many jobs before the error.
    """

    type: str
    title: str
    status: int
    detail: str
    incident: str = ""
    unknown: bool = False
    ids: list[str] = []
    matched: int = 0
    done: int = 0


class BulkResult(msgspec.Struct):
    """The enqueued jobs, in the order of the request."""

    items: list[Enqueued]


class JobsPage(msgspec.Struct, kw_only=True):
    """Jobs, newest first, without payloads and attempts. `next`: `after` of the next page."""

    jobs: list[Job]
    next: str | None


class Explanation(msgspec.Struct, kw_only=True):
    """Why a job is in its state: sentences, the most important first.

    `log`: the last lines of its newest log, which is that of `log_attempt`.
    """

    id: str
    status: str
    why: list[str]
    log: list[str]
    log_attempt: int | None
    job: Job


class RequestsPage(msgspec.Struct, kw_only=True):
    """Requests, newest first, without their jobs."""

    requests: list[Request]
    next: str | None


class HandlersPage(msgspec.Struct, kw_only=True):
    """Handlers by name: all, unless a page was requested."""

    handlers: list[Handler]
    next: str | None


class ErrorsPage(msgspec.Struct, kw_only=True):
    """Groups of failures, the one that failed last first."""

    errors: list[ErrorGroup]
    next: str | None


class ErrorDetails(ErrorGroup, frozen=True, kw_only=True):
    """A group of failures. `stack`: of the newest one, None if that has none or was deleted."""

    stack: str | None


class NodesPage(msgspec.Struct, kw_only=True):
    """Nodes by name: all, unless a page was requested."""

    nodes: list[Node]
    next: str | None


class LimitsPage(msgspec.Struct, kw_only=True):
    """All limits."""

    limits: list[Limit]
    next: None


class SchedulesPage(msgspec.Struct, kw_only=True):
    """Schedules by name: all, unless a page was requested."""

    schedules: list[Schedule]
    next: str | None


class AuditPage(msgspec.Struct, kw_only=True):
    """What people and programs changed, newest first. `next`: `after` of the next page."""

    audit: list[Act]
    next: str | None


class StartedRun(msgspec.Struct):
    """The id of the started job, or of the request of a workflow."""

    id: str


class Acknowledged(msgspec.Struct):
    """The operation succeeded."""

    ok: bool


class Heartbeat(msgspec.Struct):
    """The process answers."""

    status: Literal["ok"]


class Readiness(msgspec.Struct, kw_only=True):
    """The node is ready. `quarantined`: the quarantined pools, and why; `warnings`: what needs attention."""

    ready: bool
    quarantined: dict[str, str | None]
    warnings: list[str]
