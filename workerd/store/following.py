"""What follows from an outcome that took effect: the next attempt, the next run of a chain."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from workerd import clock
from workerd.job import COOLER_KEY, ENDED, Key, Status, new_id
from workerd.outcome import ERROR_LIMIT, Outcome, Reason
from workerd.store import chains, dialect, rows
from workerd.store.connection import Tx

_HELD = "not tried again: another live job holds its unique key"

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
    failed = {o.key: _failed(tx, o) for o in _without_next(tx, retried)}
    return [failed.get(o.key, o) for o in outcomes]


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
    following: set[Key] = set()
    for part in rows.chunks(retried):
        keys = dialect.keys([(o.id, o.attempt + 1) for o in part])
        found = tx.query(f"SELECT id, attempt FROM workerd_jobs WHERE {keys}")
        following.update((job_id, attempt) for job_id, attempt in found)
    return [o for o in retried if (o.id, o.attempt + 1) not in following]


def _failed(tx: Tx, outcome: Outcome) -> Outcome:
    error = f"{outcome.error or outcome.reason or ''}; {_HELD}".encode()[-ERROR_LIMIT:].decode(
        "utf-8", "ignore"
    )
    tx.execute(
        "UPDATE workerd_jobs SET status = 'failure', success = %s, error = %s WHERE id = %s AND attempt = %s",
        (False, error, *outcome.key),
    )
    return msgspec.structs.replace(outcome, status=Status.FAILURE, success=False, error=error, next=None)


def runs(tx: Tx, outcomes: Sequence[Outcome], now: int) -> set[str]:
    """Insert the next run of each recurring handler whose run has ended; their names."""
    over = [
        o
        for o in outcomes
        if o.again_us is not None
        and o.unique_key == COOLER_KEY
        and o.status in ENDED
        and o.request_id is None
    ]
    if not over:
        return set()
    going = chains.goes_on(tx, {o.handler for o in over})
    added = set()
    for o in over:
        if o.reason is Reason.SKIPPED:
            _forget_skipped(tx, o)
        if o.handler in going and chains.add(tx, o.handler, new_id(), run_at=now + max(0, o.again_us or 0)):
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
