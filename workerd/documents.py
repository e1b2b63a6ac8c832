"""Jobs, attempts, requests, handlers, schedules and nodes as the documents that every interface shows."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec

from workerd.clock import to_rfc3339
from workerd.job import ENDED, id_text
from workerd.store.columns import JobRow, RequestRow
from workerd.store.handlers import HandlerRow
from workerd.store.nodes import NodeRecord
from workerd.store.queries import StoredJob
from workerd.store.schedules import ScheduleRow

_TIMES = ("created_at", "claimed_at", "started_at", "finished_at", "ingested_at")
_ATTEMPT = (
    "attempt", "status", "reason", "node", "pid", "error", "stack", "exit_signal", "exit_code",
    "claimed_at", "started_at", "finished_at", "ingested_at", "run_us", "cpu_us", "max_rss_kib",
)  # fmt: skip


def moment(us: int | None) -> str | None:
    """A store time in RFC 3339."""
    return None if us is None else to_rfc3339(us)


def identity(value: bytes | None) -> str | None:
    """An id as UUID text."""
    return None if value is None else id_text(value)


def json_value(text: bytes | None) -> Any:
    """A JSON column's value; text that is not JSON is shown as the text that it is."""
    if text is None:
        return None
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return text.decode("utf-8", "replace")


def job(found: StoredJob | JobRow) -> dict[str, Any]:
    """A job; with payload and attempts only if it was asked for by its id."""
    row = found.row if isinstance(found, StoredJob) else found
    document: dict[str, Any] = {
        "id": id_text(row.id),
        "handler": row.handler,
        "status": row.status,
        "reason": row.reason,
        "attempt": row.attempt,
        "priority": row.priority,
        "vars": json_value(row.vars),
        "run_at": moment(row.run_at),
        "unique_key": row.unique_key,
        "request_id": identity(row.request_id),
        "step": row.step,
        "name": row.name,
        "meta": json_value(row.meta),
        "complete": row.status in ENDED,
        "success": row.success,
        "error": row.error,
        "progress": row.progress,
        "note": row.note,
        **{name: moment(getattr(row, name)) for name in _TIMES},
        "run_us": row.run_us,
        "cpu_us": row.cpu_us,
        "max_rss_kib": row.max_rss_kib,
        "exit_signal": row.exit_signal,
        "exit_code": row.exit_code,
        "stack": row.stack,
        "node": row.node,
        "pid": row.pid,
    }
    if isinstance(found, StoredJob):
        document |= _payload(row)
        document["attempts"] = [attempt(one) for one in found.attempts]
    return document


def _payload(row: JobRow) -> dict[str, Any]:
    if row.payload is None:
        return {"payload": None, "payload_base64": None}
    if row.payload_type == "json":
        return {"payload": json_value(row.payload), "payload_base64": None}
    return {"payload": None, "payload_base64": base64.b64encode(row.payload).decode("ascii")}


def attempt(row: JobRow) -> dict[str, Any]:
    """One attempt of a job."""
    return {name: _shown(name, getattr(row, name)) for name in _ATTEMPT}


def _shown(name: str, value: Any) -> Any:
    return moment(value) if name in _TIMES else value


def request(row: RequestRow, jobs: Sequence[JobRow] | None = None) -> dict[str, Any]:
    """A request; with its jobs if they are given."""
    document: dict[str, Any] = {
        "id": id_text(row.id),
        "workflow": row.workflow,
        "status": row.status,
        "step": row.step,
        "params": json_value(row.params),
        "extras": json_value(row.extras),
        "error": row.error,
        "created_at": moment(row.created_at),
        "completed_at": moment(row.completed_at),
    }
    if jobs is not None:
        document["jobs"] = [job(one) for one in jobs]
    return document


def handler(row: HandlerRow) -> dict[str, Any]:
    """A handler, with the live nodes that have it."""
    return {
        "name": row.name,
        "known": row.known,
        "signature": json_value(row.signature),
        "nodes": row.nodes,
        "seen_at": moment(row.seen_at),
        "paused_at": moment(row.paused_at),
        "paused_by": row.paused_by,
        "pause_reason": row.pause_reason,
    }


def schedule(row: ScheduleRow, next_at: int | None = None) -> dict[str, Any]:
    """A schedule; `next_at` is a cron's next tick, which its expression tells."""
    return {
        "name": row.name,
        "kind": row.kind,
        "expression": row.expression,
        "timezone": row.timezone,
        "next_at": moment(row.next_at if row.kind == "cooler" else next_at),
        "last_tick": moment(row.last_tick),
        "last_job": identity(row.last_job),
        "last_status": row.last_status,
        "last_end": moment(row.last_end),
        "paused_at": moment(row.paused_at),
        "paused_by": row.paused_by,
    }


def node(row: NodeRecord, now: int) -> dict[str, Any]:
    """A node; `now`: the store's clock, which decides whether its lease is over."""
    return {
        "id": id_text(row.id),
        "name": row.name,
        "host": row.host,
        "pid": row.pid,
        "version": row.version,
        "started_at": moment(row.started_at),
        "lease_until": moment(row.lease_until),
        "state": "up" if row.lease_until > now else "lost",
    }


JobStatus = Literal["scheduled", "new", "inprogress", "completed", "retry", "failure", "cancelled"]
RequestStatus = Literal["queuing", "inprogress", "completed", "failed", "cancelled"]


class Enqueued(msgspec.Struct, frozen=True):
    """The job that an enqueue led to; `created` is false if a live job held its key, or its id was there."""

    id: str
    created: bool


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a job."""

    attempt: int
    status: JobStatus
    reason: str | None = None
    node: str | None = None
    pid: int | None = None
    error: str | None = None
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
    """A job as it stands: its newest attempt, with all of them in `attempts`, oldest first.

    `payload` is what the handler returned, if that was JSON; `result` is it in either case.
    """

    id: str
    handler: str
    status: JobStatus
    attempt: int
    complete: bool
    priority: int = 0
    vars: Any = None
    meta: Any = None
    reason: str | None = None
    unique_key: str | None = None
    request_id: str | None = None
    step: int | None = None
    name: str | None = None
    success: bool | None = None
    payload: Any = None
    payload_base64: str | None = None
    error: str | None = None
    stack: str | None = None
    progress: float | None = None
    note: str | None = None
    node: str | None = None
    pid: int | None = None
    exit_signal: int | None = None
    exit_code: int | None = None
    run_at: datetime | None = None
    created_at: datetime | None = None
    claimed_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    ingested_at: datetime | None = None
    run_us: int | None = None
    cpu_us: int | None = None
    max_rss_kib: int | None = None
    attempts: tuple[Attempt, ...] = ()

    @property
    def result(self) -> Any:
        """What the handler returned: `bytes` if it returned bytes, else the JSON value."""
        return self.payload if self.payload_base64 is None else base64.b64decode(self.payload_base64)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a workflow, with its jobs."""

    id: str
    workflow: str
    status: RequestStatus
    step: int | None = None
    params: Any = None
    extras: Any = None
    error: str | None = None
    created_at: datetime | None = None
    completed_at: datetime | None = None
    jobs: tuple[Job, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether it has ended."""
        return self.status in ("completed", "failed", "cancelled")
