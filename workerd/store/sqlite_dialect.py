"""The SQL of SQLite: one writer at a time, so no row locks; a statement costs no round trip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workerd import clock
from workerd.outcome import ClosedAttempt, Outcome
from workerd.store import columns
from workerd.store.base import Tx
from workerd.store.columns import INSERT_NEXT, MAY_GO_ON, next_due
from workerd.store.dialect import Dialect
from workerd.store.session import LastStatement, Params

_CLOSE = """UPDATE workerd_jobs SET status = %s, reason = %s, success = %s, payload = %s, payload_type = %s,
    error = %s, stack = %s, exit_signal = %s, exit_code = %s, started_at = %s, finished_at = %s, run_us = %s,
    cpu_us = %s, max_rss_kib = %s, pid = %s, progress = COALESCE(%s, progress), note = COALESCE(%s, note),
    error_class = %s, fingerprint = %s, ingested_at = %s
    WHERE id = %s AND attempt = %s AND status = 'inprogress' AND node_id = %s AND claimed_at = %s"""


def _close_each(tx: Tx, batch: Sequence[ClosedAttempt], ingested_at: int) -> list[ClosedAttempt]:
    now = clock.to_text(ingested_at)
    claimed_at = {at: clock.to_text(at) for at in {e.outcome.claimed_at for e in batch}}
    rows = [_parameters(e, now, claimed_at[e.outcome.claimed_at]) for e in batch]
    changed = tx.execute_each(_CLOSE, rows)
    return list(batch) if changed == len(batch) else columns.closed_at(tx, batch, ingested_at)


def _parameters(e: ClosedAttempt, now: str, claimed_at: str) -> tuple[Any, ...]:
    o = e.outcome
    return (
        str(o.status), o.reason and str(o.reason), o.success, o.payload, o.payload_type,
        o.error, o.stack, o.exit_signal, o.exit_code,
        columns.at(e.started_at), columns.at(e.finished_at), o.usage.run_us, o.usage.cpu_us,
        o.usage.max_rss_kib, o.pid, o.progress, o.note, o.error_class, o.fingerprint, now,
        o.id, o.attempt, e.node_id, claimed_at,
    )  # fmt: skip


def _insert_next(tx: Tx, retried: Sequence[Outcome], now: int) -> int:
    sql = INSERT_NEXT.format(
        **dict.fromkeys(("status", "run_at", "created_at", "failures", "crashes", "losses"), "%s"),
        state="j.state",
        source=f"workerd_jobs AS j WHERE j.id = %s AND j.attempt = %s AND {MAY_GO_ON}",
        keep=SQLITE.keep_existing("id"),
    )
    inserted = 0
    for o in retried:
        assert o.next is not None
        counts = (o.next.failures, o.next.crashes, o.next.losses)
        inserted += tx.execute(sql, (*next_due(o, now), clock.to_text(now), *counts, o.id, o.attempt))
    return inserted


class _SQLite(Dialect):
    name = "sqlite"
    share_lock = ""
    row_lock = ""
    skip_locked = ""
    clock_column = "NULL"  # the session's clock is this machine's
    null_safe_equal = "IS"
    union_of_bits = "SUM"  # of different ones
    has_quick_statements = True  # it compiles one that names its rows anew, in 0.4 ms and 3 µs a row
    index_ends_with_id = False  # but with the number of the row; it has no dead entries
    defaults_are_exact = False  # CURRENT times of SQLite have milliseconds
    # As the partial index says it, or it would not be used.
    live_key_condition = "handler = %s AND unique_key = %s AND status IN ('scheduled','new','inprogress')"
    live_keys_condition = (
        "handler = %s AND unique_key >= %s AND unique_key < %s AND status IN ('scheduled','new','inprogress')"
    )
    holds_given_key = (
        "h.handler = f.handler AND h.unique_key = f.given_key"
        " AND h.status IN ('scheduled','new','inprogress')"
    )
    ignores_end_spaces = False
    # Beside a condition on the status it would go through all rows of that status: it has no statistics.
    by_key = "INDEXED BY sqlite_autoindex_workerd_jobs_1"
    table_exists = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = %s"

    def hint(self, index: str) -> str:
        return f"INDEXED BY {index}"

    def byte_length(self, column: str) -> str:
        return f"LENGTH(CAST({column} AS BLOB))"

    def sent_bytes(self, text: bytes) -> int:
        return len(text)

    def full_time(self, time: str) -> str:
        # Text of equal length compares as times do.
        zeros = f"CASE WHEN INSTR({time}, '.') THEN '000000' ELSE '.000000' END"
        return f"SUBSTR({time} || {zeros}, 1, 26)"

    def keep_existing(self, column: str) -> str:
        return " ON CONFLICT DO NOTHING"

    def update_existing(self, key: str, updates: Mapping[str, str]) -> str:
        sets = ", ".join(f"{name} = {value}" for name, value in updates.items())
        return f" ON CONFLICT ({key}) DO UPDATE SET {sets.replace('{new.', 'excluded.').replace('}', '')}"

    def insert_columns(self, tx: Tx, into: str, values: Sequence[Params], end: str) -> int:
        marks = ", ".join(["%s"] * len(values))
        return tx.execute_each(f"INSERT INTO {into} VALUES ({marks}){end}", list(zip(*values, strict=True)))

    def delete_by_key(self, table: str, where: str) -> str:
        return f"DELETE FROM {table} WHERE {where}"

    def update_last(
        self, tx: Tx, sets: str, params: Params, condition: str, rows: Sequence[tuple[bytes, int]]
    ) -> None:
        # Row by row, see `has_quick_statements`.
        sql = f"UPDATE workerd_jobs SET {sets} WHERE id = %s AND attempt = %s AND {condition}"
        changed = tx.execute_each(sql, [(*params, *row) for row in rows])
        LastStatement(sql, (), len(rows)).check(changed)

    def close(self, tx: Tx, batch: Sequence[ClosedAttempt], ingested_at: int) -> list[ClosedAttempt]:
        return _close_each(tx, batch, ingested_at)

    def insert_next(self, tx: Tx, retried: Sequence[Outcome], now: int) -> int:
        return _insert_next(tx, retried, now)


SQLITE = _SQLite()
