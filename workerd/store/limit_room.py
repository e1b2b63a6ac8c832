"""What a limit leaves to one claim, and taking of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from workerd.config.limit_config import LimitConfig
from workerd.job import Claim, LimitUse
from workerd.rate_limit import Rate
from workerd.store import limits, slots
from workerd.store.base import Tx
from workerd.store.claim_window import LimitedHandler
from workerd.store.limits import RateKey, RateRow
from workerd.store.session import Row
from workerd.store.slot_numbers import GROUP, LIMIT, NO_RANGE, SlotNumbers


class LockedLimit(NamedTuple):
    """A limit that the transaction has locked: its configuration, and its row.

    free_range
        Numbers of its slots that were free after the last claim, see `slot_numbers`.
    """

    config: LimitConfig
    row: RateRow
    free_range: range = NO_RANGE

    def numbers_for(self, wanted: int) -> range:
        """The numbers of the range for a claim of so many; none if it has fewer, or the limit is lower."""
        numbers = self.free_range[:wanted]
        is_enough = len(numbers) == wanted and numbers[-1] < _ungrouped_concurrency(self.config)
        return numbers if is_enough else NO_RANGE


def _ungrouped_concurrency(config: LimitConfig) -> int:
    """The concurrency of the limit; 0 without one, and where groups have slots: those are read, too."""
    return 0 if config.group_concurrency is not None else config.concurrency or 0


class LimitRoom:
    """What a limit leaves to a handler: of itself, and of each group."""

    def __init__(
        self,
        now: int,
        handler: LimitedHandler,
        limit: LockedLimit,
        numbers: SlotNumbers,
        groups: list[Row],
    ) -> None:
        self._handler = handler.name
        assert handler.limit is not None
        self.name = handler.limit
        self.config = config = limit.config
        self.row = limit.row
        self.now = now
        self._numbers = numbers
        self._free_range = limit.free_range
        self._given: list[int] = []
        self.groups = limits.read_group_rates(groups)
        self._asked = self._asked_rows()
        self._started: Counter[str] = Counter()
        self._started_in_all = 0
        self.scopes = [
            scope
            for scope, count in ((LIMIT, config.concurrency), (GROUP, config.group_concurrency))
            if count is not None
        ]

    def correct_rates(self, tx: Tx) -> None:
        """Store the moments of rates that are further ahead than they can be by the configuration.

        A node with a greater burst must know of this one by then: it would start as many more.
        """
        limit, group_rate = self.config.starts, self.config.group_starts
        moved: dict[RateKey, int | None] = {}
        if limit is not None:
            moved[RateKey(self.name, LIMIT, "")] = limit.corrected(self.row.tat, self.now)
        if group_rate is not None:
            for group, row in self.groups.items():
                moved[RateKey(self.name, GROUP, group)] = group_rate.corrected(row.tat, self.now)
        self._move(tx, {key: tat for key, tat in moved.items() if tat is not None})

    def _move(self, tx: Tx, tats: Mapping[RateKey, int]) -> None:
        limits.write_rates(tx, tats)
        for key, tat in tats.items():
            if key.scope == GROUP:
                self.groups[key.group] = self.groups.get(key.group, RateRow())._replace(tat=tat)
            else:
                self.row = self.row._replace(tat=tat)

    @property
    def retry_at(self) -> int | None:
        """When the limit as a whole lets the next start, None if that is now or a matter of slots."""
        moments = [self.row.held_until] if self.row.is_held(self.now) else []
        rate = self.config.starts
        if rate is not None and not rate.fitting(self.row.tat, self.now):
            moments.append(rate.next_at(self.row.tat, self.now))
        return max((moment for moment in moments if moment is not None), default=None)

    @property
    def holds_groups(self) -> bool:
        """Whether any group of it is held."""
        return any(row.is_held(self.now) for row in self.groups.values())

    def of_limit(self, wanted: int) -> int:
        """How many of `wanted` the limit as a whole lets start."""
        if self.row.is_held(self.now):
            return 0
        free = self._free_slots
        if free is not None:
            wanted = min(wanted, free)
        if self.config.starts is not None:
            wanted = min(wanted, self.config.starts.fitting(self.row.tat, self.now))
        return max(0, wanted)

    def of_group(self, group: str, wanted: int) -> int:
        """How many of `wanted` the group may start."""
        row = self.groups.get(group)
        if row is not None and row.is_held(self.now):
            return 0
        free = self._free_group_slots(group)
        if free is not None:
            wanted = min(wanted, free)
        if self.config.group_starts is not None:
            wanted = min(wanted, self.config.group_starts.fitting(row and row.tat, self.now))
        return max(0, wanted)

    @property
    def _free_slots(self) -> int | None:
        """Slots that the handler may take, None where they do not count."""
        if self.config.concurrency is None:
            return None
        kept = self.row.is_kept(self.now, self._handler)
        return self._numbers.count_free(self.config.concurrency) - kept - self._started_in_all

    def _free_group_slots(self, group: str) -> int | None:
        """The same of a group."""
        if self.config.group_concurrency is None:
            return None
        row = self.groups.get(group)
        kept = row is not None and row.is_kept(self.now, self._handler)
        running = self._numbers.taken_by(group) + self._started[group]
        return self.config.group_concurrency - kept - running

    def full(self, groups: Iterable[str], *, more: bool) -> dict[RateKey, RateRow]:
        """Where jobs wait for nothing but a free slot: the limit and those of these groups, with their rows.

        `groups`: of jobs that wait. `more`: whether there are others, of groups that are not known.
        """
        if self.retry_at is not None:
            return {}
        found: dict[RateKey, RateRow] = {}
        for group in groups:
            if self.group_retry_at(group) is not None:
                continue
            free = self._free_group_slots(group)
            if free is None or free > 0:
                more = True
            else:
                found[RateKey(self.name, GROUP, group)] = self.groups.get(group, RateRow())
        free = self._free_slots
        if more and free is not None and free <= 0:
            found[RateKey(self.name, LIMIT, "")] = self.row
        return found

    @property
    def kept(self) -> dict[RateKey, RateRow]:
        """The limit and its groups, with their rows, of which the next slot is kept for the handler."""
        return {key: row for key, row in self._asked.items() if row.next_handler == self._handler}

    @property
    def kept_until(self) -> int | None:
        """The moment from which a slot is no longer kept for another handler."""
        kept = [row for row in self._asked.values() if row.is_kept(self.now, self._handler)]
        return min((row.next_until or 0 for row in kept), default=None)

    def _asked_rows(self) -> dict[RateKey, RateRow]:
        # No claim changes them while it lasts.
        rows = {RateKey(self.name, GROUP, group): row for group, row in self.groups.items() if row.next_until}
        if self.row.next_until:
            rows[RateKey(self.name, LIMIT, "")] = self.row
        return {key: row for key, row in rows.items() if row.asked_until(self.now) is not None}

    def group_retry_at(self, group: str) -> int | None:
        """When the group may start one by its rate or hold, None if that is now."""
        row = self.groups.get(group)
        if row is None:
            return None
        moments = [row.held_until] if row.is_held(self.now) else []
        rate = self.config.group_starts
        if rate is not None and not rate.fitting(row.tat, self.now):
            moments.append(rate.next_at(row.tat, self.now))
        return max((moment for moment in moments if moment is not None), default=None)

    def use(self, tx: Tx, started: Sequence[Claim], groups: Sequence[str]) -> list[LimitUse]:
        """Take slots and starts for these attempts, which are of these groups; what each has taken."""
        taken = slots.take(tx, self.name, self._numbers, started, groups, self.scopes)
        self._given = [n for n in taken.of_limit if n is not None]
        tats: dict[RateKey, int] = {}
        self._started_in_all += len(started)
        if self.config.by_group:
            self._started.update(groups)
        if self.config.starts is not None:
            key = RateKey(self.name, LIMIT, "")
            tats[key] = self.config.starts.taken(self.row.tat, self.now, len(started))
        if self.config.group_starts is not None:
            for group, count in self._started.items():
                before = self.groups[group].tat if group in self.groups else None
                tats[RateKey(self.name, GROUP, group)] = self.config.group_starts.taken(
                    before, self.now, count
                )
        self._move(tx, tats)
        name, cost, group_cost = self.name, _cost(self.config.starts), _cost(self.config.group_starts)
        return [
            LimitUse(name, group, cost, group_cost, slot, group_slot)
            for group, slot, group_slot in zip(groups, *taken, strict=True)
        ]

    def range_left(self, wanted: int) -> range:
        """Numbers that are free, for further claims of so many."""
        concurrency = _ungrouped_concurrency(self.config)
        if not concurrency:
            return NO_RANGE
        if not self._numbers.are_all_known:
            return self._free_range[len(self._given) :]
        return self._numbers.find_range(self._given, wanted, concurrency)


def _cost(rate: Rate | None) -> int:
    # Rounded down: what is given back is never more than was taken.
    return 0 if rate is None else rate.period_us // rate.count
