"""Reading jobs: one, counts, payloads; counts never scan the table, but read a few ranges of an index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import msgspec

from workerd.errors import NotFound, UnreadableRow
from workerd.job import ENDED, AttemptRef, Status
from workerd.store import columns, group_queues
from workerd.store.base import Tx
from workerd.store.claims import MAX_JOB_BYTES
from workerd.store.columns import JobRow, Select, attempts, jobs_by_key

MAX_COUNT = 10_000
"""Counts are exact up to this number, and cut off there."""

MAX_PRIORITIES = 32
"""Distinct priorities of one handler and status that are queried one by one."""

MAX_GROUPS = 1000
"""Distinct holders and priorities of one status that are queried one by one."""
MAX_RANGES = 1000
"""Ranges between handlers that are searched at the same time."""

_CURRENT = (*(s for s in Status if s is not Status.RETRY),)


class StoredJob(msgspec.Struct, kw_only=True):
    """A job: its current row, and all its attempts, oldest first, including that row."""

    row: JobRow
    attempts: list[JobRow]


class Count(msgspec.Struct, frozen=True):
    """Jobs of a handler in a status, at most MAX_COUNT; `oldest`: since when the first `new` one is due."""

    handler: str
    status: Status
    count: int
    oldest: int | None = None


def get(tx: Tx, job_id: bytes, *, payload: bool = True, texts: int | None = None) -> StoredJob:
    """A job with its attempts; `texts` as in `columns.attempts`. Raises NotFound."""
    rows = attempts(tx, job_id, payload=payload, texts=texts)
    if not rows:
        raise NotFound("Job not found. `workerd job list` lists existing jobs.")
    current = next((row for row in reversed(rows) if row.status != Status.RETRY), rows[-1])
    made = columns.created(tx, job_id, rows)
    return StoredJob(row=msgspec.structs.replace(current, created_at=made), attempts=rows)


def first_attempts(tx: Tx, ids: Sequence[bytes]) -> dict[bytes, JobRow]:
    """The first attempts of these jobs, as they were enqueued, as far as they exist."""
    refs = [AttemptRef(job_id, 1) for job_id in ids]
    return {ref.id: row for ref, row in jobs_by_key(tx, refs, most=MAX_JOB_BYTES).items()}


def ended(tx: Tx, job_id: bytes) -> bool:
    """Whether the job has ended. Raises NotFound."""
    rows = tx.query("SELECT status FROM workerd_jobs WHERE id = %s ORDER BY attempt DESC LIMIT 1", (job_id,))
    if not rows:
        raise NotFound("Job not found. `workerd job list` lists existing jobs.")
    return columns.lenient(rows[0][0]) in ENDED


def payload(tx: Tx, job_id: bytes) -> tuple[bytes, str]:
    """The payload and its type, `bytes` or `json`. Raises NotFound if there is none yet."""
    row = tx.one(
        "SELECT payload, payload_type FROM workerd_jobs WHERE id = %s AND status <> 'retry' LIMIT 1",
        (job_id,),
    )
    if row is None:
        raise NotFound("Job not found. `workerd job list` lists existing jobs.")
    if row[0] is None:
        raise NotFound("The job has returned nothing yet.")
    return row[0], columns.lenient(row[1]) or "bytes"


def handler_of(tx: Tx, job_id: bytes) -> str:
    """The handler of a job that exists."""
    row = tx.one("SELECT handler FROM workerd_jobs WHERE id = %s LIMIT 1", (job_id,))
    return "" if row is None else columns.lenient(row[0]) or ""


def preview(tx: Tx, job_id: bytes, most: int) -> tuple[bytes, int, str] | None:
    """The first `most` bytes of the payload, its total size and its type; None without a payload."""
    row = tx.one(
        "SELECT SUBSTR(payload, 1, %s), LENGTH(payload), payload_type FROM workerd_jobs"
        " WHERE id = %s AND status <> 'retry' AND payload IS NOT NULL LIMIT 1",
        (most, job_id),
    )
    # SUBSTR of an empty blob is NULL in SQLite.
    return None if row is None else (row[0] or b"", int(row[1]), columns.lenient(row[2]) or "bytes")


class Group(NamedTuple):
    """The rows of a status with one holder and priority: a range of the index `workerd_holder` by `run_at`.

    `holder`: the handler, of rows `inprogress` the incarnation in hex.
    """

    status: Status
    holder: str
    priority: int


def groups(tx: Tx, states: Sequence[Status], holder: str | None = None) -> list[Group]:
    """The groups of these statuses, of each about MAX_GROUPS at most: one index lookup for each.

    All ranges between two known handlers are followed at the same time, so that there are about as many
    statements as a handler has priorities.
    """
    paths = [path for state in states for path in _paths(tx, state, holder)]
    found: list[Group] = []
    counted: Counter[Status] = Counter()
    while paths:
        selects = [select for path in paths for select in path.selects(tx)]
        rows = {number: row for number, row in columns.union(tx, selects)}
        following = []
        for n, path in enumerate(paths):
            row = rows.get(2 * n) or rows.get(2 * n + 1)
            name = None if row is None else columns.lenient(row[0])
            if row is None or name is None or counted[path.last.status] >= MAX_GROUPS:
                continue
            found.append(Group(path.last.status, name, int(row[1])))
            counted[path.last.status] += 1
            following.append(path._replace(last=found[-1]))
        paths = following
    return sorted(found)


def _paths(tx: Tx, state: Status, holder: str | None) -> list[_Path]:
    """Those that find all groups of a status, or a handler's with what waits in queues of its groups."""
    least = -(1 << 31) - 1
    if holder is not None:
        ranges: list[tuple[str, str | None]] = [(holder, holder)]
        if state is Status.NEW:
            ranges.append(group_queues.bounds(holder))
    else:
        rows = tx.query("SELECT name FROM workerd_handlers ORDER BY name LIMIT %s", (MAX_RANGES,))
        names = {columns.lenient(row[0]) or "" for row in rows}
        queues = set(map(group_queues.prefix, names)) if state is Status.NEW else set()
        bounds = sorted({"", *names, *queues})
        ranges = [*pairwise(bounds), (bounds[-1], None)]
    return [_Path(Group(state, low, least), high) for low, high in ranges]


class _Path(NamedTuple):
    """Where the search for groups is in a range of holders, which ends before `high`, None: nowhere."""

    last: Group
    high: str | None

    def selects(self, tx: Tx) -> list[Select]:
        """The next group with the same holder, and the first one of the next holder."""
        start = f"SELECT holder, priority FROM workerd_jobs {tx.dialect.hint('workerd_holder')}"
        state, holder, priority = self.last
        same = f"{start} WHERE status = %s AND holder = %s AND priority > %s ORDER BY priority LIMIT 1"
        upper, params = ("", []) if self.high is None else (" AND holder < %s", [self.high])
        after = f"{start} WHERE status = %s AND holder > %s{upper} ORDER BY holder, priority LIMIT 1"
        return [(same, [str(state), holder, priority]), (after, [str(state), holder, *params])]


def holders(tx: Tx, state: Status, most: int) -> list[str]:
    """The holders of a status in order, at most `most`: one index lookup for each."""
    sql = (
        f"SELECT holder FROM workerd_jobs {tx.dialect.hint('workerd_holder')}"
        " WHERE status = %s AND holder {} %s ORDER BY holder LIMIT 1"
    )
    found: list[str] = []
    row = tx.one(sql.format(">="), (str(state), ""))
    while row is not None and len(found) < most:
        try:
            found.append(columns.text(row[0]))
        except UnreadableRow:
            break
        row = tx.one(sql.format(">"), (str(state), found[-1]))
    return found


# -- counts ------------------------------------------------------------------------------------


def waiting(tx: Tx, handler: str, most: int) -> int:
    """Number of `new` and `scheduled` jobs of the handler, at most `most`."""
    counts = _counts(tx, [(handler, Status.NEW), (handler, Status.SCHEDULED)], most)
    return min(most, sum(counts))


def counts(
    tx: Tx, handlers: Sequence[str], states: Sequence[Status] = _CURRENT, cap: int = MAX_COUNT
) -> list[Count]:
    """Jobs of each handler in each status, without zeros."""
    pairs = [(handler, state) for handler in handlers for state in states]
    found = []
    for (handler, state), count in zip(pairs, _counts(tx, pairs, cap), strict=True):
        if count:
            oldest = oldest_new(tx, handler) if state is Status.NEW else None
            found.append(Count(handler, state, count, oldest))
    return found


def _counts(tx: Tx, pairs: Sequence[tuple[str, Status]], cap: int) -> list[int]:
    one = (
        f"SELECT COUNT(*) FROM (SELECT 1 FROM workerd_jobs {tx.dialect.hint('workerd_holder')}"
        " WHERE status = %s AND holder = %s LIMIT %s) AS c"
    )
    running = running_of(tx, cap) if any(state is Status.INPROGRESS for _, state in pairs) else {}
    return [
        running.get(handler, 0) if state is Status.INPROGRESS else _count(tx, one, handler, state, cap)
        for handler, state in pairs
    ]


def _count(tx: Tx, one: str, handler: str, state: Status, cap: int) -> int:
    count = int(tx.query(one, (str(state), handler, cap))[0][0])
    if state is Status.NEW and count < cap:
        count = min(cap, count + group_queues.count(tx, handler, cap))
    return count


def running_of(tx: Tx, cap: int) -> dict[str, int]:
    """Jobs in progress by handler, the first of all nodes: no more of them than there are workers."""
    rows = tx.query(
        f"SELECT handler FROM workerd_jobs {tx.dialect.hint('workerd_holder')}"
        " WHERE status = 'inprogress' LIMIT %s",
        (cap,),
    )
    return Counter(columns.lenient(row[0]) or "" for row in rows)


def totals(tx: Tx, states: Sequence[Status], cap: int = MAX_COUNT) -> dict[Status, int]:
    """Jobs of all handlers together in each status, each count at most `cap`."""
    one = (
        f"SELECT COUNT(*) FROM (SELECT 1 FROM workerd_jobs {tx.dialect.hint('workerd_holder')}"
        " WHERE status = %s LIMIT %s) AS c"
    )
    return {state: int(tx.query(one, (str(state), cap))[0][0]) for state in states}


def oldest_new_of_others(tx: Tx, handlers: Collection[str]) -> int | None:
    """Since when the oldest `new` job of any other handler is due."""
    queues = tuple(map(group_queues.prefix, handlers))
    others = [
        group
        for group in groups(tx, [Status.NEW])
        if group.holder not in handlers and not group.holder.startswith(queues)
    ]
    return _oldest(tx, others)


def oldest_new(tx: Tx, handler: str) -> int | None:
    """Since when the handler's oldest claimable job is due, None without one."""
    return _oldest(tx, groups(tx, [Status.NEW], handler))


def _oldest(tx: Tx, wanted: Iterable[Group]) -> int | None:
    sql = (
        f"SELECT run_at FROM workerd_jobs {tx.dialect.hint('workerd_holder')}"
        " WHERE status = %s AND holder = %s AND priority = %s ORDER BY run_at LIMIT 1"
    )
    found = [row for group in wanted if (row := tx.one(sql, group)) is not None]
    return min((columns.time_or_zero(row[0]) for row in found), default=None)


def ended_of(tx: Tx, ids: Sequence[bytes]) -> set[bytes]:
    """Which of these jobs have ended; one statement for all waiting callers."""
    if not ids:
        return set()
    marks = ", ".join(["%s"] * len(ids))
    rows = tx.query(
        f"SELECT id FROM workerd_jobs WHERE id IN ({marks})"
        " AND status IN ('completed', 'failure', 'cancelled')",
        list(ids),
    )
    return {row[0] for row in rows}


def request_of(tx: Tx, job_id: bytes) -> bytes | None:
    """The request of a job, None without one."""
    row = tx.one("SELECT request_id FROM workerd_jobs WHERE id = %s LIMIT 1", (job_id,))
    return None if row is None else row[0]
