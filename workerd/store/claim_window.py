"""The waiting rows that a claim of a limited handler looks at: its own queue's, and those of a flood."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from workerd.errors import InvalidValue
from workerd.fairness import Waiting
from workerd.group import GroupTemplate
from workerd.job import AttemptRef
from workerd.store import claims, columns, group_queues
from workerd.store.base import Tx
from workerd.store.claims import MAX_BATCH_BYTES, MAX_JOB_BYTES, Cursor
from workerd.store.dialect import Dialect
from workerd.store.session import Row

LOOKAHEAD_ROWS = 50
"""Rows that are looked at beyond those wanted, where groups count: a flood does not hide the others. Measured
on MariaDB, while what waits of a flood is moved out of the way: a claim of 20 rows takes 13 ms with 180."""
IN_FULL_ROWS = 200
"""With so many wanted, rows are read as a claim needs them, since most of them will be claimed."""
TAIL_ROWS = 50
"""Of the newest rows, which are looked at too while there are more than that. Where half of them are of
groups that do not stand in front, and few groups do, as many are looked at as are wanted: else the others
would have 50 starts of a claim at most."""


class LimitedHandler(NamedTuple):
    """What a handler's configuration says of its claims; `limit`: the limit's name.

    `expires_us`: how long after it was due a job may begin.
    """

    name: str
    limit: str | None
    template: GroupTemplate | None
    fair: bool
    expires_us: int | None = None


class ClaimWindow(NamedTuple):
    """Which rows of the handler's own queue are looked at.

    by_group
        Whether groups count: then more rows are looked at than are claimed.
    inline
        Bytes of vars up to which they are read with the row.
    """

    dialect: Dialect
    handler: LimitedHandler
    wanted: int
    cursor: Cursor | None
    by_group: bool
    inline: int

    @property
    def rows(self) -> int:
        return self.wanted + (LOOKAHEAD_ROWS if self.by_group else 0)

    @property
    def in_full(self) -> bool:
        """Whether rows are read as a claim needs them."""
        return not self.by_group or self.wanted >= IN_FULL_ROWS

    def front(self) -> tuple[str, list[object]]:
        """Asks for the first rows, and locks them."""
        after, params = claims.behind(self.dialect, self.cursor)
        sql = self._select(after, "priority, run_at", in_full=self.in_full)
        return sql, [self.handler.name, *params, self.rows]

    def queue(self, group: str, head: Waiting) -> tuple[str, list[object]]:
        """The same for the queue of a group, from what was its first job on, in full."""
        cursor = Cursor(head.priority, head.run_at, head.ref.id) if head.run_at else None
        after, params = claims.behind(self.dialect, cursor)
        sql = self._select(after, "priority, run_at", in_full=True)
        return sql, [group_queues.name(self.handler.name, group), *params, self.wanted]

    @property
    def tails(self) -> list[int]:
        """How many of the last rows are looked at, at first and then."""
        return [TAIL_ROWS, self.wanted] if self.wanted > TAIL_ROWS else [TAIL_ROWS]

    def tail(self, most: int) -> tuple[str, list[object]]:
        """The same for the last rows, not locked."""
        # They stay where they are: the dead entries of rows that had left the end of the index were read by
        # every claim until the server purged them, 1 to 9 ms each on MariaDB.
        sql = self._select("", "priority DESC, run_at DESC", in_full=self.in_full, lock=False)
        return sql, [self.handler.name, most]

    def _select(self, where: str, order: str, *, in_full: bool, lock: bool = True) -> str:
        size = self.dialect.byte_length("vars")
        needed = f", {size}" if self.handler.template is not None else ""
        whole = "NULL, 1"
        if in_full:
            plain = f"{claims.IS_PLAIN} AND failures = 0 AND crashes = 0 AND losses = 0"
            whole = f"CASE WHEN {size} <= {self.inline} THEN vars END, CASE WHEN {plain} THEN 0 ELSE 1 END"
        return (
            f"SELECT id, attempt, priority, run_at, {whole}, group_key{needed} FROM workerd_jobs"
            f" {self.dialect.hint('workerd_holder')} WHERE status = 'new' AND holder = %s{where}"
            f" ORDER BY {order} LIMIT %s{self.dialect.skip_locked if lock else ''}"
        )


class FloodQueue(NamedTuple):
    """The first rows of the queue of a group, in full and locked."""

    group: str
    rows: list[Row]


class SeenRows(NamedTuple):
    """Waiting rows of the handler's own queue by group.

    filled
        The groups that follow from vars and are not in the rows yet.
    wrong
        Why rows whose vars give no group must fail.
    rows
        Those of the front, as they were selected, locked; only these are moved into queues of groups.
    is_full
        Whether there are more rows than were looked at; `first`: the first of them.
    hiding
        See LimitedBatch.
    """

    queues: dict[str, list[Waiting]]
    filled: dict[AttemptRef, str]
    wrong: dict[AttemptRef, str]
    rows: dict[AttemptRef, Row]
    is_full: bool
    first: Cursor | None
    hiding: frozenset[str] = frozenset()


def read_window(tx: Tx, asked: ClaimWindow, front: Sequence[Row]) -> SeenRows:
    """By group, the first rows of the handler's own queue, `front`; where groups count, the last ones too."""
    by_ref = {AttemptRef(row[0], row[1]): row for row in front}
    first = claims.cursor_at(front[0]) if front else None
    window = SeenRows(defaultdict(list), {}, {}, by_ref, len(front) >= asked.rows, first)
    _see(tx, asked.handler, by_ref, window)
    if not window.is_full or not asked.by_group:
        return window
    in_front = frozenset(window.queues)
    are_few = len(by_ref) >= 2 * len(in_front)
    seen = set(by_ref)
    for most in asked.tails:
        tail = {AttemptRef(row[0], row[1]): row for row in tx.query(*asked.tail(most))}
        _see(tx, asked.handler, {ref: row for ref, row in tail.items() if ref not in seen}, window)
        seen.update(tail)
        others = sum(len(jobs) for group, jobs in window.queues.items() if group not in in_front)
        if others < most // 2 or not are_few:
            break
    return window._replace(hiding=in_front) if are_few and asked.handler.fair else window


def _see(tx: Tx, handler: LimitedHandler, rows: Mapping[AttemptRef, Row], window: SeenRows) -> None:
    """Add these rows to the queues of their groups."""
    missing = {
        ref: int(row[7]) for ref, row in rows.items() if row[6] is None and handler.template is not None
    }
    _fill(tx, handler.template, missing, window)
    for ref, row in rows.items():
        if ref not in missing:
            window.queues[group_queues.group_of(row[6])].append(group_queues.waiting(row))
        elif ref in window.filled:
            window.queues[window.filled[ref]].append(group_queues.waiting(row))


def _fill(tx: Tx, template: GroupTemplate | None, sizes: Mapping[AttemptRef, int], window: SeenRows) -> None:
    """The groups of these rows, from their vars; as many of them as are read together."""
    total = 0
    read: list[AttemptRef] = []
    for ref, size in sizes.items():
        total += size
        if size > MAX_JOB_BYTES:
            window.wrong[ref] = f"group: its vars are too long, {size} bytes, to be filled from."
        elif not read or total <= MAX_BATCH_BYTES:
            read.append(ref)
    for part in columns.chunks(read):
        sql = f"SELECT id, attempt, vars FROM workerd_jobs WHERE {columns.keys(part)}"
        for job_id, attempt, job_vars in tx.query(sql):
            ref = AttemptRef(job_id, attempt)
            try:
                assert template is not None
                window.filled[ref] = template.fill(columns.blob(job_vars))
            except InvalidValue as error:
                window.wrong[ref] = f"{error}; correct the vars, or enqueue it with a group."
