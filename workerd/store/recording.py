"""The statement that ends attempts: one for a whole batch where the engine can, and what took effect.

Law 1: a row is only touched by a statement that names its id, attempt, incarnation and `claimed_at`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from workerd import clock
from workerd.outcome import Outcome
from workerd.store import dialect, values
from workerd.store.connection import Tx
from workerd.store.literals import literal

LONG = 4096
"""Bytes of payload or stack that are written by a statement of their own: in the batch's derived table
they would make the server put it on disk."""


class Ended(msgspec.Struct, frozen=True, gc=False):
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


def ready(outcome: Outcome, node_id: bytes, now: int) -> Ended:
    """Keep claimed <= started <= finished <= ingested (law 8), whatever the clocks said."""
    claimed = outcome.claimed_at
    started = outcome.started_at
    if started is not None:
        started = max(claimed, min(started, now))
    finished = now if outcome.finished_at is None else min(outcome.finished_at, now)
    return Ended(outcome, outcome.node_id or node_id, started, max(finished, started or claimed))


def record(tx: Tx, batch: Sequence[Ended], ingested_at: int) -> list[Ended]:
    """Close these attempts; those whose closing took effect. Locks: job rows, by (id, attempt)."""
    ordered = sorted(batch, key=lambda e: e.outcome.key)
    if not ordered:
        return []
    if tx.engine == "sqlite":
        return _one_by_one(tx, ordered, ingested_at)
    return _at_once(tx, ordered, ingested_at)


# -- MySQL: UPDATE … JOIN (SELECT … UNION ALL …) -----------------------------------------------

_Literals = Callable[[Sequence[Ended]], list[str]]


def _time(us: int | None) -> str:
    # A typed literal: as text the comparison with a DATETIME would be one of strings.
    return "NULL" if us is None else f"TIMESTAMP'{clock.to_text(us)}'"


def _times(read: Callable[[Ended], int | None]) -> _Literals:
    return lambda batch: [_time(read(e)) for e in batch]


def _plain(read: Callable[[Outcome], object]) -> _Literals:
    return lambda batch: [literal(read(e.outcome)) for e in batch]


def _short(read: Callable[[Outcome], bytes | str | None]) -> _Literals:
    return lambda batch: [_unless_long(read(e.outcome)) for e in batch]


def _unless_long(value: bytes | str | None) -> str:
    return "NULL" if value is None or len(value) > LONG else literal(value)


_SET: dict[str, _Literals] = {
    "status": _plain(lambda o: o.status),
    "reason": _plain(lambda o: o.reason),
    "success": _plain(lambda o: o.success),
    "payload": _short(lambda o: o.payload),
    "payload_type": _plain(lambda o: o.payload_type),
    "error": _plain(lambda o: o.error),
    "stack": _short(lambda o: o.stack),
    "exit_signal": _plain(lambda o: o.exit_signal),
    "exit_code": _plain(lambda o: o.exit_code),
    "started_at": _times(lambda e: e.started_at),
    "finished_at": _times(lambda e: e.finished_at),
    "run_us": _plain(lambda o: o.usage.run_us),
    "cpu_us": _plain(lambda o: o.usage.cpu_us),
    "max_rss_kib": _plain(lambda o: o.usage.max_rss_kib),
    "pid": _plain(lambda o: o.pid),
}
_KEPT: dict[str, _Literals] = {  # what is not told stays as it was
    "progress": _plain(lambda o: o.progress),
    "note": _plain(lambda o: o.note),
}
_NAMED: dict[str, _Literals] = {
    "id": lambda batch: [f"x'{e.outcome.id.hex()}'" for e in batch],
    "attempt": lambda batch: [str(int(e.outcome.attempt)) for e in batch],
    "claimed_at": _times(lambda e: e.outcome.claimed_at),
    "node_id": lambda batch: [f"x'{e.node_id.hex()}'" for e in batch],
}


def _at_once(tx: Tx, batch: Sequence[Ended], ingested_at: int) -> list[Ended]:
    derived, named = _derived({name: make(batch) for name, make in (_NAMED | _SET | _KEPT).items()})
    sets = [f"j.{name} = {named[name]}" for name in _SET]
    sets += [f"j.{name} = COALESCE({named[name]}, j.{name})" for name in _KEPT if named[name] != "NULL"]
    sets.append(f"j.ingested_at = {_time(ingested_at)}")
    changed = tx.execute(
        f"UPDATE ({derived}) AS o STRAIGHT_JOIN workerd_jobs AS j FORCE INDEX (PRIMARY)"
        f" ON j.id = o.id AND j.attempt = o.attempt SET {', '.join(sets)}"
        f" WHERE j.status = 'inprogress' AND j.node_id = {named['node_id']}"
        f" AND j.claimed_at = {named['claimed_at']}"
    )
    effective = list(batch) if changed == len(batch) else _read_back(tx, batch, ingested_at)
    for ended in effective:
        _write_long(tx, ended.outcome)
    return effective


def _derived(columns: dict[str, list[str]]) -> tuple[str, dict[str, str]]:
    """The derived table, and how to name each column; one that is the same in all rows is a constant."""
    named: dict[str, str] = {}
    differing: list[str] = []
    for name, literals in columns.items():
        if name in ("id", "attempt") or literals.count(literals[0]) != len(literals):
            differing.append(name)
            named[name] = f"o.{name}"
        else:
            named[name] = literals[0]
    rows = list(map(", ".join, zip(*(columns[name] for name in differing), strict=True)))
    rows[0] = ", ".join(f"{columns[name][0]} AS {name}" for name in differing)
    return "SELECT " + " UNION ALL SELECT ".join(rows), named


def _read_back(tx: Tx, batch: Sequence[Ended], ingested_at: int) -> list[Ended]:
    """Those that carry this transaction's `ingested_at`, each once."""
    wanted = {e.identity: e for e in reversed(batch)}
    effective = []
    keys = dialect.keys({e.outcome.key for e in batch})
    for job_id, attempt, claimed_at, node_id in tx.query(
        f"SELECT id, attempt, claimed_at, node_id FROM workerd_jobs FORCE INDEX (PRIMARY)"
        f" WHERE ({keys}) AND ingested_at = {_time(ingested_at)}"
    ):
        ended = wanted.get((job_id, attempt, values.time(claimed_at), node_id))
        if ended is not None:
            effective.append(ended)
    return sorted(effective, key=lambda e: e.outcome.key)


def _write_long(tx: Tx, outcome: Outcome) -> None:
    long = {
        name: value
        for name, value in (("payload", outcome.payload), ("stack", outcome.stack))
        if value is not None and len(value) > LONG
    }
    if long:
        sets = ", ".join(f"{name} = %s" for name in long)
        tx.execute(
            f"UPDATE workerd_jobs SET {sets} WHERE id = %s AND attempt = %s", [*long.values(), *outcome.key]
        )


# -- SQLite: a statement costs no round trip ---------------------------------------------------

_SQLITE = """UPDATE workerd_jobs SET status = %s, reason = %s, success = %s, payload = %s, payload_type = %s,
    error = %s, stack = %s, exit_signal = %s, exit_code = %s, started_at = %s, finished_at = %s, run_us = %s,
    cpu_us = %s, max_rss_kib = %s, pid = %s, progress = COALESCE(%s, progress), note = COALESCE(%s, note),
    ingested_at = %s
    WHERE id = %s AND attempt = %s AND status = 'inprogress' AND node_id = %s AND claimed_at = %s"""


def _one_by_one(tx: Tx, batch: Iterable[Ended], ingested_at: int) -> list[Ended]:
    now = clock.to_text(ingested_at)
    return [e for e in batch if tx.execute(_SQLITE, _parameters(e, now))]


def _parameters(e: Ended, now: str) -> tuple[Any, ...]:
    o = e.outcome
    return (
        str(o.status), o.reason and str(o.reason), o.success, o.payload, o.payload_type,
        o.error, o.stack, o.exit_signal, o.exit_code, values.at(e.started_at), values.at(e.finished_at),
        o.usage.run_us, o.usage.cpu_us, o.usage.max_rss_kib, o.pid, o.progress, o.note, now,
        o.id, o.attempt, e.node_id, clock.to_text(o.claimed_at),
    )  # fmt: skip


# -- giving back -------------------------------------------------------------------------------

_RELEASE = """UPDATE workerd_jobs SET status = 'new', node_id = NULL, node = NULL, pid = NULL,
    claimed_at = NULL, started_at = NULL, progress = NULL, note = NULL WHERE """


def give_back(tx: Tx, batch: Sequence[Ended]) -> list[Ended]:
    """Make these attempts `new` again; those for which that took effect. Locks: job rows, as `record`."""
    if not batch:
        return []
    wanted = {e.identity: e for e in batch}
    keys = dialect.keys({e.outcome.key for e in batch})
    held = []
    for job_id, attempt, claimed_at, node_id in tx.query(
        f"SELECT id, attempt, claimed_at, node_id FROM workerd_jobs"
        f" WHERE ({keys}) AND status = 'inprogress'{dialect.of(tx).lock}"
    ):
        ended = wanted.get((job_id, attempt, values.time_or_none(claimed_at) or 0, node_id))
        if ended is not None:
            held.append(ended)
    if held:
        tx.execute(_RELEASE + dialect.keys([e.outcome.key for e in held]))
    return held
