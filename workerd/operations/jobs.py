"""Look up, list, cancel and retry jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import msgspec

from workerd import documents
from workerd.clock import SECOND
from workerd.config.model import Config
from workerd.document_types import Document, Enqueued
from workerd.job import Status, id_text
from workerd.job_filter import JobFilter
from workerd.operations import audit, logs
from workerd.operations.actor import Actor
from workerd.operations.audit import Action
from workerd.operations.bulk import shown_meta
from workerd.operations.edit import retry_vars
from workerd.operations.logs import JobLog
from workerd.operations.rules import UNREDACTED, Rules
from workerd.redaction import NOTHING, REDACTED, Redaction
from workerd.store import job_control, job_lists, queries
from workerd.store import logs as stored_logs
from workerd.store.base import Tx
from workerd.store.columns import JobRow

MAX_REDACTED_BYTES = 1 << 20
"""A larger payload of a handler that redacts values is not shown on a page at all."""


class JobPage(NamedTuple):
    """A page of a list; `next`: the cursor of the following one, None at the end."""

    jobs: list[Document]
    next: str | None


@dataclass(frozen=True)
class JobDetails:
    """A job as an operator inspects it; `job` is without its payload, and of all attempts but the newest
    MAX_STACKS without error and stack.

    `queue_us`: time from due to start, by attempt; `payload`: its first bytes, its size and its type;
    `deadline_ms`: its own, None for the handler's; `running_s`: since it was started or claimed; `logs`: of
    the newest MAX_LOGS attempts that have one, newest first.
    """

    job: Document
    cancel_requested: bool
    deadline_ms: int | None
    running_s: float | None
    queue_us: dict[int, int | None]
    payload: tuple[bytes, int, str] | None
    logs: list[JobLog]


MAX_LOGS = 3
MAX_STACKS = 10


def get(tx: Tx, job_id: bytes, rules: Rules = UNREDACTED) -> Document:
    """A job with its payload and attempts. Raises NotFound."""
    found = queries.get(tx, job_id)
    return documents.job(found, rules.of(tx, found.row.handler))


def payload(tx: Tx, job_id: bytes, rules: Rules = UNREDACTED) -> tuple[bytes, str]:
    """The payload and its type, `bytes` or `json`. Raises NotFound."""
    data, kind = queries.payload(tx, job_id)
    redaction = NOTHING if rules is UNREDACTED else rules.of(tx, queries.handler_of(tx, job_id))
    return (redaction.shown_json(data) if kind == "json" else data), kind


def details(tx: Tx, job_id: bytes, payload_limit: int, rules: Rules = UNREDACTED) -> JobDetails:
    """A job with at most `payload_limit` bytes of its payload. Raises NotFound."""
    found = queries.get(tx, job_id, payload=False, texts=MAX_STACKS)
    redaction = rules.of(tx, found.row.handler)
    return JobDetails(
        job=documents.job(found, redaction),
        cancel_requested=found.row.cancel_requested_at is not None,
        deadline_ms=found.row.deadline_ms,
        running_s=_running_s(found.row, tx.now),
        queue_us={row.attempt: _queue_us(row) for row in found.attempts},
        logs=[logs.get(tx, job_id, n) for n in stored_logs.attempts_with_log(tx, job_id)[:MAX_LOGS]],
        payload=_preview(tx, job_id, payload_limit, redaction),
    )


def _preview(tx: Tx, job_id: bytes, limit: int, redaction: Redaction) -> tuple[bytes, int, str] | None:
    """The first bytes of a payload, its size and its type; None without one."""
    found = queries.preview(tx, job_id, limit)
    if not redaction or found is None or found[2] != "json":
        return found
    if found[1] > MAX_REDACTED_BYTES:
        data = msgspec.json.encode(REDACTED)
    else:
        data = redaction.shown_json(queries.payload(tx, job_id)[0])
    return data[:limit], len(data), "json"


def _running_s(row: JobRow, now: int) -> float | None:
    since = row.started_at or row.claimed_at
    return None if row.status != Status.INPROGRESS or since is None else max(0, now - since) / SECOND


def _queue_us(row: JobRow) -> int | None:
    if row.started_at is None:
        return None
    return max(0, row.started_at - max(row.run_at or 0, row.created_at or 0))


def created(row: JobRow, redaction: Redaction) -> tuple[Enqueued, Document]:
    """What a caller is told of a job that was just inserted, and its document."""
    document = documents.job(queries.StoredJob(row=row, attempts=[row]), redaction)
    return Enqueued(document["id"], created=True), document


class JobFilters(TypedDict, total=False):
    """The fields of JobFilter, as far as they are given."""

    handler: str | None
    status: Status | None
    since: int | None
    until: int | None
    reason: str | None
    error: bytes | None
    group: str | None
    request: bytes | None
    meta: Mapping[str, str] | None


def list_(
    tx: Tx,
    *,
    limit: int = 50,
    after: str | None = None,
    rules: Rules = UNREDACTED,
    **filters: Unpack[JobFilters],
) -> JobPage:
    """Jobs, newest made or ended first, without payloads and attempts.

    `since`, `until`: store times in microseconds, between which the jobs were made. A page may have fewer
    than `limit` jobs, or none, and go on all the same. Raises InvalidValue for text that is no Unicode.
    """
    wanted = JobFilter(**filters)
    wanted.check_unicode()
    page = job_lists.list_(tx, wanted, limit=limit, after=after, shown=shown_meta(tx, rules))
    return JobPage([documents.job(row, rules.of(tx, row.handler)) for row in page.rows], page.next)


def cancel(tx: Tx, actor: Actor, job_id: bytes) -> Literal["ended", "asked"]:
    """End a waiting job, or ask a running one to stop. Raises NotFound, Conflict if it has ended."""
    result = job_control.cancel(tx, job_id)
    audit.record(tx, actor, Action.CANCEL, id_text(job_id))
    return result


def retry(
    tx: Tx,
    actor: Actor,
    job_id: bytes,
    *,
    fresh: bool = False,
    config: Config | None = None,
    vars_: Mapping[str, Any] | None = None,
) -> int:
    """Run an ended job again, or a scheduled one now; the new attempt's number. Raises NotFound, Conflict.

    `fresh`: without what earlier attempts have saved. `vars_`: with these, merged key by key, None removes
    one; raises InvalidValue if they do not fit.
    """
    attempt = job_control.retry(tx, job_id, fresh=fresh)
    detail: dict[str, Any] = {"attempt": attempt} | ({"fresh": True} if fresh else {})
    if vars_:
        retry_vars(tx, config or Config(), job_id, vars_)
        detail["vars"] = sorted(vars_)
    audit.record(tx, actor, Action.RETRY, id_text(job_id), detail)
    return attempt


def ended(tx: Tx, job_id: bytes) -> bool:
    """Whether the job has ended. Raises NotFound."""
    return queries.ended(tx, job_id)


def ended_of(tx: Tx, ids: Sequence[bytes]) -> set[bytes]:
    """Which of these jobs have ended."""
    return queries.ended_of(tx, ids)
