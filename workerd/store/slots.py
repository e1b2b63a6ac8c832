"""Slots of limits: rows that exist while their attempts run.

No claim takes a number beyond the limit, and two that take the same number cannot both be committed. So the
limit holds on Galera too, where its lock is not seen by other servers. The transaction that ends or releases
an attempt deletes its rows, by their numbers and for it alone, and only if that took effect.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import msgspec

from workerd.job import AttemptRef, Claim, LimitUse
from workerd.outcome import Outcome
from workerd.store import columns
from workerd.store.base import Tx
from workerd.store.columns import chunks
from workerd.store.session import LockLost, Row
from workerd.store.slot_numbers import GROUP, LIMIT, SlotNumbers

MIN_RANGE = 4
"""Numbers in a row that are named as a range."""
_ColumnValues = dict[str, Sequence[object]]
"""The values of each column, for all rows."""


class NewSlots(NamedTuple):
    """The numbers of each attempt's slots, of the limit and of its group; None where it has none."""

    of_limit: Sequence[int | None]
    of_group: Sequence[int | None]


def take(
    tx: Tx,
    name: str,
    numbers: SlotNumbers,
    attempts: Sequence[AttemptRef | Claim],
    groups: Sequence[str],
    scopes: Collection[str],
) -> NewSlots:
    """Give each of these attempts, which are of these groups, a slot in each of these scopes.

    Raises LockLost if another server gave one of them out meanwhile.
    """
    count = len(attempts)
    of_limit: Sequence[int | None] = [None] * count
    of_group = of_limit
    holders: _ColumnValues = {
        "id": [one.id for one in attempts],
        "attempt": [one.attempt for one in attempts],
    }
    if LIMIT in scopes:
        of_limit = list(itertools.islice(numbers.free_of_limit(), count))
        # What has its default is left out: 1 µs a row less of the server's CPU time.
        _insert(tx, name, {"n": of_limit, **holders})
    if GROUP in scopes:
        free_of = {group: numbers.free_of_group(group) for group in set(groups)}
        of_group = [next(free_of[group]) for group in groups]
        _insert(tx, name, {"scope": [GROUP] * count, "group_key": groups, "n": of_group, **holders})
    return NewSlots(of_limit, of_group)


def _insert(tx: Tx, name: str, values: _ColumnValues) -> None:
    count = len(values["n"])
    into, end = f"workerd_slots (limit_name, {', '.join(values)})", tx.dialect.keep_existing("n")
    inserted = tx.dialect.insert_columns(tx, into, [[name] * count, *values.values()], end)
    if inserted < count and tx.counts_rows:
        raise LockLost(f"another server has given out slots of the limit {name!r}")


def free(tx: Tx, outcomes: Sequence[Outcome]) -> None:
    """Delete the slots of these attempts, which have them as they say."""
    rows: list[_Slot] = []
    for outcome in outcomes:
        use = outcome.limited
        if use is not None and use.slot is not None:
            rows.append((use.name, LIMIT, "", use.slot, outcome.id, outcome.attempt))
        if use is not None and use.group_slot is not None:
            rows.append((use.name, GROUP, use.group, use.group_slot, outcome.id, outcome.attempt))
    if rows and _delete(tx, rows) < len(rows):
        # A store that failed over had lost them, and they were given others.
        delete(tx, [outcome.ref for outcome in outcomes])


_Slot = tuple[str, str, str, int, bytes, int]
"""A row of `workerd_slots`: limit, scope, group, number, and the attempt."""


def _delete(tx: Tx, rows: Sequence[_Slot]) -> int:
    """Delete these rows, none of them if its slot is another attempt's; returns how many there were."""
    if tx.dialect.has_quick_statements:
        names = ("limit_name", "scope", "group_key", "n", "id", "attempt")
        where = " AND ".join(f"{name} = %s" for name in names)
        return tx.execute_each(f"DELETE FROM workerd_slots WHERE {where}", rows)
    deleted = 0
    for part in chunks(rows):
        where, params = _numbered(part)
        holders = columns.keys([row[4:] for row in part])
        sql = tx.dialect.delete_by_key("workerd_slots", f"({where}) AND ({holders})")
        deleted += tx.execute(sql, params)
    return deleted


def _numbered(rows: Sequence[_Slot]) -> tuple[str, list[str]]:
    """Names rows by their numbers: of each group, or the groups of each, whichever is shorter."""
    of_groups: defaultdict[tuple[str, str, str], list[int]] = defaultdict(list)
    for limit, scope, group, n, _, _ in rows:
        of_groups[limit, scope, group].append(n)
    of_numbers: defaultdict[tuple[str, str, int], list[str]] = defaultdict(list)
    if len(of_groups) > 1:
        for limit, scope, group, n, _, _ in rows:
            of_numbers[limit, scope, n].append(group)
    if not 0 < len(of_numbers) < len(of_groups):
        where = [
            f"limit_name = %s AND scope = %s AND group_key = %s AND ({_any_of(numbers)})"
            for numbers in of_groups.values()
        ]
        return " OR ".join(where), [value for key in of_groups for value in key]
    where = [
        f"limit_name = %s AND scope = %s AND n = {key[2]} AND group_key IN ({','.join(['%s'] * len(groups))})"
        for key, groups in of_numbers.items()
    ]
    return " OR ".join(where), [value for key, groups in of_numbers.items() for value in (*key[:2], *groups)]


def _any_of(numbers: Iterable[int]) -> str:
    """A condition on `n`: those in a row as a range, which costs the server 2 µs a row less.

    The last one of a range is named by itself: who reads a range locks the row behind it, too, which must be
    one of these, as another node may be freeing the next.
    """
    alone: list[int] = []
    ranges: list[str] = []
    for _, run in itertools.groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0]):
        found = [n for _, n in run]
        if len(found) >= MIN_RANGE:
            ranges.append(f"n BETWEEN {found[0]} AND {found[-2]}")
            alone.append(found[-1])
        else:
            alone += found
    return " OR ".join([*ranges, f"n IN ({','.join(map(str, alone))})"])


def delete(tx: Tx, refs: Sequence[AttemptRef]) -> None:
    """Delete the slots of these attempts, whatever their numbers."""
    for part in chunks(refs):
        _delete(tx, _of_attempts(tx, part))


def _columns(prefix: str = "") -> str:
    return ", ".join(prefix + name for name in ("limit_name", "scope", "group_key", "n", "id", "attempt"))


def _slot(row: Row) -> _Slot:
    limit, scope, group = (columns.lenient(value) or "" for value in row[:3])
    return limit, scope, group, int(row[3]), row[4], row[5]


def _of_attempts(tx: Tx, refs: Sequence[AttemptRef]) -> list[_Slot]:
    # Reads all slots, without a lock: an index for what is asked so seldom would cost each job two entries.
    return list(map(_slot, tx.query(f"SELECT {_columns()} FROM workerd_slots WHERE {columns.keys(refs)}")))


# -- for everybody else


def uses(tx: Tx, refs: Sequence[AttemptRef]) -> dict[AttemptRef, LimitUse]:
    """The limits of which these attempts have slots."""
    found: dict[AttemptRef, LimitUse] = {}
    for part in chunks(refs):
        for limit, scope, group, n, job_id, attempt in _of_attempts(tx, part):
            ref = AttemptRef(job_id, attempt)
            use = found.get(ref) or LimitUse(limit, "")
            if scope == LIMIT:
                found[ref] = msgspec.structs.replace(use, slot=n)
            else:
                found[ref] = msgspec.structs.replace(use, group=group, group_slot=n)
    return found


def attempts_with(tx: Tx, name: str, scope: str) -> set[AttemptRef]:
    """The attempts that have a slot of a limit in this scope."""
    sql = "SELECT id, attempt FROM workerd_slots WHERE limit_name = %s AND scope = %s"
    return {AttemptRef(*row) for row in tx.query(sql, (name, scope))}


def counts_of(tx: Tx, name: str, handler: str) -> dict[tuple[str, str], int]:
    """How many slots of a limit the handler has, on any node, by scope and group."""
    sql = (
        "SELECT s.scope, s.group_key, COUNT(*) FROM workerd_slots AS s JOIN workerd_jobs AS j"
        " ON j.id = s.id AND j.attempt = s.attempt WHERE s.limit_name = %s AND j.handler = %s"
        " GROUP BY s.scope, s.group_key"
    )
    found = tx.query(sql, (name, handler))
    return {(columns.text(scope), columns.lenient(group) or ""): int(count) for scope, group, count in found}


def free_ended(tx: Tx, refs: Collection[AttemptRef]) -> set[AttemptRef]:
    """Delete the slots of those of these attempts that run no more, whatever their numbers; returns those."""
    ended = set(refs)
    for part in chunks(sorted(refs)):
        sql = (
            f"SELECT id, attempt FROM workerd_jobs {tx.dialect.by_key}"
            f" WHERE ({columns.keys(part)}) AND status = 'inprogress'"
        )
        ended -= {AttemptRef(*row) for row in tx.query(sql)}
    delete(tx, sorted(ended))
    return ended


def sweep(tx: Tx, rows: int) -> int:
    """Delete slots whose attempt does not run, as when a person deleted its row; returns their number."""
    stale = tx.query(
        f"SELECT {_columns('s.')} FROM workerd_slots AS s LEFT JOIN workerd_jobs AS j"
        " ON j.id = s.id AND j.attempt = s.attempt AND j.status = 'inprogress'"
        " WHERE j.id IS NULL LIMIT %s",
        (rows,),
    )
    return _delete(tx, list(map(_slot, stale)))


class Holder(NamedTuple):
    """An attempt that has a slot of a limit, or of a group of it (else None)."""

    limit: str
    group: str | None
    ref: AttemptRef


def holders(tx: Tx, name: str | None = None) -> list[Holder]:
    """Who has slots, of one limit or of all."""
    where, params = ("", []) if name is None else (" WHERE limit_name = %s", [name])
    rows = tx.query(
        f"SELECT limit_name, scope, group_key, id, attempt FROM workerd_slots{where}"
        " ORDER BY limit_name, scope, group_key, n LIMIT 20000",
        params,
    )
    return [
        Holder(
            columns.lenient(limit) or "",
            None if scope == LIMIT.encode() else columns.lenient(group) or "",
            AttemptRef(job_id, attempt),
        )
        for limit, scope, group, job_id, attempt in rows
    ]
