"""The logs kept with attempts, and those of jobs that run on this host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from workerd.errors import NotFound
from workerd.job import AttemptRef, Status, id_text
from workerd.store import logs, queries
from workerd.store.base import Tx

TAIL_LINES = 10
"""Lines that `why` and `job show` give."""
TAIL_BYTES = 16 * 1024

Ask = Callable[[dict[str, Any]], dict[str, Any]]
"""Asks the supervisor of this host."""


class JobLog(NamedTuple):
    """The log of one attempt; `dropped`: bytes that were left out."""

    attempt: int
    text: str
    dropped: int


def question(ref: AttemptRef, start: int = 0) -> dict[str, Any]:
    """Asks the supervisor what a running attempt (0: the one that runs) logged after `start` bytes."""
    return {"ask": "log", "job": id_text(ref.id), "attempt": ref.attempt, "start": start}


def get(tx: Tx, job_id: bytes, attempt: int | None = None) -> JobLog:
    """The kept log of an attempt, None: of the newest that has one. Raises NotFound, which says why."""
    found = logs.get(tx, job_id, attempt)
    if found is not None:
        return JobLog(*found)
    rows = {row.attempt: row for row in queries.get(tx, job_id, payload=False).attempts}
    row = rows[max(rows)] if attempt is None else rows.get(attempt)
    if row is None:
        raise NotFound(f"The job has no attempt {attempt}; its newest one is {max(rows)}.")
    which = f"attempt {row.attempt}"
    if row.status == Status.INPROGRESS:
        raise NotFound(f"The log of {which}, which runs on {row.node}, can be read on that node.")
    if row.status in (Status.NEW, Status.SCHEDULED):
        raise NotFound(f"The job has no log: {which} has not started.")
    if row.reason == "lost":
        raise NotFound(f"The log of {which} was lost with its pool or node; see the journal of {row.node}.")
    raise NotFound(
        f"No log of {which} was kept: it printed nothing, or `keep_log` of its handler excludes it."
    )


class LogTail(NamedTuple):
    """The last lines of the newest log of a job, and of which attempt it is; none without one."""

    attempt: int | None
    lines: list[str]


def tail(tx: Tx, job_id: bytes) -> LogTail:
    """The end of the newest log of a job."""
    found = logs.get(tx, job_id)
    return LogTail(None, []) if found is None else LogTail(found.attempt, last_lines(found.text))


def last_lines(text: str) -> list[str]:
    """The last TAIL_LINES lines, of at most TAIL_BYTES characters."""
    return text[-TAIL_BYTES:].splitlines()[-TAIL_LINES:]
