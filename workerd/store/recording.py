"""The statement that ends attempts: one for a whole batch where the engine can, and what took effect.

Law 1: a row is only touched by a statement that names its id, attempt, incarnation and `claimed_at`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

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

    read: Callable[[Ended], Any]
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


def _at_once(tx: Tx, batch: Sequence[Ended], ingested_at: int) -> list[Ended]:
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


def _derived(batch: Sequence[Ended], columns: dict[str, _Column]) -> tuple[str, dict[str, str]]:
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


def _is_long(outcome: Outcome) -> bool:
    payload, stack = outcome.payload, outcome.stack
    return (payload is not None and len(payload) > LONG) or (stack is not None and len(stack) > LONG)


def _write_long(tx: Tx, outcome: Outcome) -> None:
    both = (("payload", outcome.payload), ("stack", outcome.stack))
    long = {name: value for name, value in both if value is not None and len(value) > LONG}
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
