"""What limits have given out: slots of running attempts, the moments of rates, holds.

A claim locks the rows of its limits in `workerd_rates`, by name, before anything else, and leaves out those
that another claim has locked: so the claims of one limit come one after the other, and never wait. A slot is
a row that exists while its attempt runs, under the lowest free number: on Galera, where that lock is not seen
by other servers, two claims that take the same number cannot both be committed. The transaction that ends or
releases an attempt deletes its rows by (id, attempt), and only if that took effect.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from workerd.job import AttemptRef, LimitUse, Status
from workerd.outcome import Outcome
from workerd.store import columns
from workerd.store.base import LockLost, Row, Tx
from workerd.store.columns import chunks

# Lock order: rows of workerd_rates by (limit_name, scope, group_key), then requests, jobs, and slots, which
# nobody waits for: claims only insert free ones, and whoever ends an attempt deletes those of that alone.

LIMIT, GROUP = "limit", "group"
"""The two scopes: a limit as a whole, and each of its groups. The empty group is that of jobs without one."""


class RateKey(NamedTuple):
    """The key of a row of `workerd_rates`, in the order of their locks; `group` is empty for a limit."""

    limit: str
    scope: str
    group: str


class RateRow(NamedTuple):
    """When its bucket is full again, and until when nothing is started; store times, microseconds."""

    tat: int | None = None
    held_until: int | None = None

    def is_held(self, now: int) -> bool:
        return self.held_until is not None and self.held_until > now


class Slots(NamedTuple):
    """The numbers of the slots that are taken: of the limit, and of each group."""

    of_limit: set[int]
    of_groups: Mapping[str, set[int]]


# -- for claims


def lock(tx: Tx, names: Collection[str]) -> dict[str, RateRow]:
    """Lock these limits against other claims; without those that another claim has locked."""
    wanted = [RateKey(name, LIMIT, "") for name in sorted(names)]
    if not wanted:
        return {}
    where, params = _where(wanted)
    sql = f"SELECT limit_name, tat, held_until FROM workerd_rates WHERE {where} ORDER BY limit_name"
    found = {columns.text(row[0]): row for row in tx.query(sql + tx.dialect.skip_locked, params)}
    if len(found) < len(wanted):
        # Made in the order of locks too, by whoever is first; one that another claim has locked stays out.
        there = {columns.text(row[0]) for row in tx.query(sql, params)}
        for key in wanted:
            if key.limit not in there and tx.execute(
                "INSERT INTO workerd_rates (limit_name, scope, group_key) VALUES (%s, %s, %s)"
                + tx.dialect.keep_existing("limit_name"),
                key,
            ):
                found[key.limit] = (key.limit, None, None)
    return {name: RateRow(*map(columns.lenient_time, row[1:])) for name, row in found.items()}


def slots_query(name: str, *, by_group: bool) -> tuple[str, tuple[str]]:
    """Asks for the slots of a limit that are taken; for those of its groups only if they count."""
    if by_group:
        return "SELECT n, scope, group_key FROM workerd_slots WHERE limit_name = %s", (name,)
    # As little as can be: of a limit that is far away, thousands may be taken at each claim.
    return f"SELECT n FROM workerd_slots WHERE limit_name = %s AND scope = '{LIMIT}'", (name,)


def read_slots(rows: Sequence[Row]) -> Slots:
    """What `slots_query` found."""
    if rows and len(rows[0]) == 1:
        return Slots({row[0] for row in rows}, {})
    of_limit: set[int] = set()
    of_groups: defaultdict[str, set[int]] = defaultdict(set)
    for n, scope, group in rows:
        if scope == LIMIT.encode():
            of_limit.add(int(n))
        else:
            of_groups[columns.lenient(group) or ""].add(int(n))
    return Slots(of_limit, of_groups)


def group_rates_query(name: str) -> tuple[str, tuple[str]]:
    """Asks for the rates and holds of a limit's groups; those that are long over are swept.

    Under the lock of the limit no other claim moves them; a release may give starts back meanwhile.
    """
    sql = "SELECT group_key, tat, held_until FROM workerd_rates"
    return f"{sql} WHERE limit_name = %s AND scope = '{GROUP}'", (name,)


def read_group_rates(rows: Sequence[Row]) -> dict[str, RateRow]:
    """What `group_rates_query` found."""
    return {
        columns.lenient(group) or "": RateRow(columns.lenient_time(tat), columns.lenient_time(held))
        for group, tat, held in rows
    }


def take_slots(
    tx: Tx, name: str, taken: Slots, attempts: Sequence[tuple[AttemptRef, str]], scopes: Collection[str]
) -> None:
    """Give each of these attempts, with its group, a slot in each of these scopes.

    Raises LockLost if another server gave one of them out meanwhile.
    """
    rows: list[tuple[str, str, str, int, bytes, int]] = []
    if LIMIT in scopes:
        free = _free_numbers(taken.of_limit)
        rows += [(name, LIMIT, "", next(free), *ref) for ref, _ in attempts]
    if GROUP in scopes:
        numbers: dict[str, Iterator[int]] = {}
        for ref, group in attempts:
            if group not in numbers:
                numbers[group] = _free_numbers(taken.of_groups.get(group, set()))
            rows.append((name, GROUP, group, next(numbers[group]), *ref))
    for part in chunks(rows):
        marks = ", ".join(["(%s, %s, %s, %s, %s, %s)"] * len(part))
        inserted = tx.execute(
            f"INSERT INTO workerd_slots (limit_name, scope, group_key, n, id, attempt) VALUES {marks}"
            + tx.dialect.keep_existing("n"),
            [value for row in part for value in row],
        )
        if inserted < len(part) and tx.counts_rows:
            raise LockLost(f"another server has given out slots of the limit {name!r}")


def _free_numbers(taken: set[int]) -> Iterator[int]:
    return (n for n in itertools.count() if n not in taken)


def write_rates(tx: Tx, tats: Mapping[RateKey, int]) -> None:
    """Move the rates of limits and groups that the transaction has locked."""
    _write(tx, "tat", tats)


def _write(tx: Tx, column: str, values: Mapping[RateKey, int]) -> None:
    for part in chunks(sorted(values)):
        marks = ", ".join(["(%s, %s, %s, %s)"] * len(part))
        tx.execute(
            f"INSERT INTO workerd_rates (limit_name, scope, group_key, {column}) VALUES {marks}"
            + tx.dialect.update_existing("limit_name, scope, group_key", {column: f"{{new.{column}}}"}),
            [value for key in part for value in (*key, columns.at(values[key]))],
        )


# -- for the transactions that end attempts


def lock_for(tx: Tx, outcomes: Sequence[Outcome]) -> dict[RateKey, RateRow]:
    """Lock the rates that these outcomes move or hold, as far as they have a row."""
    keys = {key for outcome in outcomes if outcome.limited is not None for key in _moved(outcome)}
    found: dict[RateKey, RateRow] = {}
    for part in chunks(sorted(keys)):
        where, params = _where(part)
        rows = tx.query(
            f"SELECT limit_name, scope, group_key, tat, held_until FROM workerd_rates WHERE {where}"
            f" ORDER BY limit_name, scope, group_key{tx.dialect.row_lock}",
            params,
        )
        found.update(map(_rate, rows))
    return found


def _rate(row: Row) -> tuple[RateKey, RateRow]:
    key = RateKey(*(columns.lenient(value) or "" for value in row[:3]))
    return key, RateRow(columns.lenient_time(row[3]), columns.lenient_time(row[4]))


def _where(keys: Sequence[RateKey]) -> tuple[str, list[str]]:
    where = " OR ".join(["limit_name = %s AND scope = %s AND group_key = %s"] * len(keys))
    return where, [value for key in keys for value in key]


def _moved(outcome: Outcome) -> list[RateKey]:
    """The rates that an outcome gives starts back to, or holds."""
    use = outcome.limited
    assert use is not None
    if outcome.status is Status.NEW:
        given_back = [(LIMIT, "", use.start_us), (GROUP, use.group, use.group_start_us)]
        return [RateKey(use.name, scope, group) for scope, group, cost in given_back if cost]
    if outcome.hold is None:
        return []
    # With the limit's row, so that no claim that began before the hold is committed after it.
    return [RateKey(use.name, LIMIT, ""), _held(use, outcome.hold.scope)]


def _held(use: LimitUse, scope: str) -> RateKey:
    return RateKey(use.name, scope, use.group if scope == GROUP else "")


def free(
    tx: Tx,
    ended: Sequence[Outcome],
    released: Sequence[Outcome],
    rates: Mapping[RateKey, RateRow],
    now: int,
) -> set[str]:
    """Free what these attempts, whose end or release took effect, had of limits; and hold what they say.

    `rates`: what `lock_for` returned. Returns the handlers of which more may be claimed now.
    """
    limited = [outcome for outcome in (*ended, *released) if outcome.limited is not None]
    if not limited:
        return set()
    delete(tx, [outcome.ref for outcome in limited])
    tats = {key: row.tat for key, row in rates.items() if row.tat is not None}
    for outcome in released:
        if outcome.limited is not None:
            for key in _moved(outcome):
                if key in tats:
                    cost = outcome.limited.start_us if key.scope == LIMIT else outcome.limited.group_start_us
                    tats[key] -= cost
    _write(tx, "tat", {key: tat for key, tat in tats.items() if tat != rates[key].tat})
    holds: dict[RateKey, int] = {}
    for outcome in ended:
        if outcome.limited is not None and outcome.hold is not None:
            key = _held(outcome.limited, outcome.hold.scope)
            before = max(holds.get(key, 0), rates.get(key, RateRow()).held_until or 0)
            holds[key] = max(before, now + outcome.hold.delay_us)
    _write(tx, "held_until", holds)
    return {outcome.handler for outcome in limited}


def delete(tx: Tx, refs: Sequence[AttemptRef]) -> None:
    """Delete the slots of these attempts."""
    for part in chunks(refs):
        tx.execute(tx.dialect.delete_by_index("workerd_slots", "workerd_slot_holder", columns.keys(part)))


# -- for everybody else


def uses(tx: Tx, refs: Sequence[AttemptRef]) -> dict[AttemptRef, LimitUse]:
    """The limits of which these attempts have slots."""
    found: dict[AttemptRef, LimitUse] = {}
    for part in chunks(refs):
        for job_id, attempt, name, group in tx.query(
            f"SELECT id, attempt, limit_name, group_key FROM workerd_slots WHERE {columns.keys(part)}"
        ):
            ref = AttemptRef(job_id, attempt)
            if ref not in found or group:  # the slot of the limit as a whole names no group
                found[ref] = LimitUse(columns.lenient(name) or "", columns.lenient(group) or "")
    return found


def sweep(tx: Tx, rows: int) -> int:
    """Delete slots whose attempt does not run, as when a person deleted its row, and rates that are over.

    Returns the number of slots.
    """
    stale = tx.query(
        "SELECT s.id, s.attempt FROM workerd_slots AS s LEFT JOIN workerd_jobs AS j"
        " ON j.id = s.id AND j.attempt = s.attempt AND j.status = 'inprogress'"
        " WHERE j.id IS NULL LIMIT %s",
        (rows,),
    )
    delete(tx, [AttemptRef(*row) for row in stale])
    now = columns.at(tx.now)
    over = tx.query(
        f"SELECT limit_name, scope, group_key FROM workerd_rates WHERE scope = '{GROUP}'"
        " AND (tat IS NULL OR tat < %s) AND (held_until IS NULL OR held_until < %s) LIMIT %s"
        f"{tx.dialect.skip_locked}",
        (now, now, rows),
    )
    if over:
        where, params = _where([RateKey(*(columns.lenient(value) or "" for value in row)) for row in over])
        tx.execute(f"DELETE FROM workerd_rates WHERE {where}", params)
    return len(stale)


class Held(NamedTuple):
    """A hold that lasts; `group` is None for a whole limit."""

    limit: str
    group: str | None
    until: int


def held(tx: Tx) -> list[Held]:
    """The holds that last."""
    rows = tx.query(
        f"SELECT limit_name, scope, group_key, held_until FROM workerd_rates"
        f" {tx.dialect.hint('workerd_rate_held')} WHERE held_until > %s LIMIT 1000",
        (columns.at(tx.now),),
    )
    return [
        Held(
            columns.lenient(name) or "",
            None if scope == LIMIT.encode() else columns.lenient(group) or "",
            columns.time_or_zero(until),
        )
        for name, scope, group, until in rows
    ]


class LimitState(NamedTuple):
    """What a limit has given out, as a whole and to one group: its rate and hold, and who has slots."""

    limit: RateRow
    group: RateRow
    holders: list[AttemptRef]
    group_holders: list[AttemptRef]


def state(tx: Tx, name: str, group: str) -> LimitState:
    """The state of a limit and of one of its groups."""
    keys = RateKey(name, LIMIT, ""), RateKey(name, GROUP, group)
    where, params = _where(keys)
    rates = dict(
        map(
            _rate,
            tx.query(
                f"SELECT limit_name, scope, group_key, tat, held_until FROM workerd_rates WHERE {where}",
                params,
            ),
        )
    )
    found = holders(tx, name)
    return LimitState(
        rates.get(keys[0], RateRow()),
        rates.get(keys[1], RateRow()),
        [holder.ref for holder in found if holder.group is None],
        [holder.ref for holder in found if holder.group == group],
    )


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
