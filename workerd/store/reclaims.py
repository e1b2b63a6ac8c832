"""Claims that a store has lost: rows that are back as if nobody had claimed them (law 1: one end)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from workerd.job import AttemptRef, Status
from workerd.store import columns, group_queues, slots
from workerd.store.base import Tx
from workerd.store.claims import NodeIdent

_TAKE_BACK = """UPDATE workerd_jobs {by_key} SET status = 'inprogress', node_id = %s, node = %s,
    claimed_at = %s, reason = NULL WHERE status IN ('new','scheduled') AND ({keys})"""
_WAITING = frozenset({Status.NEW.encode(), Status.SCHEDULED.encode()})


class Retaken(NamedTuple):
    """What an attempt that is claimed again has to have again of a limit: slots in these scopes."""

    limit: str
    scopes: tuple[str, ...]


class TakenBack(NamedTuple):
    """Attempts whose rows waited and are claimed again, and those that have no row."""

    taken: list[AttemptRef]
    missing: list[AttemptRef]


def take_back(
    tx: Tx,
    node: NodeIdent,
    claimed_at: Mapping[AttemptRef, int],
    retaken: Callable[[str], Retaken | None] = lambda handler: None,
) -> TakenBack:
    """Claim again, as the same attempts, those of the attempts whose rows wait to be claimed.

    `claimed_at`: store times, microseconds, with which each was claimed: its outcome will name that.
    `retaken`: what the attempts of a handler have of a limit. They run, so they get slots even beyond it.
    """
    if not claimed_at:
        return TakenBack([], [])
    rows = tx.query(
        f"SELECT id, attempt, status FROM workerd_jobs WHERE {columns.keys(claimed_at)}{tx.dialect.row_lock}"
    )
    status = {AttemptRef(row[0], row[1]): row[2] for row in rows}
    taken = [ref for ref in claimed_at if status.get(ref) in _WAITING]
    by_moment: dict[int, list[AttemptRef]] = {}
    for ref in taken:
        by_moment.setdefault(claimed_at[ref], []).append(ref)
    for moment, refs in by_moment.items():
        sql = _TAKE_BACK.format(by_key=tx.dialect.by_key, keys=columns.keys(refs))
        tx.execute(sql, (node.id, node.name, columns.at(moment)))
    _retake_slots(tx, taken, retaken)
    return TakenBack(taken, [ref for ref in claimed_at if ref not in status])


def _retake_slots(tx: Tx, taken: Collection[AttemptRef], retaken: Callable[[str], Retaken | None]) -> None:
    by_limit: dict[Retaken, list[tuple[AttemptRef, str]]] = {}
    for part in columns.chunks(list(taken)):
        sql = f"SELECT id, attempt, handler, group_key FROM workerd_jobs WHERE {columns.keys(part)}"
        for job_id, attempt, handler, group in tx.query(sql):
            again = retaken(columns.lenient(handler) or "")
            if again is not None:
                attempts = by_limit.setdefault(again, [])
                attempts.append((AttemptRef(job_id, attempt), group_queues.group_of(group)))
    for again, attempts in by_limit.items():
        slots.delete(tx, [ref for ref, _ in attempts])
        numbers = slots.read(tx.query(*slots.query(tx.dialect, again.limit, by_group=True)))
        refs, groups = zip(*attempts, strict=True)
        slots.take(tx, again.limit, numbers, refs, groups, again.scopes)


def take_ended(tx: Tx, node: NodeIdent, ended: Collection[AttemptRef]) -> list[AttemptRef]:
    """Claim those of the attempts, which this node has ended, whose rows wait to be claimed."""
    return take_back(tx, node, dict.fromkeys(ended, tx.now)).taken
