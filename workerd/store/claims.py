"""Claims: peek, poll, claim, promote due rows, and which claims a node holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from workerd import clock
from workerd.errors import UnreadableRow
from workerd.job import COOLER_KEY, AttemptRef, Claim, ClaimedAttempt
from workerd.outcome import Outcome, cancelled, expired, unreadable
from workerd.store import columns, expiry, workflow_inputs
from workerd.store.base import Tx
from workerd.store.dialect import Dialect
from workerd.store.session import Row

INLINE_BYTES = 16 * 1024
"""Vars up to this size are selected with the row; longer ones are read one by one."""
MAX_BATCH_BYTES = 8 * 1024 * 1024
"""Bytes of vars and meta in one claim; rows beyond it stay `new`."""
MAX_JOB_BYTES = 32 * 1024 * 1024
"""Bytes of vars and meta with which a job can still be sent to a worker."""
MAX_DEADLINE_MS = 365 * 86_400 * 1000
"""As long as a handler's own may be."""
NO_NODE = bytes(16)
"""Stands for the node of attempts that are `inprogress` without one."""


def holder(node_id: bytes) -> str:
    """The column `holder` of the rows that are `inprogress` for this incarnation."""
    return node_id.hex().upper()


class NodeIdent(NamedTuple):
    """The claiming incarnation and the name of its node."""

    id: bytes
    name: str


class Cursor(NamedTuple):
    """Where a claim found its first row, so that the next one skips the dead index entries before it.

    Down to the id where the index is: all rows of a bulk have one time, and until the server purges them a
    claim read those that had been claimed of it, up to 2 ms on MariaDB.
    """

    priority: int
    run_at: str
    id: bytes


def cursor_at(row: Row) -> Cursor:
    """Of a row selected as id, attempt, priority, run_at."""
    return Cursor(row[2], columns.lenient(row[3]) or "", row[0])


class ClaimBatch(NamedTuple):
    """What one transaction claimed of a handler.

    broken
        Attempts that were claimed but cannot be run, as outcomes for the ingester.
    cursor
        For the next claim of this handler, None if it found fewer rows than asked for.
    found
        Number of rows seen.
    size
        Bytes of vars and meta of the claimed rows.
    """

    claims: list[Claim]
    broken: list[Outcome]
    cursor: Cursor | None
    found: int
    paused: bool = False
    size: int = 0


class Promoted(msgspec.Struct, frozen=True):
    """`count` rows of `handlers` became `new`; `next_due`: when the next row is due or expires, if any.

    `expired`: rows were seen that have expired. `full`: there may be more due rows.
    """

    count: int
    handlers: set[str]
    next_due: int | None
    expired: bool = False
    full: bool = False


# Columns that are mostly at their defaults are not selected for every row: PyMySQL needs 0.4 µs for each.
_SPECIAL = (
    "meta", "deadline_ms", "max_attempts", "unique_key", "request_id", "step", "name", "cancel_requested_at",
    "state", "expires_at",
)  # fmt: skip
_CLAIM = """SELECT id, attempt, priority, run_at, CASE WHEN {size} <= {small} THEN vars END,
    CASE WHEN {plain} AND failures = 0 AND crashes = 0 AND losses = 0 THEN 0 ELSE 1 END
    FROM workerd_jobs {index} WHERE status = 'new' AND holder = %s{after}
    ORDER BY priority, run_at LIMIT %s{skip}"""
IS_PLAIN = " AND ".join(f"{column} IS NULL" for column in _SPECIAL)
_ROWS = """SELECT id, attempt, priority, run_at, CASE WHEN {size} <= {small} THEN vars END,
    CASE WHEN {plain} AND failures = 0 AND crashes = 0 AND losses = 0 THEN 0 ELSE 1 END
    FROM workerd_jobs {by_key} WHERE ({keys}) AND status = 'new'{skip}"""
_DETAILS = """SELECT id, attempt, deadline_ms, max_attempts, failures, crashes, losses, unique_key,
    request_id, step, name, cancel_requested_at, {vars}, COALESCE({meta}, 0),
    CASE WHEN {meta} <= {small} THEN meta END, COALESCE({state}, 0),
    CASE WHEN {state} <= {small} THEN state END, expires_at FROM workerd_jobs WHERE {keys}"""
_TAKEN = """status = 'inprogress', node_id = %s, node = %s, claimed_at = %s, reason = NULL, queue = NULL"""


class _Details(NamedTuple):
    """The columns of a row that differs from the defaults, in the order of _DETAILS."""

    deadline_ms: Any
    max_attempts: Any
    failures: Any
    crashes: Any
    losses: Any
    unique_key: Any
    request_id: Any
    step: Any
    name: Any
    cancel_requested_at: Any
    vars_size: int
    meta_size: int
    meta: Any
    state_size: int
    state: Any
    expires_at: Any

    @property
    def size(self) -> int:
        return self.vars_size + self.meta_size + self.state_size


_PLAIN = _Details(None, None, 0, 0, 0, None, None, None, None, None, 0, 0, None, 0, None, None)


def claim(
    tx: Tx,
    handler: str,
    limit: int,
    node: NodeIdent,
    cursor: Cursor | None = None,
    max_bytes: int = MAX_BATCH_BYTES,
    mono_ns: Callable[[], int] = time.monotonic_ns,
    expires_us: int | None = None,
) -> ClaimBatch:
    """Claim up to `limit` rows of `handler` for `node`; the claim is valid once the transaction commits.

    `max_bytes`: of vars and meta; at least one row is claimed. Rows beyond it stay `new`. `expires_us`: how
    long after `run_at` jobs of this handler may begin; what has expired is in `broken`.

    Locks the handler's row (shared), so that no claim commits after `pause` has returned, then the rows,
    skipping those locked by another claimer. Two round trips with the COMMIT, one more for each further
    handler of the transaction and for rows that are not plain.
    """
    inline = min(INLINE_BYTES, max_bytes // limit)
    paused, rows = _new_rows(tx, handler, limit, cursor, inline)
    if paused:
        return ClaimBatch([], [], cursor, 0, paused=True)
    mono = mono_ns()
    if not rows:
        return ClaimBatch([], [], None, 0)
    first = cursor_at(rows[0]) if len(rows) == limit else None
    taken = take(tx, handler, rows, node, inline, max_bytes, mono, expires_us)
    return taken._replace(cursor=first, found=len(rows))


def take(
    tx: Tx,
    handler: str,
    rows: list[Row],
    node: NodeIdent,
    inline: int,
    max_bytes: int,
    mono: int,
    expires_us: int | None = None,
) -> ClaimBatch:
    """Claim these rows, selected as _CLAIM says and locked, as far as they fit `max_bytes`.

    `inline`: bytes of vars that were selected with the row. `mono`: the monotonic nanosecond of `tx.now`.
    `expires_us`: as for `claim`.
    """
    now = tx.now
    details = _details(tx, [row[:2] for row in rows if row[4] is None or row[5]], inline)
    rows, size = _within_budget(rows, details, max_bytes)
    _take(tx, [row[:2] for row in rows], node, now)
    claims: list[Claim] = []
    broken: list[Outcome] = []
    for row in rows:
        detail = details.get(row[:2], _PLAIN)
        try:
            over = _expired(handler, row, detail, expires_us, now)
            taken = over or _claim_of(tx, handler, row, detail, now, mono)
        except UnreadableRow as error:
            taken = unreadable(_attempt_of(handler, row, detail, now), str(error))
        claims.append(taken) if isinstance(taken, Claim) else broken.append(taken)
    return ClaimBatch(_enriched(tx, claims, broken), broken, None, len(rows), size=size)


def pause_query(tx: Tx, handler: str) -> tuple[str, tuple[str]]:
    """Asks whether the handler is paused, and locks its row (shared), so that a pause waits for the claim."""
    words = tx.dialect
    sql = f"SELECT paused_at, {words.clock_column} FROM workerd_handlers WHERE name = %s{words.share_lock}"
    return sql, (handler,)


def read_pause(tx: Tx, handler: str, found: list[Row]) -> bool:
    """Whether the handler is paused, by what `pause_query` found; sets the clock of the transaction."""
    if not found:
        # Without a row, there is nothing for a pause to lock and wait for.
        tx.execute(
            "INSERT INTO workerd_handlers (name) VALUES (%s)" + tx.dialect.keep_existing("name"), (handler,)
        )
        found = tx.query(*pause_query(tx, handler))
    paused_at, now = found[0] if found else (None, None)
    if now is not None:
        tx.now = columns.time(now)
    return paused_at is not None


def _expired(handler: str, row: Row, detail: _Details, expires_us: int | None, now: int) -> Outcome | None:
    """The outcome of an attempt that has expired, else None."""
    if expires_us is None and detail.expires_at is None:
        return None
    run_at, own = columns.time(row[3]), columns.time_or_none(detail.expires_at)
    handlers_own = None if detail.unique_key == COOLER_KEY.encode() else expires_us
    if not expiry.is_over(row[1], run_at, own, handlers_own, now):
        return None
    end = own if own is not None else run_at + (expires_us or 0)
    return expired(_attempt_of(handler, row, detail, now), expiry.sentence(run_at, end, now))


def _new_rows(tx: Tx, handler: str, limit: int, cursor: Cursor | None, inline: int) -> tuple[bool, list[Row]]:
    """Whether the handler is paused, and its next rows: in one round trip, and in this order."""
    words = tx.dialect
    after, params = behind(words, cursor)
    sql = _CLAIM.format(
        size=words.byte_length("vars"),
        small=inline,
        plain=IS_PLAIN,
        index=words.hint("workerd_holder"),
        after=after,
        skip=words.skip_locked,
    )
    found, rows = tx.queries(pause_query(tx, handler), (sql, [handler, *params, limit]))
    return read_pause(tx, handler, found), rows


def behind(words: Dialect, cursor: Cursor | None) -> tuple[str, list[object]]:
    """The condition, with its parameters, for rows from the cursor on."""
    if cursor is None:
        return "", []
    priority, run_at, job_id = cursor
    if not words.index_ends_with_id:
        return " AND (priority > %s OR (priority = %s AND run_at >= %s))", [priority, priority, run_at]
    after = (
        " AND (priority > %s OR (priority = %s AND run_at > %s)"
        " OR (priority = %s AND run_at = %s AND id >= %s))"
    )
    return after, [priority, priority, run_at, priority, run_at, job_id]


def rows_of(tx: Tx, refs: Sequence[AttemptRef], inline: int) -> list[Row]:
    """Lock those of these rows that still wait and that nobody else has locked; for `take`, in this order."""
    words = tx.dialect
    found: dict[tuple[bytes, int], Row] = {}
    for part in columns.chunks(refs):
        sql = _ROWS.format(
            size=words.byte_length("vars"),
            small=inline,
            plain=IS_PLAIN,
            by_key=words.by_key,
            keys=columns.keys(part),
            skip=words.skip_locked,
        )
        found.update((row[:2], row) for row in tx.query(sql))
    return [found[ref] for ref in refs if ref in found]


def _details(tx: Tx, keys: Sequence[tuple[Any, ...]], inline: int) -> dict[tuple[Any, ...], _Details]:
    if not keys:
        return {}
    words = tx.dialect
    sql = _DETAILS.format(
        vars=words.byte_length("vars"),
        meta=words.byte_length("meta"),
        state=words.byte_length("state"),
        small=inline,
        keys=columns.keys([(key[0], key[1]) for key in keys]),
    )
    return {row[:2]: _Details(*row[2:]) for row in tx.query(sql)}


def _within_budget(
    rows: list[Row], details: dict[tuple[Any, ...], _Details], max_bytes: int
) -> tuple[list[Row], int]:
    """The first rows that have at most so many bytes, at least one, and how many they have."""
    total = 0
    for n, row in enumerate(rows):
        detail = details.get(row[:2])
        size = len(row[4]) if detail is None else detail.size
        if n and total + size > max_bytes:
            return rows[:n], total
        total += size
    return rows, total


def _take(tx: Tx, keys: list[tuple[Any, ...]], node: NodeIdent, now: int) -> None:
    params = (node.id, node.name, clock.to_text(now))
    # Fewer only where the read did not lock them: TiDB takes FOR UPDATE SKIP LOCKED for a plain read.
    tx.dialect.update_last(tx, _TAKEN, params, "status = 'new'", [(key[0], key[1]) for key in keys])


def _claim_of(tx: Tx, handler: str, row: Row, detail: _Details, now: int, mono: int) -> Claim | Outcome:
    job_id, attempt, priority, run_at, job_vars, _ = row
    if detail is _PLAIN:
        return Claim(
            id=job_id,
            attempt=attempt,
            claimed_at=now,
            mono=mono,
            handler=handler,
            vars=job_vars,
            run_at=columns.time(run_at),
            priority=priority,
        )
    if detail.cancel_requested_at is not None:
        return cancelled(_attempt_of(handler, row, detail, now), "cancelled before it ran")
    if detail.size > MAX_JOB_BYTES:
        raise UnreadableRow(f"vars, meta and state have {detail.size} bytes, {MAX_JOB_BYTES} are allowed")
    if detail.deadline_ms is not None and detail.deadline_ms > MAX_DEADLINE_MS:
        raise UnreadableRow(f"deadline_ms is {detail.deadline_ms}, at most {MAX_DEADLINE_MS} is allowed")
    return Claim(
        id=job_id,
        attempt=attempt,
        claimed_at=now,
        mono=mono,
        handler=handler,
        vars=_long(tx, row, "vars") if job_vars is None else job_vars,
        run_at=columns.time(run_at),
        meta=_long(tx, row, "meta") if detail.meta is None and detail.meta_size else detail.meta,
        deadline_ms=detail.deadline_ms,
        max_attempts=detail.max_attempts,
        failures=detail.failures,
        crashes=detail.crashes,
        losses=detail.losses,
        unique_key=columns.text_or_none(detail.unique_key),
        request_id=detail.request_id,
        step=detail.step,
        name=columns.text_or_none(detail.name),
        state=_long(tx, row, "state") if detail.state is None and detail.state_size else detail.state,
        priority=priority,
    )


def _long(tx: Tx, row: Row, column: str) -> bytes:
    found = tx.one(f"SELECT {column} FROM workerd_jobs WHERE id = %s AND attempt = %s", row[:2])
    return columns.blob(found and found[0])


def _attempt_of(handler: str, row: Row, detail: _Details, now: int) -> ClaimedAttempt:
    # Lenient: even a row that cannot be read in full must get an end.
    return ClaimedAttempt(
        id=row[0],
        attempt=row[1],
        claimed_at=now,
        handler=handler,
        request_id=detail.request_id,
        step=detail.step,
        name=columns.lenient(detail.name),
        unique_key=columns.lenient(detail.unique_key),
    )


def _enriched(tx: Tx, claims: list[Claim], broken: list[Outcome]) -> list[Claim]:
    """The claims, those of requests with their inputs; those that cannot be run are added to `broken`."""
    of_requests = [claim for claim in claims if claim.request_id is not None]
    if not of_requests:
        return claims
    enriched = workflow_inputs.enrich(tx, of_requests)
    broken += enriched.broken
    carrying = {claim.ref: claim for claim in enriched.claims}
    return [
        c if c.request_id is None else carrying[c.ref]
        for c in claims
        if c.request_id is None or c.ref in carrying
    ]


def promote_due(tx: Tx, limit: int) -> Promoted:
    """Make up to `limit` due `scheduled` rows `new`, in the order of `run_at`."""
    words = tx.dialect
    now = clock.to_text(tx.now)
    found = _due_rows(tx, "due_at <= %s", now, limit)
    rows = [row for row in found if row[3] == b"scheduled"]
    full, has_expired = len(found) >= limit, len(rows) < len(found)
    if full and not rows:
        # So many have expired and are not ended yet, perhaps since they are locked.
        rows = _due_rows(tx, "due_at <= %s AND status = 'scheduled'", now, limit)
        full = len(rows) >= limit
    if rows:
        keys = columns.keys([(row[0], row[1]) for row in rows])
        tx.execute(f"UPDATE workerd_jobs SET status = 'new' WHERE {keys}")
    # Expired rows are left to the sweep, so the next due time skips them.
    after, params = ("> %s", (now,)) if has_expired else ("IS NOT NULL", ())
    following = tx.one(
        f"SELECT due_at FROM workerd_jobs {words.hint('workerd_scheduled')}"
        f" WHERE due_at {after} ORDER BY due_at LIMIT 1",
        params,
    )
    handlers = {columns.lenient(row[2]) or "" for row in rows}
    return Promoted(len(rows), handlers, _due(following, tx.now), expired=has_expired, full=full)


def _due_rows(tx: Tx, where: str, now: str, limit: int) -> list[Row]:
    return tx.query(
        f"SELECT id, attempt, handler, status FROM workerd_jobs {tx.dialect.hint('workerd_scheduled')}"
        f" WHERE {where} ORDER BY due_at LIMIT %s{tx.dialect.skip_locked}",
        (now, limit),
    )


def _due(row: Row | None, now: int) -> int | None:
    if row is None:
        return None
    try:
        return columns.time(row[0])
    except UnreadableRow:
        return now  # a zero date
