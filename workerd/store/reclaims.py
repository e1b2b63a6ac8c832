"""Claims that a store has lost: rows that are back as if nobody had claimed them (law 1: one end)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from workerd.job import AttemptRef, Status
from workerd.store import columns, group_queues, slot_numbers, slots
from workerd.store.base import Tx
from workerd.store.claims import NodeIdent

_TAKE_BACK = """UPDATE workerd_jobs {by_key} SET status = 'inprogress', node_id = %s, node = %s,
    claimed_at = %s, reason = NULL WHERE status IN ('new','scheduled') AND ({keys})"""
_WAITING = frozenset({Status.NEW.encode(), Status.SCHEDULED.encode()})


class LimitScopes(NamedTuple):
    """The scopes of a limit in which each running attempt has a slot."""

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
    retaken: Callable[[str], LimitScopes | None] = lambda handler: None,
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


def _retake_slots(
    tx: Tx, taken: Collection[AttemptRef], retaken: Callable[[str], LimitScopes | None]
) -> None:
    by_limit: dict[LimitScopes, list[tuple[AttemptRef, str]]] = {}
    for part in columns.chunks(list(taken)):
        sql = f"SELECT id, attempt, handler, group_key FROM workerd_jobs WHERE {columns.keys(part)}"
        for job_id, attempt, handler, group in tx.query(sql):
            again = retaken(columns.lenient(handler) or "")
            if again is not None:
                attempts = by_limit.setdefault(again, [])
                attempts.append((AttemptRef(job_id, attempt), group_queues.group_of(group)))
    for again, attempts in by_limit.items():
        slots.delete(tx, [ref for ref, _ in attempts])
        numbers = slot_numbers.read(tx.query(*slot_numbers.query(tx.dialect, again.limit, by_group=True)))
        refs, groups = zip(*attempts, strict=True)
        slots.take(tx, again.limit, numbers, refs, groups, again.scopes)


def count_running(tx: Tx, wanted: LimitScopes, handlers: Sequence[str]) -> list[AttemptRef]:
    """Give slots of a limit, which is locked, to running attempts of these handlers that have none; those.

    As after a reload that gives the limit to a handler, or a concurrency to the limit. They run, so they get
    slots even beyond it. Their ends will not name these slots: free them by `slots.free_ended`.

    Locks the rows of these attempts, so that none of them ends meanwhile, in the order of their keys.
    """
    sql = (
        f"SELECT id, attempt FROM workerd_jobs {tx.dialect.hint('workerd_holder')}"
        f" WHERE status = 'inprogress' AND handler IN ({columns.marks(handlers)})"
    )
    running = {AttemptRef(*row) for row in tx.query(sql, list(handlers))}
    missing = {scope: running - slots.attempts_with(tx, wanted.limit, scope) for scope in wanted.scopes}
    groups = _locked_groups(tx, set().union(*missing.values()))
    if not groups:
        return []
    numbers = slot_numbers.read(tx.query(*slot_numbers.query(tx.dialect, wanted.limit, by_group=True)))
    for scope, without in missing.items():
        refs = sorted(without & groups.keys())
        slots.take(tx, wanted.limit, numbers, refs, [groups[ref] for ref in refs], [scope])
    return sorted(groups)


def _locked_groups(tx: Tx, refs: Collection[AttemptRef]) -> dict[AttemptRef, str]:
    """The groups of those of these attempts that still run."""
    found: dict[AttemptRef, str] = {}
    for part in columns.chunks(sorted(refs)):
        sql = (
            f"SELECT id, attempt, group_key FROM workerd_jobs {tx.dialect.by_key}"
            f" WHERE ({columns.keys(part)}) AND status = 'inprogress'{tx.dialect.row_lock}"
        )
        found.update((AttemptRef(*row[:2]), group_queues.group_of(row[2])) for row in tx.query(sql))
    return found


def take_ended(tx: Tx, node: NodeIdent, ended: Collection[AttemptRef]) -> list[AttemptRef]:
    """Claim those of the attempts, which this node has ended, whose rows wait to be claimed."""
    return take_back(tx, node, dict.fromkeys(ended, tx.now)).taken
