"""Closing attempts: a batch of outcomes in one transaction, and what took effect."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from workerd import clock
from workerd.job import COOLER_KEY, ENDED, AttemptRef, Status, new_id
from workerd.messages import Progress
from workerd.outcome import Outcome, Reason
from workerd.store import columns, dialect, intervals, workflows
from workerd.store import columns as store_columns
from workerd.store.base import Tx
from workerd.store.literals import literal
from workerd.text import ERROR_LIMIT, one_line

# The statement that ends attempts: one for a whole batch where the engine can, and what took effect.
#
# Law 1: a row is only touched by a statement that names its id, attempt, incarnation and `claimed_at`.
#

LONG = 4096
"""Bytes of payload or stack that are written by a statement of their own: in the batch's derived table
they would make the server put it on disk."""


class ClosedAttempt(msgspec.Struct, frozen=True, gc=False):
    """An outcome made ready: `node_id` filled in, times put in order."""

    outcome: Outcome
    node_id: bytes
    started_at: int | None
    finished_at: int

    @property
    def identity(self) -> tuple[bytes, int, int, bytes]:
        """What law 1 asks a statement to name."""
        o = self.outcome
        return o.id, o.attempt, o.claimed_at, self.node_id


def closed_attempt(outcome: Outcome, node_id: bytes, now: int) -> ClosedAttempt:
    """Keep claimed <= started <= finished <= ingested (law 8), whatever the clocks said."""
    claimed = outcome.claimed_at
    started = outcome.started_at
    if started is not None:
        started = max(claimed, min(started, now))
    finished = now if outcome.finished_at is None else min(outcome.finished_at, now)
    return ClosedAttempt(outcome, outcome.node_id or node_id, started, max(finished, started or claimed))


def record(tx: Tx, batch: Sequence[ClosedAttempt], ingested_at: int) -> list[ClosedAttempt]:
    """Close these attempts; those whose closing took effect. Locks: job rows, by (id, attempt)."""
    ordered = sorted(batch, key=lambda e: (e.outcome.id, e.outcome.attempt))
    if not ordered:
        return []
    if tx.engine == "sqlite":
        return _one_by_one(tx, ordered, ingested_at)
    return _at_once(tx, ordered, ingested_at)


# -- MySQL: UPDATE … JOIN (SELECT … UNION ALL …) -----------------------------------------------

_Write = Callable[[Any], str]


def _time(us: int | None) -> str:
    # A typed literal: as text the comparison with a DATETIME would be one of strings.
    return "NULL" if us is None else f"TIMESTAMP'{clock.to_text(us)}'"


def _short(value: bytes | str | None) -> str:
    return "NULL" if value is None or len(value) > LONG else literal(value)


class _Column(NamedTuple):
    """Where a column's values are in an Ended, how they are written, and what SET makes of them."""

    read: Callable[[ClosedAttempt], Any]
    write: _Write = literal
    set: str = "j.{name} = {value}"


def _of(path: str, write: _Write = literal) -> _Column:
    return _Column(attrgetter(path), write)


_NAMED = {
    "id": _of("outcome.id"),
    "attempt": _of("outcome.attempt"),
    "claimed_at": _of("outcome.claimed_at", _time),
    "node_id": _of("node_id"),
}
_SET = {
    "status": _of("outcome.status"),
    "reason": _of("outcome.reason"),
    "success": _of("outcome.success"),
    "payload": _of("outcome.payload", _short),
    "payload_type": _of("outcome.payload_type"),
    "error": _of("outcome.error"),
    "stack": _of("outcome.stack", _short),
    "exit_signal": _of("outcome.exit_signal"),
    "exit_code": _of("outcome.exit_code"),
    "started_at": _of("started_at", _time),
    "finished_at": _of("finished_at", _time),
    "run_us": _of("outcome.usage.run_us"),
    "cpu_us": _of("outcome.usage.cpu_us"),
    "max_rss_kib": _of("outcome.usage.max_rss_kib"),
    "pid": _of("outcome.pid"),
    # What is not told stays as it was.
    "progress": _of("outcome.progress")._replace(set="j.{name} = COALESCE({value}, j.{name})"),
    "note": _of("outcome.note")._replace(set="j.{name} = COALESCE({value}, j.{name})"),
}


def _at_once(tx: Tx, batch: Sequence[ClosedAttempt], ingested_at: int) -> list[ClosedAttempt]:
    derived, named = _derived(batch, _NAMED | _SET)
    sets = [column.set.format(name=name, value=named[name]) for name, column in _SET.items()]
    changed = tx.execute(
        f"UPDATE ({derived}) AS o STRAIGHT_JOIN workerd_jobs AS j FORCE INDEX (PRIMARY)"
        f" ON j.id = {named['id']} AND j.attempt = {named['attempt']}"
        f" SET {', '.join(sets)}, j.ingested_at = {_time(ingested_at)}"
        f" WHERE j.status = 'inprogress' AND j.node_id = {named['node_id']}"
        f" AND j.claimed_at = {named['claimed_at']}"
    )
    effective = list(batch) if changed == len(batch) else _read_back(tx, batch, ingested_at)
    for ended in effective:
        if _is_long(ended.outcome):
            _write_long(tx, ended.outcome)
    return effective


def _derived(batch: Sequence[ClosedAttempt], columns: dict[str, _Column]) -> tuple[str, dict[str, str]]:
    """The derived table, and how to name each column; one that is the same in all rows is a constant.

    Column by column and each value once: this runs for every job, at a few microseconds each.
    """
    named: dict[str, str] = {}
    listed: list[list[str]] = []
    heads: list[str] = []
    for name, column in columns.items():
        values_ = list(map(column.read, batch))
        if values_.count(values_[0]) == len(values_) and name != "id":
            named[name] = column.write(values_[0])
            continue
        written = {value: column.write(value) for value in set(values_)}
        listed.append([written[value] for value in values_])
        heads.append(f"{listed[-1][0]} AS {name}")
        named[name] = f"o.{name}"
    rows = list(map(", ".join, zip(*listed, strict=True)))
    rows[0] = ", ".join(heads)
    return "SELECT " + " UNION ALL SELECT ".join(rows), named


def _read_back(tx: Tx, batch: Sequence[ClosedAttempt], ingested_at: int) -> list[ClosedAttempt]:
    """Those that carry this transaction's `ingested_at`, each once."""
    wanted = {e.identity: e for e in reversed(batch)}
    effective = []
    keys = dialect.keys({e.outcome.ref for e in batch})
    for job_id, attempt, claimed_at, node_id in tx.query(
        f"SELECT id, attempt, claimed_at, node_id FROM workerd_jobs FORCE INDEX (PRIMARY)"
        f" WHERE ({keys}) AND ingested_at = {_time(ingested_at)}"
    ):
        ended = wanted.get((job_id, attempt, store_columns.time(claimed_at), node_id))
        if ended is not None:
            effective.append(ended)
    return sorted(effective, key=lambda e: e.outcome.ref)


def _is_long(outcome: Outcome) -> bool:
    payload, stack = outcome.payload, outcome.stack
    return (payload is not None and len(payload) > LONG) or (stack is not None and len(stack) > LONG)


def _write_long(tx: Tx, outcome: Outcome) -> None:
    both = (("payload", outcome.payload), ("stack", outcome.stack))
    long = {name: value for name, value in both if value is not None and len(value) > LONG}
    sets = ", ".join(f"{name} = %s" for name in long)
    tx.execute(
        f"UPDATE workerd_jobs SET {sets} WHERE id = %s AND attempt = %s", [*long.values(), *outcome.ref]
    )


# -- SQLite: a statement costs no round trip ---------------------------------------------------

_SQLITE = """UPDATE workerd_jobs SET status = %s, reason = %s, success = %s, payload = %s, payload_type = %s,
    error = %s, stack = %s, exit_signal = %s, exit_code = %s, started_at = %s, finished_at = %s, run_us = %s,
    cpu_us = %s, max_rss_kib = %s, pid = %s, progress = COALESCE(%s, progress), note = COALESCE(%s, note),
    ingested_at = %s
    WHERE id = %s AND attempt = %s AND status = 'inprogress' AND node_id = %s AND claimed_at = %s"""


def _one_by_one(tx: Tx, batch: Iterable[ClosedAttempt], ingested_at: int) -> list[ClosedAttempt]:
    now = clock.to_text(ingested_at)
    return [e for e in batch if tx.execute(_SQLITE, _parameters(e, now))]


def _parameters(e: ClosedAttempt, now: str) -> tuple[Any, ...]:
    o = e.outcome
    return (
        str(o.status), o.reason and str(o.reason), o.success, o.payload, o.payload_type,
        o.error, o.stack, o.exit_signal, o.exit_code,
        store_columns.at(e.started_at), store_columns.at(e.finished_at),
        o.usage.run_us, o.usage.cpu_us, o.usage.max_rss_kib, o.pid, o.progress, o.note, now,
        o.id, o.attempt, e.node_id, clock.to_text(o.claimed_at),
    )  # fmt: skip


# -- giving back -------------------------------------------------------------------------------

_RELEASE = """UPDATE workerd_jobs SET status = 'new', node_id = NULL, node = NULL, pid = NULL,
    claimed_at = NULL, started_at = NULL, progress = NULL, note = NULL WHERE """


def give_back(tx: Tx, batch: Sequence[ClosedAttempt]) -> list[ClosedAttempt]:
    """Make these attempts `new` again; those for which that took effect. Locks: job rows, as `record`."""
    if not batch:
        return []
    wanted = {e.identity: e for e in batch}
    keys = dialect.keys({e.outcome.ref for e in batch})
    held = []
    for job_id, attempt, claimed_at, node_id in tx.query(
        f"SELECT id, attempt, claimed_at, node_id FROM workerd_jobs"
        f" WHERE ({keys}) AND status = 'inprogress'{dialect.of(tx).lock}"
    ):
        ended = wanted.get((job_id, attempt, store_columns.time_or_none(claimed_at) or 0, node_id))
        if ended is not None:
            held.append(ended)
    if held:
        tx.execute(_RELEASE + dialect.keys([e.outcome.ref for e in held]))
    return held


_HELD = "; not tried again: another live job holds its unique key"

_CARRIED = (
    "j.handler, j.priority, j.vars, j.meta, j.deadline_ms, j.max_attempts, j.unique_key, j.request_id,"
    " j.step, j.name, j.created_at"
)
_NEXT = (
    "INSERT INTO workerd_jobs (id, attempt, status, run_at, failures, crashes, losses, "
    + _CARRIED.replace("j.", "")
    + ") SELECT j.id, j.attempt + 1, {status}, {run_at}, {failures}, {crashes}, {losses}, "
    + _CARRIED
    + " FROM {source} {keep}"
)


def attempts(tx: Tx, outcomes: Sequence[Outcome], now: int) -> list[Outcome]:
    """Insert the attempts that follow; the outcomes as they stand after that.

    Where the unique key got another holder there is no next attempt, and this one ends as `failure`.
    """
    retried = [o for o in outcomes if o.status is Status.RETRY and o.next is not None]
    if not retried:
        return list(outcomes)
    inserted = _insert_sqlite(tx, retried, now) if tx.engine == "sqlite" else _insert_mysql(tx, retried, now)
    if inserted == len(retried):
        return list(outcomes)
    failed = {o.ref: _failed(tx, o) for o in _without_next(tx, retried)}
    return [failed.get(o.ref, o) for o in outcomes]


def _due(outcome: Outcome, now: int) -> tuple[str, str]:
    delay = outcome.next.delay_us if outcome.next is not None else 0
    return ("scheduled", clock.to_text(now + delay)) if delay > 0 else ("new", clock.to_text(now))


def _insert_mysql(tx: Tx, retried: Sequence[Outcome], now: int) -> int:
    derived = []
    for o in retried:
        assert o.next is not None
        status, run_at = _due(o, now)
        derived.append(
            f"SELECT x'{o.id.hex()}' AS id, {int(o.attempt)} AS attempt, '{status}' AS status,"
            f" TIMESTAMP'{run_at}' AS run_at, {int(o.next.failures)} AS failures,"
            f" {int(o.next.crashes)} AS crashes, {int(o.next.losses)} AS losses"
        )
    source = (
        f"({' UNION ALL '.join(derived)}) AS o STRAIGHT_JOIN workerd_jobs AS j FORCE INDEX (PRIMARY)"
        " ON j.id = o.id AND j.attempt = o.attempt"
    )
    names = {name: f"o.{name}" for name in ("status", "run_at", "failures", "crashes", "losses")}
    keep = dialect.MYSQL.keep.format("workerd_jobs.id")
    return tx.execute(_NEXT.format(**names, source=source, keep=keep))


def _insert_sqlite(tx: Tx, retried: Sequence[Outcome], now: int) -> int:
    sql = _NEXT.format(
        **dict.fromkeys(("status", "run_at", "failures", "crashes", "losses"), "%s"),
        source="workerd_jobs AS j WHERE j.id = %s AND j.attempt = %s",
        keep=dialect.SQLITE.keep,
    )
    inserted = 0
    for o in retried:
        assert o.next is not None
        inserted += tx.execute(
            sql, (*_due(o, now), o.next.failures, o.next.crashes, o.next.losses, o.id, o.attempt)
        )
    return inserted


def _without_next(tx: Tx, retried: Sequence[Outcome]) -> list[Outcome]:
    """Those whose next attempt is not there: by whomever it was inserted, it is the next."""
    following: set[tuple[bytes, int]] = set()
    for part in columns.chunks(retried):
        keys = dialect.keys([(o.id, o.attempt + 1) for o in part])
        found = tx.query(f"SELECT id, attempt FROM workerd_jobs WHERE {keys}")
        following.update((job_id, attempt) for job_id, attempt in found)
    return [o for o in retried if (o.id, o.attempt + 1) not in following]


def _failed(tx: Tx, outcome: Outcome) -> Outcome:
    error = one_line(outcome.error or outcome.reason or "", ERROR_LIMIT - len(_HELD)) + _HELD
    tx.execute(
        "UPDATE workerd_jobs SET status = 'failure', success = %s, error = %s WHERE id = %s AND attempt = %s",
        (False, error, *outcome.ref),
    )
    return msgspec.structs.replace(outcome, status=Status.FAILURE, success=False, error=error, next=None)


def runs(tx: Tx, outcomes: Sequence[Outcome], now: int) -> set[str]:
    """Insert the next run of each recurring handler whose run has ended; their names."""
    over = [
        o
        for o in outcomes
        if o.next_run_us is not None
        and o.unique_key == COOLER_KEY
        and o.status in ENDED
        and o.request_id is None
    ]
    if not over:
        return set()
    going = intervals.goes_on(tx, {o.handler for o in over})
    added = set()
    for o in over:
        if o.reason is Reason.SKIPPED:
            _forget_skipped(tx, o)
        if o.handler in going and intervals.add(
            tx, o.handler, new_id(), run_at=now + max(0, o.next_run_us or 0)
        ):
            added.add(o.handler)
    return added


_SKIPPED_KEPT_OF = 10


def _forget_skipped(tx: Tx, newest: Outcome) -> None:
    """Of a recurring handler only the newest skipped row is kept; the one before it is among the last few."""
    found = tx.query(
        f"SELECT id, attempt FROM (SELECT id, attempt, reason, unique_key FROM workerd_jobs"
        f" {dialect.of(tx).claim_index} WHERE handler = %s AND status = 'completed' AND priority = 0"
        f" ORDER BY run_at DESC LIMIT %s) AS last WHERE reason = 'skipped' AND unique_key = %s AND id <> %s",
        (newest.handler, _SKIPPED_KEPT_OF, COOLER_KEY, newest.id),
    )
    if found:
        tx.execute(f"DELETE FROM workerd_jobs WHERE {dialect.keys([(row[0], row[1]) for row in found])}")


def close(
    tx: Tx,
    outcomes: Sequence[Outcome],
    node_id: bytes,
    woken: set[str] | None = None,
    *,
    move_on: bool = True,
) -> set[AttemptRef]:
    """Record how these attempts ended, or give them back; the keys for which that took effect.

    `node_id`: this node's incarnation, which owns every claim whose outcome names no other. `woken` gets
    the handlers that have new rows to claim by it. `move_on` false leaves further steps of requests to the
    sweep. A late or second outcome changes nothing, and nothing follows from it (law 1). Raises
    StoreRefused if a row of the batch cannot be stored.

    Locks: request rows by id, job rows by (id, attempt), then inserts.
    """
    woken = set() if woken is None else woken
    locked = workflows.lock(tx, {o.request_id for o in outcomes if o.request_id is not None})
    # Not before the claims that are closed, even if the store's clock was set back since.
    now = max([tx.now, *(o.claimed_at for o in outcomes if o.status is not Status.NEW)])
    ready = [closed_attempt(o, node_id, now) for o in outcomes]
    given_back = give_back(tx, [e for e in ready if e.outcome.status is Status.NEW])
    recorded = record(tx, [e for e in ready if e.outcome.status is not Status.NEW], now)
    ended = attempts(tx, [e.outcome for e in recorded], now)
    woken |= {o.handler for o in ended if o.next is not None and o.next.delay_us <= 0}
    woken |= {e.outcome.handler for e in given_back}
    woken |= runs(tx, ended, now)
    if locked:
        woken |= workflows.closed(tx, locked, [o for o in ended if o.request_id is not None], move_on=move_on)
    return {e.outcome.ref for e in given_back} | {o.ref for o in ended}


def ingested(tx: Tx, keys: Sequence[AttemptRef], moment: int) -> set[AttemptRef]:
    """Which of these attempts were closed at exactly this moment: what a COMMIT without an answer did."""
    found: set[AttemptRef] = set()
    for part in columns.chunks(keys):
        sql = f"SELECT id, attempt FROM workerd_jobs WHERE ({dialect.keys(part)}) AND ingested_at = %s"
        found.update(AttemptRef(row[0], row[1]) for row in tx.query(sql, (clock.to_text(moment),)))
    return found


def progress(tx: Tx, told: Sequence[Progress], node_id: bytes) -> int:
    """Write what running attempts of this incarnation say of themselves; how many rows it reached."""
    reached = 0
    for p in sorted(told, key=lambda p: (p.id, p.attempt)):
        reached += tx.execute(
            "UPDATE workerd_jobs SET started_at = %s, pid = %s, progress = COALESCE(%s, progress),"
            " note = COALESCE(%s, note)"
            " WHERE id = %s AND attempt = %s AND status = 'inprogress' AND node_id = %s AND claimed_at = %s",
            (
                clock.to_text(max(p.started_at, p.claimed_at)), p.pid, p.progress, p.note,
                p.id, p.attempt, node_id, clock.to_text(p.claimed_at),
            ),
        )  # fmt: skip
    return reached
