"""What limits have given out besides slots: the moments of rates, holds, and whose the next slot is.

A claim locks the rows of its limits in `workerd_rates`, by name, before anything else, and leaves out those
that another claim has locked: so the claims of one limit come one after the other, and never wait.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from workerd.job import AttemptRef, LimitUse, Status
from workerd.outcome import Outcome
from workerd.rate_limit import given_back
from workerd.store import columns, slots
from workerd.store.base import Tx
from workerd.store.columns import chunks
from workerd.store.session import Row
from workerd.store.slot_numbers import GROUP, LIMIT

MAX_KEPT_US = 2_000_000
"""Maximum time for which a slot is reserved: a later end was written before the clock was set back."""

# Lock order: rows of workerd_rates by (limit_name, scope, group_key), then requests, jobs, and slots, which
# are never waited for: claims only insert free ones, and the end of an attempt deletes only its own.


class RateKey(NamedTuple):
    """The key of a row of `workerd_rates`, in the order of their locks; `group` is empty for a limit."""

    limit: str
    scope: str
    group: str


class RateRow(NamedTuple):
    """What is stored of a limit, or of a group of it; store times, microseconds.

    tat
        When its bucket is full again.
    held_until
        Until when nothing is started.
    next_handler, next_until
        Until when the next free slot is reserved for this handler; without one, until when none is reserved.
    """

    tat: int | None = None
    held_until: int | None = None
    next_handler: str | None = None
    next_until: int | None = None

    def is_held(self, now: int) -> bool:
        return self.held_until is not None and self.held_until > now

    def asked_until(self, now: int) -> int | None:
        """`next_until`, if that is in the future."""
        until = self.next_until
        return until if until is not None and now < until <= now + MAX_KEPT_US else None

    def is_kept(self, now: int, handler: str) -> bool:
        """Whether the next free slot is kept for another handler."""
        return self.next_handler not in (None, handler) and self.asked_until(now) is not None


_STATE = "tat, held_until, next_handler, next_until"


def _state(values: Sequence[object]) -> RateRow:
    """From the columns of `_STATE`."""
    tat, held_until, next_handler, next_until = values
    time = columns.lenient_time
    return RateRow(time(tat), time(held_until), columns.lenient(next_handler), time(next_until))


# -- for claims


def lock(tx: Tx, names: Collection[str]) -> dict[str, RateRow]:
    """Lock these limits against other claims; without those that another claim has locked."""
    wanted = [RateKey(name, LIMIT, "") for name in sorted(names)]
    if not wanted:
        return {}
    where, params = _where(wanted)
    sql = f"SELECT limit_name, {_STATE} FROM workerd_rates WHERE {where} ORDER BY limit_name"
    found = {columns.text(row[0]): row for row in tx.query(sql + tx.dialect.skip_locked, params)}
    if len(found) < len(wanted):
        # Created in lock order too, by the first claim that needs them; rows locked by another stay out.
        there = {columns.text(row[0]) for row in tx.query(sql, params)}
        for key in wanted:
            if key.limit not in there and tx.execute(
                "INSERT INTO workerd_rates (limit_name, scope, group_key) VALUES (%s, %s, %s)"
                + tx.dialect.keep_existing("limit_name"),
                key,
            ):
                found[key.limit] = (key.limit, None, None, None, None)
    return {name: _state(row[1:]) for name, row in found.items()}


def group_rates_query(name: str) -> tuple[str, tuple[str]]:
    """Asks for what is stored of a limit's groups; those of which nothing lasts are swept.

    Under the lock of the limit no other claim moves them; a release may give starts back meanwhile.
    """
    sql = f"SELECT group_key, {_STATE} FROM workerd_rates"
    return f"{sql} WHERE limit_name = %s AND scope = '{GROUP}'", (name,)


def read_group_rates(rows: Sequence[Row]) -> dict[str, RateRow]:
    """What `group_rates_query` found."""
    return {columns.lenient(row[0]) or "": _state(row[1:]) for row in rows}


def write_rates(tx: Tx, tats: Mapping[RateKey, int]) -> None:
    """Move the rates of limits and groups that the transaction has locked."""
    _write_times(tx, "tat", tats)


def write_next(tx: Tx, kept: Mapping[RateKey, tuple[str | None, int | None]]) -> None:
    """Write next_handler and next_until, of limits that the transaction has locked and of their groups."""
    values = {key: (handler, columns.at(until)) for key, (handler, until) in kept.items()}
    _write(tx, ("next_handler", "next_until"), values)


def _write_times(tx: Tx, column: str, values: Mapping[RateKey, int]) -> None:
    _write(tx, (column,), {key: (columns.at(at),) for key, at in values.items()})


def _write(tx: Tx, names: Sequence[str], values: Mapping[RateKey, Sequence[str | None]]) -> None:
    marks = ", ".join(["%s"] * (len(RateKey._fields) + len(names)))
    new = {name: f"{{new.{name}}}" for name in names}
    for part in chunks(sorted(values)):
        tx.execute(
            f"INSERT INTO workerd_rates (limit_name, scope, group_key, {', '.join(names)})"
            f" VALUES {', '.join([f'({marks})'] * len(part))}"
            + tx.dialect.update_existing("limit_name, scope, group_key", new),
            [value for key in part for value in (*key, *values[key])],
        )


# -- for the transactions that end attempts


def lock_for(tx: Tx, outcomes: Sequence[Outcome]) -> dict[RateKey, RateRow]:
    """Lock the rates that these outcomes move or hold, as far as they have a row."""
    moving = [o for o in outcomes if o.limited is not None and (o.status is Status.NEW or o.hold is not None)]
    keys = {key for outcome in moving for key in _moved(outcome)}
    found: dict[RateKey, RateRow] = {}
    for part in chunks(sorted(keys)):
        where, params = _where(part)
        rows = tx.query(
            f"SELECT limit_name, scope, group_key, {_STATE} FROM workerd_rates WHERE {where}"
            f" ORDER BY limit_name, scope, group_key{tx.dialect.row_lock}",
            params,
        )
        found.update(map(_rate, rows))
    return found


def _rate(row: Row) -> tuple[RateKey, RateRow]:
    key = RateKey(*(columns.lenient(value) or "" for value in row[:3]))
    return key, _state(row[3:])


def _where(keys: Sequence[RateKey]) -> tuple[str, list[str]]:
    where = " OR ".join(["limit_name = %s AND scope = %s AND group_key = %s"] * len(keys))
    return where, [value for key in keys for value in key]


def _moved(outcome: Outcome) -> list[RateKey]:
    """The rates that an outcome gives starts back to, or holds."""
    use = outcome.limited
    assert use is not None
    if outcome.status is Status.NEW:
        # The limit's row first, as claims do: those lock rows of its groups in more than one pass.
        given_back = [(LIMIT, "", use.start_us or use.group_start_us), (GROUP, use.group, use.group_start_us)]
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

    `rates`: what `lock_for` returned. Returns the limits of which others may have more now.
    """
    limited = [outcome for outcome in (*ended, *released) if outcome.limited is not None]
    if not limited:
        return set()
    slots.free(tx, limited)
    _write_times(tx, "tat", _tats_without(tx, released, rates))
    holds: dict[RateKey, int] = {}
    for outcome in ended:
        if outcome.limited is not None and outcome.hold is not None:
            key = _held(outcome.limited, outcome.hold.scope)
            before = max(holds.get(key, 0), rates.get(key, RateRow()).held_until or 0)
            holds[key] = max(before, now + outcome.hold.delay_us)
    _write_times(tx, "held_until", holds)
    # The end of an attempt that only used a rate frees nothing: handlers waiting for a rate have a timer.
    uses = [(outcome.limited, outcome.status is Status.NEW) for outcome in limited]
    return {use.name for use, unused in uses if use is not None and (unused or use.has_slots)}


def _tats_without(
    tx: Tx, released: Sequence[Outcome], rates: Mapping[RateKey, RateRow]
) -> dict[RateKey, int]:
    """The moments of these rates, as far as giving the starts of released attempts back moves them."""
    starts: defaultdict[RateKey, list[tuple[int, int]]] = defaultdict(list)
    for outcome in released:
        use = outcome.limited
        if use is not None:
            for key in _moved(outcome):
                cost = use.start_us if key.scope == LIMIT else use.group_start_us
                starts[key].append((outcome.claimed_at, cost))
    if not starts:
        return {}
    now = tx.clock()  # after the wait for their locks, in which others may have started
    moved = {key: given_back(starts[key], now) for key in rates}
    return {key: row.tat - moved[key] for key, row in rates.items() if row.tat is not None and moved[key]}


# -- for everybody else


def sweep(tx: Tx, rows: int) -> int:
    """Delete the rows of groups of which nothing lasts; returns their number."""
    now = columns.at(tx.now)
    over = tx.query(
        f"SELECT limit_name, scope, group_key FROM workerd_rates WHERE scope = '{GROUP}'"
        " AND (tat IS NULL OR tat < %s) AND (held_until IS NULL OR held_until < %s)"
        f" AND (next_until IS NULL OR next_until < %s) LIMIT %s{tx.dialect.skip_locked}",
        (now, now, now, rows),
    )
    if over:
        where, params = _where([RateKey(*(columns.lenient(value) or "" for value in row)) for row in over])
        tx.execute(f"DELETE FROM workerd_rates WHERE {where}", params)
    return len(over)


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


def end_hold(tx: Tx, name: str, group: str | None) -> bool:
    """End the hold of a limit, or of one of its groups; false if there is none that lasts.

    Locks its row.
    """
    scope = (LIMIT, "") if group is None else (GROUP, group)
    where, params = _where([RateKey(name, *scope)])
    sql = f"UPDATE workerd_rates SET held_until = NULL WHERE {where} AND held_until > %s"
    return tx.execute(sql, [*params, columns.at(tx.now)]) > 0


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
                f"SELECT limit_name, scope, group_key, {_STATE} FROM workerd_rates WHERE {where}",
                params,
            ),
        )
    )
    found = slots.holders(tx, name)
    return LimitState(
        rates.get(keys[0], RateRow()),
        rates.get(keys[1], RateRow()),
        [holder.ref for holder in found if holder.group is None],
        [holder.ref for holder in found if holder.group == group],
    )
