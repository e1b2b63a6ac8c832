"""Figures for scalers: jobs of each handler that are due, due later and running, how old, how many came."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from workerd import clock
from workerd.job import Status
from workerd.store import columns, group_queues, nodes, queries
from workerd.store.base import Tx
from workerd.store.nodes import HandlerFigures
from workerd.store.queries import MAX_PRIORITIES
from workerd.store.session import Row

MAX_COUNT = 1_000_000
"""Jobs of one handler in one status are counted up to here: some 0.6 s of a busy server."""
MAX_OVERDUE = 10_000
"""`scheduled` rows past their time, of which a living node leaves few, are looked at up to here."""
SPAN_S = 60
"""What rates are averaged over."""
MAX_PARTS = 300
"""Of one UNION; SQLite takes 500."""
_LOWEST = -(1 << 31) - 1


class HandlerStats(msgspec.Struct):
    """Jobs of one handler.

    oldest
        Since when the first due one is, store time; None without one.
    came, ended
        Jobs that became due for the first time, and that ended, within SPAN_S.
    workers
        Of the pools of living nodes.
    """

    due: int = 0
    scheduled: int = 0
    running: int = 0
    oldest: int | None = None
    came: int = 0
    ended: int = 0
    workers: int = 0

    def has_since(self, moment: int) -> None:
        """One of its jobs is due since this time."""
        self.oldest = moment if self.oldest is None else min(self.oldest, moment)


def by_handler(tx: Tx, names: Sequence[str]) -> dict[str, HandlerStats]:
    """The figures of these handlers, each from an index alone, in one statement for all of them.

    Of jobs that are no longer live the nodes know; they publish it every few seconds.
    """
    found = {name: HandlerStats() for name in names}
    since = columns.at(tx.now - SPAN_S * clock.SECOND) or ""
    _count_waiting(tx, found)
    _count_running(tx, found, since)
    _count_overdue(tx, found)
    priorities = _read_oldest(tx, found)
    _count_came(tx, found, priorities, since)
    for name, figures in of_nodes(tx).items():
        stats = found.get(name)
        if stats is not None:
            stats.workers, stats.ended = figures.workers, figures.ended
            stats.came += figures.came
    return found


def of_nodes(tx: Tx) -> dict[str, HandlerFigures]:
    """What living nodes publish of each handler, added up."""
    found: dict[str, HandlerFigures] = {}
    for node in nodes.list_(tx):
        if node.lease_until > tx.now:
            for name, figures in node.published.handlers.items():
                found[name] = found.get(name, HandlerFigures()) + figures
    return found


_COUNT = """SELECT {number} AS number, COUNT(*) AS jobs FROM
    (SELECT 1 FROM workerd_jobs {index} WHERE status = %s AND holder = %s LIMIT {most}) AS c"""
_COUNT_QUEUED = """SELECT {number} AS number, COUNT(*) AS jobs FROM
    (SELECT 1 FROM workerd_jobs {index} WHERE status = 'new' AND holder > %s AND holder < %s
    LIMIT {most}) AS c"""
_OLDEST = """SELECT {number} AS number, o.priority, o.run_at FROM
    (SELECT priority, run_at FROM workerd_jobs {index} WHERE status = 'new' AND holder = %s AND priority > %s
    ORDER BY priority, run_at LIMIT 1) AS o"""
_CAME = """SELECT {number} AS number, COUNT(*) AS jobs FROM
    (SELECT 1 FROM workerd_jobs {index} WHERE status = 'new' AND holder = %s AND priority = %s
    AND run_at >= %s AND attempt = 1 LIMIT {most}) AS c"""
# Their holders are nodes; there are no more of them than workers.
_RUNNING = """SELECT r.handler, COUNT(*), SUM(CASE WHEN r.run_at >= %s AND r.attempt = 1 THEN 1 ELSE 0 END)
    FROM (SELECT handler, run_at, attempt FROM workerd_jobs {index} WHERE status = 'inprogress'
    LIMIT {most}) AS r GROUP BY r.handler ORDER BY NULL"""
_OVERDUE = """SELECT handler, run_at FROM workerd_jobs {index}
    WHERE due_at <= %s AND status = 'scheduled' ORDER BY due_at LIMIT {most}"""
_FIELDS = {Status.NEW: "due", Status.SCHEDULED: "scheduled"}


def _each(tx: Tx, one: str, params: Sequence[tuple[object, ...]]) -> Iterator[tuple[int, Row]]:
    """The rows of `one` with each of the parameters: their number, and the other columns."""
    numbered = list(enumerate(params))
    for part in columns.chunks(numbered, MAX_PARTS):
        selects = [
            one.format(number=number, index=tx.dialect.hint("workerd_holder"), most=MAX_COUNT)
            for number, _ in part
        ]
        for row in tx.query(" UNION ALL ".join(selects), [value for _, values in part for value in values]):
            yield int(row[0]), row[1:]


def _count_waiting(tx: Tx, found: dict[str, HandlerStats]) -> None:
    keys = [(name, status) for name in found for status in _FIELDS]
    for number, (jobs,) in _each(tx, _COUNT, [(str(status), name) for name, status in keys]):
        name, status = keys[number]
        setattr(found[name], _FIELDS[status], int(jobs))
    names = list(found)
    for number, (jobs,) in _each(tx, _COUNT_QUEUED, [group_queues.bounds(name) for name in names]):
        found[names[number]].due += int(jobs)
        oldest = queries.oldest_new(tx, names[number]) if jobs else None
        if oldest is not None:
            found[names[number]].has_since(oldest)


def _count_overdue(tx: Tx, found: dict[str, HandlerStats]) -> None:
    """Rows whose time has come are due, also while no node lives that would make them `new`."""
    sql = _OVERDUE.format(index=tx.dialect.hint("workerd_scheduled"), most=MAX_OVERDUE)
    for handler, run_at in tx.query(sql, (columns.at(tx.now),)):
        stats = found.get(columns.lenient(handler) or "")
        if stats is not None:
            stats.due += 1
            stats.scheduled = max(0, stats.scheduled - 1)
            stats.has_since(columns.time_or_zero(run_at))


def _read_oldest(tx: Tx, found: dict[str, HandlerStats]) -> list[tuple[str, int]]:
    """The oldest `new` row of each handler; returns the handlers with the priorities that such rows have."""
    last = [(name, _LOWEST) for name, stats in found.items() if stats.due]
    pairs: list[tuple[str, int]] = []
    for _ in range(MAX_PRIORITIES):
        following = []
        for number, (priority, run_at) in _each(tx, _OLDEST, last):
            name = last[number][0]
            found[name].has_since(columns.time_or_zero(run_at))
            following.append((name, int(priority)))
        pairs += following
        last = following
    return pairs


def _count_came(tx: Tx, found: dict[str, HandlerStats], pairs: list[tuple[str, int]], since: str) -> None:
    for number, (jobs,) in _each(tx, _CAME, [(*pair, since) for pair in pairs]):
        found[pairs[number][0]].came += int(jobs)


def _count_running(tx: Tx, found: dict[str, HandlerStats], since: str) -> None:
    """With those of them that came within the span."""
    sql = _RUNNING.format(index=tx.dialect.hint("workerd_holder"), most=MAX_COUNT)
    for handler, running, came in tx.query(sql, (since,)):
        stats = found.get(columns.lenient(handler) or "")
        if stats is not None:
            stats.running, stats.came = int(running), stats.came + int(came)
