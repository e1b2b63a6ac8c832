"""Jobs: looked up, listed, cancelled, retried."""

from __future__ import annotations

from typing import Literal, NamedTuple

from workerd import documents
from workerd.documents import Document
from workerd.job import Status
from workerd.operations.actor import Actor
from workerd.store import job_control, queries
from workerd.store.base import Tx


class JobPage(NamedTuple):
    """A page of a list; `next`: the cursor of the following one, None at the end."""

    jobs: list[Document]
    next: str | None


def get(tx: Tx, job_id: bytes) -> Document:
    """A job with its payload and attempts. Raises NotFound."""
    return documents.job(queries.get(tx, job_id))


def payload(tx: Tx, job_id: bytes) -> tuple[bytes, str]:
    """What the job returned, and its type, `bytes` or `json`. Raises NotFound."""
    return queries.payload(tx, job_id)


def preview(tx: Tx, job_id: bytes, limit: int) -> tuple[Document, tuple[bytes, int, str] | None]:
    """A job without its payload; and the first `limit` bytes of it, its size, its type. Raises NotFound."""
    job = queries.get(tx, job_id, payload=False)
    return documents.job(job), queries.preview(tx, job_id, limit)


def list_(
    tx: Tx,
    *,
    handler: str | None = None,
    status: Status | None = None,
    since: int | None = None,
    limit: int = 50,
    after: str | None = None,
) -> JobPage:
    """Jobs by state, newest first, without payloads and attempts. `since`: microseconds of store time."""
    page = queries.list_(tx, handler=handler, status=status, since=since, limit=limit, after=after)
    return JobPage([documents.job(row) for row in page.rows], page.next)


def cancel(tx: Tx, actor: Actor, job_id: bytes) -> Literal["ended", "asked"]:
    """End a job that waits, or ask one that runs to end. Raises NotFound, Conflict if it had ended."""
    return job_control.cancel(tx, job_id)


def retry(tx: Tx, actor: Actor, job_id: bytes) -> int:
    """Run an ended job again, or a scheduled one now; the new attempt's number. Raises NotFound, Conflict."""
    return job_control.retry(tx, job_id)


def ended(tx: Tx, job_id: bytes) -> bool:
    """Whether the job has ended. Raises NotFound."""
    return queries.ended(tx, job_id)


def ended_of(tx: Tx, ids: list[bytes]) -> set[bytes]:
    """Which of these jobs have ended."""
    return queries.ended_of(tx, ids)
