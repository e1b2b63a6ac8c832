"""Waiting jobs that stand in the queue of their group, because it is full, held, or not its turn.

A job is enqueued into the one queue of its handler. A claim that finds it and may not start it puts it into
its group's queue: the index on `holder` then has it there, so that it is not found again until its group has
room, however many wait. `queue` is the group's name in that index: hashed, since handler and group together
are too long.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from workerd.fairness import Waiting
from workerd.job import AttemptRef
from workerd.store import columns
from workerd.store.base import Tx
from workerd.store.columns import chunks
from workerd.store.session import Row

MAX_SCANNED = 500
"""Groups that one scan finds."""
STEP_ROWS = 200
"""Entries of the index that one of its statements reads."""
MAX_STEPS = 20
"""Statements of one scan: one for each large group, one for many small ones."""
MANY_PARKED = 20
"""Jobs of one group for which a statement of their own is cheaper than naming the queue of each."""
MAX_PROBED = 200
"""Groups whose first rows one statement reads."""


class QueueScan(NamedTuple):
    """Groups with a queue, with their first jobs; `cursor`: where the next scan goes on, None at the end."""

    heads: dict[str, Waiting]
    cursor: str | None


QUEUES = "\U0010ffff"
"""How the names of all queues begin: behind the names of all handlers."""


def is_queue(holder: str) -> bool:
    """Whether this value of the column `holder` is the name of a queue, not of a handler."""
    return holder.startswith(QUEUES)


@lru_cache(maxsize=4096)
def prefix(handler: str) -> str:
    """How the names of all queues of a handler begin."""
    return QUEUES + hashlib.sha256(handler.encode()).hexdigest()[:16]


@lru_cache(maxsize=65536)
def name(handler: str, group: str) -> str:
    """The name of a group's queue."""
    return prefix(handler) + hashlib.sha256(group.encode()).hexdigest()[:32]


def bounds(handler: str) -> tuple[str, str]:
    """Between which the names of all queues of a handler are."""
    begin = prefix(handler)
    return begin, begin + "g"  # behind every hexadecimal digit


def park(tx: Tx, handler: str, jobs: Mapping[AttemptRef, str]) -> None:
    """Put these jobs, whose rows are locked, into the queues of these groups."""
    by_group: defaultdict[str, list[AttemptRef]] = defaultdict(list)
    for ref, group in jobs.items():
        by_group[group].append(ref)
    many = {group: refs for group, refs in by_group.items() if len(refs) > MANY_PARKED}
    for group, refs in many.items():
        for part in chunks(refs):
            sql = f"UPDATE workerd_jobs SET queue = %s WHERE {columns.keys(part)}"
            tx.execute(sql, [name(handler, group)])
    others = [(ref, name(handler, group)) for ref, group in jobs.items() if group not in many]
    _write(tx, "queue", others)


def write_groups(tx: Tx, groups: Mapping[AttemptRef, str]) -> None:
    """Write the groups of these attempts, whose rows are locked."""
    _write(tx, "group_key", list(groups.items()))


def _write(tx: Tx, column: str, values: Sequence[tuple[AttemptRef, str]]) -> None:
    for part in chunks(values):
        cases = " ".join([f"WHEN x'{ref.id.hex()}' THEN %s" for ref, _ in part])
        tx.execute(
            f"UPDATE workerd_jobs SET {column} = CASE id {cases} END"
            f" WHERE {columns.keys([ref for ref, _ in part])}",
            [value for _, value in part],
        )


_FIRST = """SELECT * FROM (SELECT {number} AS number, id, attempt, priority, run_at FROM workerd_jobs {index}
    WHERE status = 'new' AND holder = %s ORDER BY priority, run_at LIMIT %s) AS q{number}"""


def first(tx: Tx, handler: str, wanted: Mapping[str, int]) -> dict[str, list[Waiting]]:
    """The first jobs in the queues of these groups, not locked: at most so many of each."""
    found: dict[str, list[Waiting]] = {group: [] for group in wanted}
    index = tx.dialect.hint("workerd_holder")
    for part in chunks(list(wanted), MAX_PROBED):
        sql = " UNION ALL ".join([_FIRST.format(number=n, index=index) for n in range(len(part))])
        params = [value for group in part for value in (name(handler, group), wanted[group])]
        for row in tx.query(sql, params):
            found[part[int(row[0])]].append(waiting(row[1:]))
    return {group: sorted(queue) for group, queue in found.items()}


def waiting(row: Row) -> Waiting:
    """A row selected as id, attempt, priority, run_at."""
    return Waiting(int(row[2]), columns.lenient(row[3]) or "", AttemptRef(row[0], row[1]))


# A recursion or GROUP BY reads all entries of the index in between, however many a full group has.
_NEXT = """SELECT DISTINCT holder FROM (SELECT holder FROM workerd_jobs {index}
    WHERE status = 'new' AND holder > %s AND holder < %s ORDER BY holder LIMIT %s) AS q"""


def scan(tx: Tx, handler: str, cursor: str | None = None) -> QueueScan:
    """Find the groups of a handler that have a queue, from `cursor` on."""
    found = names(tx, handler, cursor)
    return QueueScan(_heads(tx, handler, found.names), found.cursor)


class QueueNames(NamedTuple):
    """Names of queues; `cursor`: where the next scan goes on, None at the end."""

    names: list[str]
    cursor: str | None


def names(tx: Tx, handler: str, cursor: str | None = None, most: int = MAX_SCANNED) -> QueueNames:
    """The names of a handler's queues, at most `most` or a few more, from `cursor` on."""
    begin, end = bounds(handler)
    at = cursor or begin
    found: list[str] = []
    sql = _NEXT.format(index=tx.dialect.hint("workerd_holder"))
    for _ in range(MAX_STEPS):
        rows = tx.query(sql, (at, end, min(most, STEP_ROWS)))
        if not rows:
            return QueueNames(found, None)
        found += sorted(columns.text(row[0]) for row in rows)
        at = found[-1]
        if len(found) >= most:
            break
    return QueueNames(found, at)


_HEAD = """SELECT * FROM (SELECT id, attempt, priority, run_at, group_key, holder FROM workerd_jobs {index}
    WHERE status = 'new' AND holder = %s ORDER BY priority, run_at LIMIT 1) AS q{number}"""


def _heads(tx: Tx, handler: str, names: Sequence[str]) -> dict[str, Waiting]:
    heads: dict[str, Waiting] = {}
    index = tx.dialect.hint("workerd_holder")
    strays: list[AttemptRef] = []
    for part in chunks(names, MAX_PROBED):
        sql = " UNION ALL ".join([_HEAD.format(number=n, index=index) for n in range(len(part))])
        for row in tx.query(sql, part):
            group = group_of(row[4])
            if name(handler, group) == columns.lenient(row[5]):
                heads[group] = waiting(row)
            else:
                strays.append(AttemptRef(row[0], row[1]))  # its group was changed while it waited
    unpark(tx, strays)
    return heads


def group_of(value: object) -> str:
    """The column `group_key`, as engines compare it; a job without one is of the empty group."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").rstrip(" ")
    return "" if value is None else str(value).rstrip(" ")


def unpark(tx: Tx, refs: Iterable[AttemptRef]) -> None:
    """Put these jobs back into the queue of their handler."""
    for part in chunks(list(refs)):
        tx.execute(
            f"UPDATE workerd_jobs {tx.dialect.by_key} SET queue = NULL"
            f" WHERE ({columns.keys(part)}) AND status = 'new'"
        )


def unpark_some(tx: Tx, handler: str, rows: int) -> int:
    """Put jobs of a handler that goes by groups no more back into its queue; returns their number."""
    found = tx.query(
        f"SELECT id, attempt FROM workerd_jobs {tx.dialect.hint('workerd_holder')}"
        f" WHERE status = 'new' AND holder > %s AND holder < %s LIMIT %s{tx.dialect.skip_locked}",
        (*bounds(handler), rows),
    )
    unpark(tx, [AttemptRef(*row) for row in found])
    return len(found)


def is_any(tx: Tx, handler: str) -> bool:
    """Whether any group of the handler has a queue."""
    sql = (
        f"SELECT 1 FROM workerd_jobs {tx.dialect.hint('workerd_holder')}"
        " WHERE status = 'new' AND holder > %s AND holder < %s LIMIT 1"
    )
    return tx.one(sql, bounds(handler)) is not None


def count(tx: Tx, handler: str, most: int) -> int:
    """How many jobs of the handler stand in queues of groups, at most `most`."""
    row = tx.one(
        f"SELECT COUNT(*) FROM (SELECT 1 FROM workerd_jobs {tx.dialect.hint('workerd_holder')}"
        " WHERE status = 'new' AND holder > %s AND holder < %s LIMIT %s) AS c",
        (*bounds(handler), most),
    )
    return int(row[0]) if row is not None else 0
