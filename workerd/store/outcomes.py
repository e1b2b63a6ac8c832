"""Closing attempts: a batch of outcomes in one transaction, and which of them took effect.

Law 1: a row is only touched by a statement that names its id, attempt, incarnation and `claimed_at`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from workerd import clock
from workerd.job import AttemptRef, Status
from workerd.messages import Progress
from workerd.outcome import ClosedAttempt, Outcome, Reason
from workerd.store import columns, limits
from workerd.store.base import Tx
from workerd.store.columns import RequestRow
from workerd.store.limits import RateKey, RateRow


class ClosedBatch(msgspec.Struct, kw_only=True):
    """What took effect of a batch, as input of everything that follows in the same transaction.

    now
        The store time at which the batch was closed, microseconds.
    requests
        The locked rows of the requests that the batch belongs to, by id.
    ended, released
        The attempts whose end took effect, and those that are `new` again.
    woken
        Handlers with new rows to claim.
    freed
        Limits of which something was given back.
    rates
        The locked rates and holds of limits that the batch moves.
    new_errors
        Fingerprint and handler of each error group that is new, or open again.
    """

    now: int
    requests: dict[bytes, RequestRow]
    ended: list[ClosedAttempt]
    released: list[ClosedAttempt]
    woken: set[str]
    freed: set[str] = set()
    rates: dict[RateKey, RateRow] = {}
    new_errors: list[tuple[bytes, str]] = []

    @property
    def refs(self) -> set[AttemptRef]:
        """The attempts for which their outcome took effect."""
        return {e.outcome.ref for e in self.released} | {e.outcome.ref for e in self.ended}


def close(tx: Tx, outcomes: Sequence[Outcome], node_id: bytes) -> ClosedBatch:
    """Close or release these attempts; nothing that follows from it is done here.

    `node_id`: this node's incarnation, which owns every claim whose outcome names no other. A late or second
    outcome changes nothing (law 1). Raises StoreRefused if a row of the batch cannot be stored.

    Locks: rates of limits by name and group, request rows by id, then job rows by (id, attempt); what follows
    may only insert, and delete slots of these attempts.
    """
    rates = limits.lock_for(tx, outcomes)
    requests = columns.lock_requests(tx, {o.request_id for o in outcomes if o.request_id is not None})
    # Not before the claims that are closed, even if the store's clock was set back since.
    now = max([tx.now, *(o.claimed_at for o in outcomes if o.status is not Status.NEW)])
    ordered = sorted(outcomes, key=lambda o: (o.id, o.attempt))
    batch = [closed_attempt(o, node_id, now) for o in ordered]
    released = _release(tx, [e for e in batch if e.outcome.status is Status.NEW])
    ending = [e for e in batch if e.outcome.status is not Status.NEW]
    return ClosedBatch(
        now=now,
        requests=requests,
        ended=tx.dialect.close(tx, ending, now) if ending else [],
        released=released,
        woken={e.outcome.handler for e in released},
        rates=rates,
    )


def free_limits(tx: Tx, batch: ClosedBatch) -> None:
    """Free what the attempts of the batch had of limits, and hold what they say."""
    ended, released = [e.outcome for e in batch.ended], [e.outcome for e in batch.released]
    batch.freed |= limits.free(tx, ended, released, batch.rates, batch.now)


def lockable(tx: Tx, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Lock the rows that closing these attempts changes, as far as no other transaction has them locked.

    Returns the outcomes that have none to wait for, be it of a request, a job or a unique key.
    """
    free = list(outcomes)
    if ids := sorted({o.request_id for o in free if o.request_id is not None}):
        sql = f"SELECT id FROM workerd_requests WHERE id IN ({columns.marks(ids)}) ORDER BY id"
        locked = columns.lock_free(tx, sql, ids).others
        free = [o for o in free if (o.request_id,) not in locked]
    if free:
        where = columns.keys({o.ref for o in free})
        sql = f"SELECT id, attempt FROM workerd_jobs WHERE {where} ORDER BY id, attempt"
        locked = columns.lock_free(tx, sql).others
        free = [o for o in free if o.ref not in locked]
    if keys := [(o.handler, o.unique_key) for o in free if o.unique_key is not None]:
        where = " OR ".join([f"({tx.dialect.live_key_condition})"] * len(keys))
        sql = f"SELECT id FROM workerd_jobs {tx.dialect.hint('workerd_live')} WHERE {where}"
        locked = columns.lock_free(tx, sql, [value for key in keys for value in key]).others
        free = [o for o in free if o.unique_key is None or (o.id,) not in locked]
    return free


def closed_attempt(outcome: Outcome, node_id: bytes, now: int) -> ClosedAttempt:
    """Keep claimed <= started <= finished <= ingested (law 8), whatever the clocks said."""
    claimed = outcome.claimed_at
    started = outcome.started_at
    if started is not None:
        started = max(claimed, min(started, now))
    finished = now if outcome.finished_at is None else min(outcome.finished_at, now)
    finished = max(finished, started or claimed)
    if outcome.reason is Reason.LOST and started is not None:
        # Whoever finds it lost does not know when it ended: it ran until now at most.
        usage = msgspec.structs.replace(outcome.usage, run_us=finished - started)
        outcome = msgspec.structs.replace(outcome, usage=usage)
    return ClosedAttempt(outcome, outcome.node_id or node_id, started, finished)


_RELEASE = """UPDATE workerd_jobs SET status = 'new', node_id = NULL, node = NULL, pid = NULL,
    claimed_at = NULL, started_at = NULL, progress = NULL, note = NULL WHERE """


def _release(tx: Tx, batch: Sequence[ClosedAttempt]) -> list[ClosedAttempt]:
    """Make these attempts `new` again; those for which that took effect."""
    if not batch:
        return []
    wanted = {e.identity: e for e in batch}
    keys = columns.keys({e.outcome.ref for e in batch})
    held = []
    for job_id, attempt, claimed_at, node_id in tx.query(
        f"SELECT id, attempt, claimed_at, node_id FROM workerd_jobs {tx.dialect.by_key}"
        f" WHERE ({keys}) AND status = 'inprogress'{tx.dialect.row_lock}"
    ):
        ended = wanted.get((job_id, attempt, columns.time_or_zero(claimed_at), node_id))
        if ended is not None:
            held.append(ended)
    if held:
        tx.execute(_RELEASE + columns.keys([e.outcome.ref for e in held]))
    return held


def ingested(tx: Tx, keys: Sequence[AttemptRef], moment: int) -> set[AttemptRef]:
    """Which of these attempts were closed at this moment: whether a COMMIT without an answer took effect."""
    found: set[AttemptRef] = set()
    for part in columns.chunks(keys):
        sql = f"SELECT id, attempt FROM workerd_jobs WHERE ({columns.keys(part)}) AND ingested_at = %s"
        found.update(AttemptRef(row[0], row[1]) for row in tx.query(sql, (clock.to_text(moment),)))
    return found


def metas(tx: Tx, refs: Sequence[AttemptRef]) -> dict[AttemptRef, bytes | None]:
    """The `meta` of these attempts, JSON."""
    found: dict[AttemptRef, bytes | None] = {}
    for part in columns.chunks(refs):
        rows = tx.query(f"SELECT id, attempt, meta FROM workerd_jobs WHERE {columns.keys(part)}")
        found.update((AttemptRef(job_id, attempt), meta) for job_id, attempt, meta in rows)
    return found


def progress(tx: Tx, messages: Sequence[Progress], node_id: bytes) -> int:
    """Write the progress of running attempts of this incarnation; returns the number of rows updated.

    Rows that another transaction has locked are left out: progress is soon overtaken.
    """
    by_ref = {AttemptRef(p.id, p.attempt): p for p in messages}
    keys = columns.keys(by_ref)
    free = tx.query(f"SELECT id, attempt FROM workerd_jobs WHERE {keys}{tx.dialect.skip_locked}")
    updated = 0
    for p in (by_ref[AttemptRef(*row)] for row in sorted(free)):
        updated += tx.execute(
            "UPDATE workerd_jobs SET started_at = %s, pid = %s, progress = COALESCE(%s, progress),"
            " note = COALESCE(%s, note)"
            " WHERE id = %s AND attempt = %s AND status = 'inprogress' AND node_id = %s AND claimed_at = %s",
            (
                clock.to_text(max(p.started_at, p.claimed_at)), p.pid, p.progress, p.note,
                p.id, p.attempt, node_id, clock.to_text(p.claimed_at),
            ),
        )  # fmt: skip
    return updated
