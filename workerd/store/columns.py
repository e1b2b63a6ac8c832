"""Columns and rows: how values are read and written, the columns of a job, keys, pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from workerd import clock
from workerd.errors import InvalidValue, UnreadableRow
from workerd.job import AttemptRef, Status
from workerd.outcome import ClosedAttempt, Outcome
from workerd.store.base import Tx
from workerd.store.session import Row

# -- values: each reader raises UnreadableRow for a value of another kind


def text(value: Any) -> str:
    """UTF-8 text."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UnreadableRow(f"expected UTF-8 text ({error.reason} at byte {error.start})") from None
    raise UnreadableRow(f"expected text, got {type(value).__name__}")


def text_or_none(value: Any) -> str | None:
    return None if value is None else text(value)


def lenient(value: Any) -> str | None:
    """Text to display: invalid UTF-8 becomes U+FFFD."""
    if value is None:
        return None
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def time(value: Any) -> int:
    """A time, microseconds since the epoch."""
    if isinstance(value, (bytes, str)):
        try:
            return clock.from_text(value)
        except InvalidValue as error:
            raise UnreadableRow(str(error)) from None
    raise UnreadableRow(f"expected a time, got {type(value).__name__}")


def time_or_none(value: Any) -> int | None:
    return None if value is None else time(value)


def lenient_time(value: Any) -> int | None:
    """A time to display: None also for one that does not exist, such as `0000-00-00`."""
    try:
        return time_or_none(value)
    except UnreadableRow:
        return None


def time_or_zero(value: Any) -> int:
    """A time to compare: one that does not exist is before all others."""
    return max(0, lenient_time(value) or 0)


def job_status(value: Any) -> Status:
    """A status of a job; one that is none counts as failed: no node claims such a row.

    MySQL keeps `''` for a word that it does not know, if a program writes it without strict mode.
    """
    try:
        return Status(text(value))
    except ValueError:
        return Status.FAILURE


def blob(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    raise UnreadableRow(f"expected bytes, got {type(value).__name__}")


def at(us: int | None) -> str | None:
    """A time as the parameter of a statement."""
    return None if us is None else clock.to_text(us)


CHUNK_ROWS = 500
"""Rows that one statement names."""


class EnqueuedColumns(msgspec.Struct, kw_only=True, gc=False):
    """The columns that are set when a job is enqueued, and carried over to each further attempt.

    A new one needs a line here, in `NewJob` and in the schema; INSERT, SELECT and retries follow.
    """

    handler: str
    priority: int
    vars: bytes | None
    meta: bytes | None
    deadline_ms: int | None
    max_attempts: int | None
    unique_key: str | None
    given_key: str | None
    group_key: str | None
    request_id: bytes | None
    step: int | None
    name: str | None


class JobRow(EnqueuedColumns, kw_only=True, gc=False):
    """One attempt. Times (`…_at`) are store times in microseconds; `vars`, `meta`: JSON text, not decoded.

    Where the row stands for its job, `created_at` is that of the job's first row.
    A value that its column cannot mean (SQLite, a foreign INSERT) is None or shown with U+FFFD.
    """

    id: bytes
    attempt: int
    status: str
    reason: str | None
    run_at: int | None
    failures: int
    crashes: int
    losses: int
    node_id: bytes | None
    node: str | None
    pid: int | None
    expires_at: int | None
    cancel_requested_at: int | None
    success: bool | None
    payload_type: str | None
    error: str | None
    error_class: str | None
    fingerprint: bytes | None
    stack: str | None
    progress: float | None
    note: str | None
    exit_signal: int | None
    exit_code: int | None
    created_at: int | None
    claimed_at: int | None
    started_at: int | None
    finished_at: int | None
    ingested_at: int | None
    run_us: int | None
    cpu_us: int | None
    max_rss_kib: int | None
    state: bytes | None = None
    payload: bytes | None = None

    @property
    def ref(self) -> AttemptRef:
        return AttemptRef(self.id, self.attempt)

    @property
    def shown_key(self) -> str | None:
        """The unique key as it was given at enqueue."""
        return self.unique_key if self.given_key is None else self.given_key


def _as_is(value: Any) -> Any:
    return value


def _truth(value: Any) -> bool | None:
    return None if value is None else bool(value)


def _reader(field: msgspec.structs.FieldInfo) -> Callable[[Any], Any]:
    if field.name.endswith("_at"):
        return lenient_time
    if field.type in (str, str | None):
        return lenient
    return _truth if field.type == (bool | None) else _as_is


_READERS = {field.name: _reader(field) for field in msgspec.structs.fields(JobRow)}
_JOB_COLUMNS = tuple(name for name in _READERS if name not in ("payload", "state"))
ENQUEUED_COLUMNS = EnqueuedColumns.__struct_fields__
INSERT_NEXT = (
    "INSERT INTO workerd_jobs (id, attempt, status, run_at, created_at, failures, crashes, losses, state, "
    + ", ".join(ENQUEUED_COLUMNS)
    + ")"
    " SELECT j.id, j.attempt + 1, {status}, {run_at}, {created_at}, {failures}, {crashes}, {losses}, {state},"
    " " + ", ".join(f"j.{name}" for name in ENQUEUED_COLUMNS) + " FROM {source}{keep}"
)
"""The attempt after that of the row `j`."""
MAY_GO_ON = "j.cancel_requested_at IS NULL"
"""Whether an attempt follows that of the row `j` where nobody asks for it by hand."""


def next_due(outcome: Outcome, now: int) -> tuple[str, str]:
    """Status and `run_at` of the attempt that follows."""
    delay = outcome.next.delay_us if outcome.next is not None else 0
    return ("scheduled", clock.to_text(now + delay)) if delay > 0 else ("new", clock.to_text(now))


def job(row: Row) -> JobRow:
    """A row selected as _JOB_COLUMNS, with or without `state` and `payload` behind them."""
    return JobRow(**{name: read(value) for (name, read), value in zip(_READERS.items(), row, strict=False)})


MAX_LISTED_BYTES = 1 << 20
"""Longer vars, meta, errors, notes and stacks are left out of a list."""
PAGE_BYTES = 8 << 20
"""Bytes of such values after which a page ends early."""
MAX_STACK_BYTES = 1 << 20
"""Longer errors, notes and stacks were not written by workerd, and are not read."""
MAX_ATTEMPTS = 1000
"""Attempts of a job that are read, the newest ones."""
_LONG = ("vars", "meta", "error", "note", "stack")


def no_longer(tx: Tx, name: str, most: int) -> str:
    """The column where it has at most so many bytes, else NULL."""
    return f"CASE WHEN {tx.dialect.byte_length(name)} <= {most} THEN {name} END"


def jobs_by_key(
    tx: Tx, refs: Sequence[AttemptRef], *, most: int = MAX_LISTED_BYTES
) -> dict[AttemptRef, JobRow]:
    """The rows of these attempts, as far as they exist, without values of more than `most` bytes."""
    columns = ", ".join(no_longer(tx, name, most) if name in _LONG else name for name in _JOB_COLUMNS)
    found: dict[AttemptRef, JobRow] = {}
    for part in chunks(refs):
        for row in tx.query(f"SELECT {columns} FROM workerd_jobs WHERE {keys(part)}"):
            read = job(row)
            found[read.ref] = read
    made = _creations(tx, [ref.id for ref in found if ref.attempt > 1])
    for ref, read in found.items():
        if ref.id in made:
            read.created_at = made[ref.id]
    return found


def _creations(tx: Tx, ids: Sequence[bytes]) -> dict[bytes, int | None]:
    """When these jobs were made, by their first rows."""
    found: dict[bytes, int | None] = {}
    for part in chunks(sorted(ids)):
        keys_ = ",".join(f"x'{job_id.hex()}'" for job_id in part)
        for job_id, created_at in tx.query(
            f"SELECT id, created_at FROM workerd_jobs WHERE attempt = 1 AND id IN ({keys_})"
        ):
            found[job_id] = lenient_time(created_at)
    return found


def fitting(tx: Tx, refs: Sequence[AttemptRef]) -> Sequence[AttemptRef]:
    """The first of these attempts whose values fit one page, at least one of them."""
    sizes = [f"COALESCE({tx.dialect.byte_length(name)}, 0)" for name in _LONG]
    rows: list[Row] = []
    for part in chunks(refs):
        rows += tx.query(f"SELECT id, attempt, {', '.join(sizes)} FROM workerd_jobs WHERE {keys(part)}")
    listed = {row[:2]: sum(size for size in row[2:] if size <= MAX_LISTED_BYTES) for row in rows}
    total = 0
    for n, ref in enumerate(refs):
        total += listed.get(ref, 0)
        if n and total > PAGE_BYTES:
            return refs[:n]
    return refs


def created(tx: Tx, job_id: bytes, attempts_: Sequence[JobRow]) -> int | None:
    """When the job with these attempts, the newest ones, was made."""
    first = attempts_[0]
    return _creations(tx, [job_id]).get(job_id) if first.attempt > 1 else first.created_at


def attempts(tx: Tx, job_id: bytes, *, payload: bool = True, texts: int | None = None) -> list[JobRow]:
    """The attempts of a job, oldest first; vars, meta, state and payload only of the current one.

    `texts`: of how many attempts, the newest ones, errors, notes and stacks are read; None: of all.
    """
    before = 0
    if texts is not None:
        newest = tx.one("SELECT MAX(attempt) FROM workerd_jobs WHERE id = %s", (job_id,))
        before = (newest[0] or 0) - texts if newest is not None else 0
    names = [*_JOB_COLUMNS, "state", *(["payload"] if payload else [])]
    rows = tx.query(
        f"SELECT {', '.join(_of_attempt(tx, name, before) for name in names)} FROM workerd_jobs"
        " WHERE id = %s ORDER BY attempt DESC LIMIT %s",
        (job_id, MAX_ATTEMPTS),
    )
    return [job(row) for row in reversed(rows)]


def _of_attempt(tx: Tx, name: str, before: int) -> str:
    """The column as `attempts` selects it; those up to the number `before` have no texts."""
    column = no_longer(tx, name, MAX_STACK_BYTES) if name in _LONG else name
    if name in ("vars", "meta", "payload", "state"):
        return f"CASE WHEN status <> 'retry' THEN {column} END"
    if name in ("error", "note", "stack") and before > 0:
        return f"CASE WHEN attempt > {before:d} THEN {column} END"
    return column


Select = tuple[str, Sequence[object]]
"""A SELECT and its parameters."""
MAX_UNION = 200
"""SELECTs of one statement; SQLite takes 500."""


def union(tx: Tx, selects: Sequence[Select], end: str = "") -> Iterator[tuple[int, Row]]:
    """The rows of all SELECTs, each with the number of its SELECT, in as few statements as can be.

    `end`: with which each statement ends, such as an order and a limit.
    """
    for start in range(0, len(selects), MAX_UNION):
        part = selects[start : start + MAX_UNION]
        sql = " UNION ALL ".join(
            f"SELECT {start + n} AS number, u{n}.* FROM ({one}) AS u{n}" for n, (one, _) in enumerate(part)
        )
        for row in tx.query(sql + end, [value for _, params in part for value in params]):
            yield int(row[0]), row[1:]


def chunks(items: Sequence[Any], size: int = CHUNK_ROWS) -> Iterable[Sequence[Any]]:
    """Slices of at most `size` items."""
    return (items[start : start + size] for start in range(0, len(items), size))


def keys(rows: Iterable[tuple[bytes, int]], table: str = "") -> str:
    """A condition on the primary key, in its order, that the engines run as ranges of the index.

    `table`: what its columns begin with, such as "j.".
    """
    by_attempt: dict[int, list[bytes]] = {}
    for job_id, attempt in rows:
        by_attempt.setdefault(attempt, []).append(job_id)
    ranges = []
    for attempt, ids in sorted(by_attempt.items()):
        listed = ",".join([f"x'{job_id.hex()}'" for job_id in sorted(ids)])
        ranges.append(f"({table}attempt = {int(attempt)} AND {table}id IN ({listed}))")
    return " OR ".join(ranges)


def closed_at(tx: Tx, batch: Sequence[ClosedAttempt], ingested_at: int) -> list[ClosedAttempt]:
    """Which of these attempts carry this transaction's `ingested_at`, each once, by (id, attempt)."""
    wanted = {e.identity: e for e in reversed(batch)}
    found = []
    for job_id, attempt, claimed_at, node_id in tx.query(
        f"SELECT id, attempt, claimed_at, node_id FROM workerd_jobs {tx.dialect.by_key}"
        f" WHERE ({keys({e.outcome.ref for e in batch})}) AND ingested_at = %s",
        (at(ingested_at),),
    ):
        ended = wanted.get((job_id, attempt, time_or_zero(claimed_at), node_id))
        if ended is not None:
            found.append(ended)
    return sorted(found, key=lambda e: e.outcome.ref)


class LockedRows(NamedTuple):
    """Rows of a SELECT: locked now by this transaction, and those that another one has locked."""

    ours: set[Row]
    others: set[Row]


def lock_free(tx: Tx, sql: str, params: Sequence[object] = ()) -> LockedRows:
    """Lock the rows of a SELECT that no other transaction has locked, without waiting."""
    ours = set(tx.query(sql + tx.dialect.skip_locked, params))
    if not tx.dialect.skip_locked:
        return LockedRows(ours, set())  # the engine locks all or nothing
    return LockedRows(ours, set(tx.query(sql, params)) - ours)


def marks(items: Sequence[object]) -> str:
    """The placeholders of an IN list."""
    return ", ".join(["%s"] * len(items))


class RequestRow(msgspec.Struct, kw_only=True, gc=False):
    """One request. `params`, `extras` and `steps` are JSON text, not decoded.

    `traceparent`: of the span that its jobs come from, where it was traced.
    """

    id: bytes
    workflow: str
    params: bytes
    extras: bytes
    steps: bytes | None
    step: int
    status: str
    version: int
    error: str | None
    created_at: int
    completed_at: int | None
    name: str | None = None
    total: int = 0
    done: int = 0
    failed: int = 0
    cycle: int = 0
    pending: str | None = None
    pending_after: bytes | None = None
    traceparent: str | None = None


REQUEST_COLUMNS = ", ".join(RequestRow.__struct_fields__)


def request(row: Row) -> RequestRow:
    """A row selected as REQUEST_COLUMNS."""
    ident, workflow, params, extras, steps, step, status, version, error, created_at, completed_at = row[:11]
    name, total, done, failed, cycle, pending, pending_after, traceparent = row[11:]
    return RequestRow(
        id=ident,
        workflow=lenient(workflow) or "",
        params=params,
        extras=extras,
        steps=steps,
        step=step,
        status=lenient(status) or "",
        version=version,
        error=lenient(error),
        created_at=time_or_zero(created_at),
        completed_at=lenient_time(completed_at),
        name=lenient(name),
        total=total,
        done=done,
        failed=failed,
        cycle=cycle,
        pending=lenient(pending),
        pending_after=pending_after,
        traceparent=lenient(traceparent),
    )


def requests_by_id(tx: Tx, ids: Sequence[bytes]) -> list[RequestRow]:
    """The rows of these requests, as far as they exist, without a lock."""
    found: list[RequestRow] = []
    for part in chunks(ids):
        sql = f"SELECT {REQUEST_COLUMNS} FROM workerd_requests WHERE id IN ({marks(part)})"
        found += map(request, tx.query(sql, part))
    return found


def lock_requests(tx: Tx, ids: Iterable[bytes]) -> dict[bytes, RequestRow]:
    """Lock these requests by id: the first locks of every transaction that closes jobs of requests."""
    found: dict[bytes, RequestRow] = {}
    for part in chunks(sorted(set(ids))):
        rows = tx.query(
            f"SELECT {REQUEST_COLUMNS} FROM workerd_requests WHERE id IN ({marks(part)})"
            f" ORDER BY id{tx.dialect.row_lock}",
            part,
        )
        found.update((row.id, row) for row in map(request, rows))
    return found


T = TypeVar("T")


class Page(NamedTuple, Generic[T]):
    """Part of a list; `next` is the cursor of the next page, None at the end."""

    rows: list[T]
    next: str | None


def cursor_text(moment: int, ident: bytes) -> str:
    """The cursor of a row, from its time in microseconds and its id."""
    return f"{moment}.{ident.hex()}"


def read_cursor(text: str) -> tuple[int, bytes]:
    """Time and id of a cursor. Raises InvalidValue."""
    moment, point, ident = text.partition(".")
    try:
        if not point or not moment.isascii() or not moment.isdigit() or len(moment) > 18 or len(ident) != 32:
            raise ValueError
        return int(moment), bytes.fromhex(ident)
    except ValueError:
        raise InvalidValue("expected `after` to be the `next` of a page before it") from None
