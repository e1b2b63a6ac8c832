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
from workerd.store.base import Tx
from workerd.store.job_branches import Branch
from workerd.store.job_lists import EARLY_US
from workerd.store.job_matches import ShownMeta
from workerd.store.session import Row

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
    """Id, attempt and `run_at` of the next rows; a branch has no two of one job."""
    if behind is None:
        return _query(tx, branch, "", [], SLICE_ROWS)
    job_id, _, run_at = behind
    if not branch.in_order:
        return _query(tx, branch, "AND j.id < %s", [job_id], SLICE_ROWS)
    # As text: SQLite compares it, and has it with fewer digits where another program wrote it.
    moment = columns.text(run_at)
    rows = _query(tx, branch, "AND j.run_at = %s AND j.id < %s", [moment, job_id], SLICE_ROWS)
    if len(rows) < SLICE_ROWS:
        rows = [*rows, *_query(tx, branch, "AND j.run_at < %s", [moment], SLICE_ROWS - len(rows))]
    return rows


def _query(tx: Tx, branch: Branch, condition: str, params: list[object], limit: int) -> list[Row]:
    order = "j.run_at DESC, j.id DESC" if branch.in_order else "j.id DESC"
    return tx.query(
        f"SELECT j.id, j.attempt, j.run_at FROM workerd_jobs AS j {tx.dialect.hint(branch.index_name)}"
        f" WHERE {branch.where} {condition} ORDER BY {order} LIMIT %s",
        [*branch.params, *params, limit],
    )


def _too_old(last: Row, branch: Branch, wanted: JobFilter) -> bool:
    """Whether what follows was made before `since`; as in lists, one due long before that is missed."""
    if wanted.since is None or not branch.in_order:
        return False
    return columns.time_or_zero(last[2]) < wanted.since - EARLY_US
