"""Rows as the documents that JSON shows: the same by HTTP, on the command line and in the client."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import msgspec

from workerd.clock import to_rfc3339
from workerd.job import ENDED, id_text
from workerd.store.handlers import HandlerRow
from workerd.store.nodes import NodeRecord
from workerd.store.queries import Job
from workerd.store.rows import JobRow, RequestRow
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


def job(found: Job | JobRow) -> dict[str, Any]:
    """A job; with payload and attempts only if it was asked for by its id."""
    row = found.row if isinstance(found, Job) else found
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
    if isinstance(found, Job):
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
