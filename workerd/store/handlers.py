"""Handlers: the nodes that have them, their signatures, and pauses."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec

from workerd.errors import NotFound
from workerd.job import Status
from workerd.store import columns, group_queues, queries
from workerd.store.base import Tx
from workerd.store.session import Row

MAX_NAMES = 1000
"""Distinct names of a status that are searched in the table of jobs."""
MAX_SIGNATURE_BYTES = 256 * 1024
"""A longer one was not written by a node, and counts as none."""


class HandlerRow(msgspec.Struct, kw_only=True):
    """A handler. `nodes`: the live nodes that have loaded it; `known`: whether any node ever had."""

    name: str
    known: bool
    signature: bytes | None = None
    nodes: list[str] = []
    seen_at: int | None = None
    paused_at: int | None = None
    paused_by: str | None = None
    pause_reason: str | None = None


def _ensure_row(tx: Tx, name: str) -> None:
    """Insert the handler's row if it does not exist."""
    # Reading first: an INSERT that finds the row would lock it.
    if tx.one("SELECT 1 FROM workerd_handlers WHERE name = %s", (name,)) is None:
        tx.execute(
            "INSERT INTO workerd_handlers (name) VALUES (%s)" + tx.dialect.keep_existing("name"), (name,)
        )


_REDACTING = '"redact":["'
"""What stands in a signature that says what is not shown."""


def seen(tx: Tx, name: str, signature: bytes | None, node: str) -> bool:
    """Record that `node` has loaded the handler; `signature`: JSON or None. Drops nodes that are gone.

    False if another transaction has the handler's row locked: nothing was recorded.
    """
    _ensure_row(tx, name)
    row = tx.one(f"SELECT nodes FROM workerd_handlers WHERE name = %s{tx.dialect.skip_locked}", (name,))
    if row is None:
        return False
    nodes = {node, *(_names(row[0]) & node_names(tx))}
    tx.execute(
        "UPDATE workerd_handlers SET signature = %s, nodes = %s, seen_at = %s WHERE name = %s",
        (
            None if signature is None else signature.decode(),
            msgspec.json.encode(sorted(nodes)).decode(),
            columns.at(tx.now),
            name,
        ),
    )
    return True


def unannounced(tx: Tx, signatures: Mapping[str, bytes | None], node: str) -> list[str]:
    """Those of the handlers that the store does not have, with this signature, as loaded by `node`."""
    announced = set()
    for name, signature, nodes in tx.query(
        "SELECT name, signature, nodes FROM workerd_handlers WHERE seen_at IS NOT NULL"
    ):
        handler = columns.lenient(name) or ""
        if node in _names(nodes) and signatures.get(handler, signature) == signature:
            announced.add(handler)
    return sorted(signatures.keys() - announced)


def withdraw(tx: Tx, node: str, served: Collection[str]) -> list[str]:
    """Record that `node` has none but the handlers `served` any more; returns those that it had.

    One that no node has is unknown from now on, as if none ever had it. Nodes that are gone do not count.
    """
    found = tx.query("SELECT name, nodes FROM workerd_handlers WHERE seen_at IS NOT NULL")
    had = [(columns.lenient(name) or "", _names(nodes)) for name, nodes in found]
    names = sorted(name for name, nodes in had if node in nodes and name not in served)
    withdrawn = _locked(tx, names, node)
    live = node_names(tx) if withdrawn else set()
    for name, nodes in withdrawn:
        left = sorted((nodes & live) - {node})
        # What is not to be shown of its jobs outlives its nodes.
        kept = f"CASE WHEN INSTR(signature, '{_REDACTING}') > 0 THEN signature END"
        sets = "nodes = %s" if left else f"nodes = %s, signature = {kept}, seen_at = NULL"
        tx.execute(
            f"UPDATE workerd_handlers SET {sets} WHERE name = %s", (msgspec.json.encode(left).decode(), name)
        )
    return sorted(name for name, _ in withdrawn)


def _locked(tx: Tx, names: Sequence[str], node: str) -> list[tuple[str, set[str]]]:
    """The nodes of each of these handlers that `node` still has: another may announce one in between."""
    found = []
    for name in names:
        row = tx.one(f"SELECT nodes FROM workerd_handlers WHERE name = %s{tx.dialect.row_lock}", (name,))
        nodes = _names(row[0]) if row is not None else set()
        if node in nodes:
            found.append((name, nodes))
    return found


def _names(text: bytes | None) -> set[str]:
    try:
        return set(msgspec.json.decode(text or b"[]", type=list[str]))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return set()


def node_names(tx: Tx) -> set[str]:
    """The names of all nodes that have a row."""
    return {columns.lenient(row[0]) or "" for row in tx.query("SELECT name FROM workerd_nodes")}


def known(tx: Tx) -> dict[str, bytes | None]:
    """The signatures, JSON or None, of all handlers that some node has loaded."""
    rows = tx.query(f"SELECT name, {_signature(tx)} FROM workerd_handlers WHERE seen_at IS NOT NULL")
    return {columns.lenient(name) or "": signature for name, signature in rows}


def redacting(tx: Tx) -> dict[str, bytes | None]:
    """The signatures that say what is not shown, of handlers that no node has any more, too."""
    rows = tx.query(
        f"SELECT name, {_signature(tx)} FROM workerd_handlers WHERE INSTR(signature, %s) > 0", (_REDACTING,)
    )
    return {columns.lenient(name) or "": signature for name, signature in rows}


def _signature(tx: Tx) -> str:
    return f"CASE WHEN {tx.dialect.byte_length('signature')} <= {MAX_SIGNATURE_BYTES} THEN signature END"


def _columns(tx: Tx) -> str:
    return f"name, {_signature(tx)}, nodes, seen_at, paused_at, paused_by, pause_reason"


def find(tx: Tx, name: str) -> HandlerRow | None:
    """One handler, None if the store does not know it."""
    row = tx.one(f"SELECT {_columns(tx)} FROM workerd_handlers WHERE name = %s", (name,))
    return None if row is None else _handler(row, node_names(tx))


def _handler(row: Row, live: set[str]) -> HandlerRow:
    name, signature, nodes, seen_at, paused_at, paused_by, reason = row
    return HandlerRow(
        name=columns.lenient(name) or "",
        known=seen_at is not None,
        signature=signature if seen_at is not None else None,
        nodes=sorted(_names(nodes) & live),
        seen_at=columns.lenient_time(seen_at),
        paused_at=None if paused_at is None else columns.time_or_zero(paused_at),
        paused_by=columns.lenient(paused_by),
        pause_reason=columns.lenient(reason),
    )


def list_(tx: Tx) -> list[HandlerRow]:
    """All handlers by name, including those that only exist as rows of jobs that no node can run.

    The rows that stand for runs of recurring workflows belong to no handler.
    """
    live = _live_nodes(tx)
    found = {
        h.name: h
        for h in (_handler(row, live) for row in tx.query(f"SELECT {_columns(tx)} FROM workerd_handlers"))
    }
    scheduled = names_of_schedules(tx)
    for name in names_of_jobs(tx):
        if name not in found and name not in scheduled:
            found[name] = HandlerRow(name=name, known=False)
    return [found[name] for name in sorted(found)]


def names_of_schedules(tx: Tx) -> set[str]:
    """The names of all schedules: of recurring handlers, and of recurring workflows."""
    return {columns.lenient(row[0]) or "" for row in tx.query("SELECT name FROM workerd_schedules")}


def _live_nodes(tx: Tx) -> set[str]:
    rows = tx.query("SELECT name FROM workerd_nodes WHERE lease_until > %s", (columns.at(tx.now),))
    return {columns.lenient(row[0]) or "" for row in rows}


def names_of_jobs(tx: Tx) -> set[str]:
    """The distinct handlers of all jobs: one index lookup for each and status, however many jobs."""
    names = set(queries.running_of(tx, queries.MAX_COUNT))
    for state in Status:
        if state is not Status.INPROGRESS:
            names.update(queries.holders(tx, state, MAX_NAMES))
    return {name for name in names if not group_queues.is_queue(name)}


def pause(tx: Tx, name: str, by: str, reason: str | None) -> None:
    """Stop all claims of the handler's jobs once this has committed.

    Every claim reads the handler's row with a share lock in its transaction, so this update waits for those
    in progress. If it was paused before, the time stays and the reason is replaced.
    """
    _ensure_row(tx, name)
    tx.execute(
        "UPDATE workerd_handlers SET paused_at = COALESCE(paused_at, %s), paused_by = %s, pause_reason = %s"
        " WHERE name = %s",
        (columns.at(tx.now), by[:191], reason, name),
    )


def resume(tx: Tx, name: str) -> bool:
    """Allow claims again; False if it was not paused. Raises NotFound if the handler is unknown."""
    row = tx.one(f"SELECT paused_at FROM workerd_handlers WHERE name = %s{tx.dialect.row_lock}", (name,))
    if row is None:
        raise NotFound(f"Handler {name!r} not found. `workerd handlers` lists existing handlers.")
    tx.execute(
        "UPDATE workerd_handlers SET paused_at = NULL, paused_by = NULL, pause_reason = NULL WHERE name = %s",
        (name,),
    )
    return row[0] is not None
