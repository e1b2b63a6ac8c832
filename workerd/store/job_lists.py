"""Lists of jobs, newest made or ended first; they read little of a table that is too big to be read whole.

No index has the time of creation or of the end. Each list reads ranges of the index `workerd_holder`, its
*branches*, in the order of `run_at`, and sorts the newest WINDOW_ROWS of each by the true time. That is exact
for a status (of a handler) with at most so many rows. Of one with more, older rows follow in the order in
which they became due; if more than WINDOW_ROWS of them become due in the future, those come last. Every
job has one place, so that pages repeat and omit none.

What no index has (`JobFilter.narrow`) is looked up for the rows of such a list, slice by slice. A page that
has looked at MAX_LOOKED_ROWS of them ends, with fewer rows than asked for or none, and `next` goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from workerd.clock import SECOND
from workerd.errors import InvalidValue
from workerd.job import AttemptRef
from workerd.job_filter import JobFilter
from workerd.store import columns, job_matches
from workerd.store.base import Tx
from workerd.store.columns import JobRow, Page, Select, cursor_text, jobs_by_key, read_cursor
from workerd.store.job_branches import Branch, branches
from workerd.store.job_matches import MADE, ShownMeta
from workerd.store.session import Row

WINDOW_ROWS = 150
"""Rows of a branch that are sorted by the time at which they were made or ended."""
MANY_BRANCHES = 20
LEAST_WINDOW_ROWS = 60
"""The same if there are more than so many branches: their rows are read one by one."""

EARLY_US = 3600 * SECOND
"""In a branch of more rows, `since` misses a job whose due time, or the time in whose UUIDv7, is longer than
this before it was made: rows are left out by the index alone."""

SLICE_ROWS = 500
MAX_LOOKED_ROWS = 5_000
"""Rows that one page of a list with further conditions looks at, so many at a time."""


_ENDED_OR_MADE = f"COALESCE(j.finished_at, j.ingested_at, {MADE})"


class _Position(NamedTuple):
    """The last row of a page. `boundary`: see `_Branch`; `later`: it is among those that come last."""

    key: int
    id: bytes
    boundary: int
    later: bool

    def text(self) -> str:
        return f"{'later.' if self.later else ''}{cursor_text(self.key, self.id)}.{self.boundary}"


class _Sized(NamedTuple):
    """A branch and how far its newest rows are sorted by their true time.

    `boundary`: the `run_at` before which they are not, 0 if all are. `many_later`: whether more than
    WINDOW_ROWS rows become due in the future.
    """

    branch: Branch
    boundary: int = 0
    many_later: bool = False


def list_(
    tx: Tx, wanted: JobFilter, *, limit: int = 50, after: str | None = None, shown: ShownMeta | None = None
) -> Page[JobRow]:
    """Jobs without payloads, fewer than `limit` if they are large. `after`: the `next` of the previous page.

    `shown`: see `job_matches.fitting`. Raises InvalidValue for another cursor.
    """
    found = _found(tx, wanted, limit, after, shown)
    refs = columns.fitting(tx, found.refs)
    rows = jobs_by_key(tx, refs)
    there = [rows[ref] for ref in refs if ref in rows]  # without those removed since
    return Page(there, found.behind(len(refs)))


class _Found(NamedTuple):
    """The attempts of a page, the cursor behind each, and the one behind all that was read."""

    refs: list[AttemptRef]
    cursors: list[str | None]
    next: str | None

    def behind(self, shown: int) -> str | None:
        """The `next` of the page if it has the first `shown` of them."""
        return self.next if shown == len(self.refs) else self.cursors[shown - 1]


def _found(tx: Tx, wanted: JobFilter, limit: int, after: str | None, shown: ShownMeta | None) -> _Found:
    refs: list[AttemptRef] = []
    cursors: list[str | None] = []
    further = wanted._replace(since=None, until=None)  # the list is within these times
    size = SLICE_ROWS if wanted.narrow else limit
    for _ in range(max(1, MAX_LOOKED_ROWS // size)):
        listed, boundary, first_later = _listed(tx, wanted, size, after)
        part = [AttemptRef(row[1], row[2]) for row in listed[:size]]
        fits = set(part)
        if wanted.narrow:
            fits = job_matches.fitting(tx, part, further, shown)
        for n, ref in enumerate(part, 1):
            if ref in fits:
                refs.append(ref)
                cursors.append(_next(listed, n, boundary, first_later))
                if len(refs) == limit:
                    return _Found(refs, cursors, cursors[-1])
        after = _next(listed, len(part), boundary, first_later)
        if after is None:
            break
    return _Found(refs, cursors, after)


def _next(listed: Sequence[Row], shown: int, boundary: int, first_later: int) -> str | None:
    """The cursor behind the first `shown` of the rows that were found; None if there are no more."""
    if len(listed) <= shown:
        return None
    last = listed[shown - 1]
    return _Position(columns.time_or_zero(last[0]), last[1], boundary, shown > first_later).text()


def _listed(tx: Tx, wanted: JobFilter, limit: int, after: str | None) -> tuple[list[Row], int, int]:
    """More than `limit` rows in their order, unless there are fewer: time, id and attempt of each.

    Then the boundary, and the index of the first of those that come last.
    """
    position = _read(after) if after is not None else None
    sized = _sized(tx, branches(tx, wanted))
    boundary = max((branch.boundary for branch in sized), default=0)
    if position is not None and position.boundary:
        boundary = position.boundary
    # Rows that are not shown are not fetched; to sort the few of few branches once more takes longer.
    end = f" ORDER BY listed_at DESC, id DESC LIMIT {limit + 1}" if len(sized) > MANY_BRANCHES else ""
    found: list[Row] = []
    if position is None or not position.later:
        selects = [one for b in sized for one in _rows(tx, b, wanted, boundary, position, limit)]
        found = [row for _, row in columns.union(tx, selects, end)]
        # In SQLite, times may have fewer digits.
        found.sort(key=lambda row: (columns.time_or_zero(row[0]), row[1]), reverse=True)
    first_later = len(found)
    if len(found) <= limit:
        position = position if position is not None and position.later else None
        selects = [one for b in sized for one in _later_rows(tx, b, wanted, position, limit)]
        later = [row for _, row in columns.union(tx, selects, end)]
        later.sort(key=lambda row: (columns.time_or_zero(row[0]), row[1]), reverse=True)
        found += later
    return found, boundary, first_later


def _read(after: str) -> _Position:
    later = after.startswith("later.")
    moment, _, rest = after.removeprefix("later.").partition(".")
    ident, _, boundary = rest.partition(".")
    key, id_ = read_cursor(f"{moment}.{ident}")
    if boundary and not (boundary.isascii() and boundary.isdigit() and len(boundary) <= 18):
        raise InvalidValue("expected `after` to be the `next` of a page before it")
    return _Position(key, id_, int(boundary or 0), later)


def _sized(tx: Tx, found: Sequence[Branch]) -> list[_Sized]:
    """The branches with what follows from their numbers of rows."""
    selects = []
    ordered = [branch for branch in found if branch.in_order]
    # Of many branches less is sorted, but always more than a page.
    window = WINDOW_ROWS if len(ordered) <= MANY_BRANCHES else min(WINDOW_ROWS, LEAST_WINDOW_ROWS)
    for branch in ordered:
        sql = (
            f"SELECT j.run_at FROM workerd_jobs AS j {tx.dialect.hint(branch.index_name)}"
            f" WHERE {branch.where} AND j.run_at {{}} %s ORDER BY j.run_at DESC LIMIT 1 OFFSET %s"
        )
        params = [*branch.params, columns.at(tx.now), window]
        selects += [(sql.format("<="), params), (sql.format(">"), params)]
    sizes = {number: row[0] for number, row in columns.union(tx, selects)}
    sized = [
        _Sized(branch, columns.time_or_zero(sizes[2 * n]) if 2 * n in sizes else 0, 2 * n + 1 in sizes)
        for n, branch in enumerate(ordered)
    ]
    return [*sized, *(_Sized(branch) for branch in found if not branch.in_order)]


# -- rows


def _rows(
    tx: Tx, one: _Sized, wanted: JobFilter, boundary: int, position: _Position | None, limit: int
) -> list[Select]:
    """To select time, id and attempt of the branch's next rows, without those that come last."""
    time = tx.dialect.full_time(_ENDED_OR_MADE if one.branch.ended else MADE)
    bounds = [("j.run_at <= %s", tx.now)] if one.many_later else []
    if not one.boundary:
        return [_query(tx, one, wanted, time, bounds, position, limit)]
    rows = [_query(tx, one, wanted, time, [*bounds, ("j.run_at >= %s", boundary)], position, limit)]
    # One upper bound for each range: SQLite would use but one of two.
    if position is None or position.key >= boundary:
        rows.append(_query(tx, one, wanted, "j.run_at", [("j.run_at < %s", boundary)], None, limit))
    else:
        rows.append(_query(tx, one, wanted, "j.run_at", [], position, limit))
    return rows


def _later_rows(
    tx: Tx, one: _Sized, wanted: JobFilter, position: _Position | None, limit: int
) -> list[Select]:
    """To select the branch's next rows of those that come last."""
    if not one.many_later:
        return []
    return [_query(tx, one, wanted, "j.run_at", [("j.run_at > %s", tx.now)], position, limit, True)]


def _query(
    tx: Tx,
    one: _Sized,
    wanted: JobFilter,
    time: str,
    bounds: Sequence[tuple[str, int]],
    position: _Position | None,
    limit: int,
    later: bool = False,
) -> Select:
    bounds = [*bounds, *_made_bounds(one, wanted)]
    where = [one.branch.where, *(condition for condition, _ in bounds)]
    params = [*one.branch.params, *(columns.at(at) for _, at in bounds)]
    if position is not None:
        at = columns.at(position.key)
        where.append(f"{time} <= %s AND ({time} < %s OR j.id < %s)")
        params += [at, at, position.id]
    rows = f"workerd_jobs AS j {tx.dialect.hint(one.branch.index_name)}"
    if later and wanted.since is not None:
        # The index alone leaves out nearly all: reading 100,000 rows takes five times as long.
        young = _young_id(wanted.since - EARLY_US)
        rows = (
            f"(SELECT j.id, j.attempt FROM {rows} WHERE {one.branch.where} AND {young})"
            " AS i JOIN workerd_jobs AS j ON j.id = i.id AND j.attempt = i.attempt"
        )
        params = [*one.branch.params, *params]
    return (
        f"SELECT {time} AS listed_at, j.id, j.attempt FROM {rows} WHERE {' AND '.join(where)}"
        " ORDER BY listed_at DESC, j.id DESC LIMIT %s",
        [*params, limit + 1],
    )


def _made_bounds(one: _Sized, wanted: JobFilter) -> list[tuple[str, int]]:
    bounds = []
    if wanted.since is not None:
        bounds.append((f"{MADE} >= %s", wanted.since))
        if one.boundary or one.many_later:
            bounds.append(("j.run_at >= %s", max(0, wanted.since - EARLY_US)))
    if wanted.until is not None:
        bounds.append((f"{MADE} < %s", wanted.until))
    return bounds


def _young_id(us: int) -> str:
    """Whether an id may have been made since that time: it is no UUIDv7, or one that is as young."""
    oldest = (max(0, us) // 1000).to_bytes(6, "big") + bytes(10)
    return f"(j.id >= x'{oldest.hex()}' OR SUBSTR(HEX(j.id), 13, 1) <> '7')"
