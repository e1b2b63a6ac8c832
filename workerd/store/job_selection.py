"""Which jobs a filter means, newest due first, a slice of rows at a time: for acts on many jobs.

Lists show the newest first by the time of creation or end, for which they sort. Here each branch is read in
the order of its index, so that 100,000 rows are read once, and none is read twice when it changes meanwhile:
what ends later is due later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from workerd.job import AttemptRef
from workerd.job_filter import JobFilter
from workerd.store import columns, job_matches
from workerd.store.base import Row, Tx
from workerd.store.job_branches import Branch
from workerd.store.job_lists import EARLY_US
from workerd.store.job_matches import ShownMeta

SLICE_ROWS = 5_000
"""Rows that one call looks at."""

Behind = tuple[object, ...]
"""The last row of a slice: what the branch is ordered by."""


class Slice(NamedTuple):
    """Those of a slice of rows that fit; `behind`: where the next begins, None at the end of the branch."""

    refs: list[AttemptRef]
    behind: Behind | None


def read(tx: Tx, branch: Branch, wanted: JobFilter, behind: Behind | None, shown: ShownMeta | None) -> Slice:
    """The next slice of a branch. `shown`: see `job_matches.fitting`."""
    rows = _rows(tx, branch, behind)
    refs = [AttemptRef(row[0], row[1]) for row in rows]
    if wanted.narrow or wanted.since is not None or wanted.until is not None:
        fits = job_matches.fitting(tx, refs, wanted, shown)
        refs = [ref for ref in refs if ref in fits]
    last = rows[-1] if len(rows) == SLICE_ROWS else None
    if last is None or _too_old(last, branch, wanted):
        return Slice(refs, None)
    return Slice(refs, last)


def _rows(tx: Tx, branch: Branch, behind: Behind | None) -> Sequence[Row]:
    """Id, attempt and `run_at` of the next rows."""
    order = ("run_at", "id", "attempt") if branch.in_order else ("id", "attempt")
    where, params = branch.where, list(branch.params)
    if behind is not None:
        job_id, attempt, run_at = behind
        # As text: SQLite compares it, and has it with fewer digits where another program wrote it.
        after = {"run_at": columns.text(run_at), "id": job_id, "attempt": attempt}
        condition, values = _below([(f"j.{name}", after[name]) for name in order])
        where, params = f"{where} AND {condition}", [*params, *values]
    by = ", ".join(f"j.{name} DESC" for name in order)
    return tx.query(
        f"SELECT j.id, j.attempt, j.run_at FROM workerd_jobs AS j {tx.dialect.hint(branch.index_name)}"
        f" WHERE {where} ORDER BY {by} LIMIT %s",
        [*params, SLICE_ROWS],
    )


def _below(after: Sequence[tuple[str, object]]) -> tuple[str, list[object]]:
    """A condition for the rows that follow in descending order; its first part bounds the range to read."""
    (first, value), *rest = after
    if not rest:
        return f"{first} < %s", [value]
    condition, params = _below(rest)
    return f"{first} <= %s AND ({first} < %s OR ({condition}))", [value, value, *params]


def _too_old(last: Row, branch: Branch, wanted: JobFilter) -> bool:
    """Whether what follows was made before `since`; as in lists, one due long before that is missed."""
    if wanted.since is None or not branch.in_order:
        return False
    return columns.time_or_zero(last[2]) < wanted.since - EARLY_US
