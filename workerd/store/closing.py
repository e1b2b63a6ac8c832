"""Ending attempts: a batch of outcomes in one transaction, and everything that follows from them."""

from __future__ import annotations

from collections.abc import Sequence

from workerd import clock
from workerd.job import Key, Status
from workerd.messages import Progress
from workerd.outcome import Outcome
from workerd.store import dialect, following, recording, requests, rows
from workerd.store.connection import Tx


def close(
    tx: Tx,
    outcomes: Sequence[Outcome],
    node_id: bytes,
    woken: set[str] | None = None,
    *,
    move_on: bool = True,
) -> set[Key]:
    """Record how these attempts ended, or give them back; the keys for which that took effect.

    `node_id`: this node's incarnation, which owns every claim whose outcome names no other. `woken` gets
    the handlers that have new rows to claim by it. `move_on` false leaves further steps of requests to the
    sweep. A late or second outcome changes nothing, and nothing follows from it (law 1). Raises
    StoreRefused if a row of the batch cannot be stored.

    Locks: request rows by id, job rows by (id, attempt), then inserts.
    """
    woken = set() if woken is None else woken
    locked = requests.lock(tx, {o.request_id for o in outcomes if o.request_id is not None})
    # Not before the claims that are closed, even if the store's clock was set back since.
    now = max([tx.now, *(o.claimed_at for o in outcomes if o.status is not Status.NEW)])
    ready = [recording.ready(o, node_id, now) for o in outcomes]
    given_back = recording.give_back(tx, [e for e in ready if e.outcome.status is Status.NEW])
    recorded = recording.record(tx, [e for e in ready if e.outcome.status is not Status.NEW], now)
    ended = following.attempts(tx, [e.outcome for e in recorded], now)
    woken |= {o.handler for o in ended if o.next is not None and o.next.delay_us <= 0}
    woken |= {e.outcome.handler for e in given_back}
    woken |= following.runs(tx, ended, now)
    if locked:
        woken |= requests.closed(tx, locked, [o for o in ended if o.request_id is not None], move_on=move_on)
    return {e.outcome.key for e in given_back} | {o.key for o in ended}


def ingested(tx: Tx, keys: Sequence[Key], moment: int) -> set[Key]:
    """Which of these attempts were closed at exactly this moment: what a COMMIT without an answer did."""
    found: set[Key] = set()
    for part in rows.chunks(keys):
        sql = f"SELECT id, attempt FROM workerd_jobs WHERE ({dialect.keys(part)}) AND ingested_at = %s"
        found.update((row[0], row[1]) for row in tx.query(sql, (clock.to_text(moment),)))
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
