"""What a program gets back: jobs, attempts and requests as the documents of the HTTP interface say them."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Any, Literal

import msgspec

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
