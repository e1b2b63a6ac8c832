"""What a limit leaves to one claim, and taking of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from workerd.config.limit_config import LimitConfig
from workerd.job import Claim, LimitUse
from workerd.rate_limit import Rate
from workerd.store import limits, slots
from workerd.store.base import Tx
from workerd.store.limits import RateKey, RateRow
from workerd.store.session import Row
from workerd.store.slots import GROUP, LIMIT


class LimitRoom:
    """What a limit leaves: of itself, and of each group."""

    def __init__(
        self, now: int, name: str, config: LimitConfig, row: RateRow, taken: list[Row], groups: list[Row]
    ) -> None:
        self.name = name
        self.config = config
        self.row = row
        self.now = now
        self.slots = slots.read(taken)
        self.groups = limits.read_group_rates(groups)
        self._started: Counter[str] = Counter()
        self.scopes = [
            scope
            for scope, count in ((LIMIT, config.concurrency), (GROUP, config.group_concurrency))
            if count is not None
        ]

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
        if self.config.concurrency is not None:
            wanted = min(wanted, self.config.concurrency - self.slots.of_limit.bit_count())
        if self.config.starts is not None:
            wanted = min(wanted, self.config.starts.fitting(self.row.tat, self.now))
        return max(0, wanted)

    def of_group(self, group: str, wanted: int) -> int:
        """How many of `wanted` the group may start."""
        row = self.groups.get(group)
        if row is not None and row.is_held(self.now):
            return 0
        if self.config.group_concurrency is not None:
            running = self.slots.of_groups.get(group, 0).bit_count() + self._started[group]
            wanted = min(wanted, self.config.group_concurrency - running)
        if self.config.group_starts is not None:
            wanted = min(wanted, self.config.group_starts.fitting(row and row.tat, self.now))
        return max(0, wanted)

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
        taken = slots.take(tx, self.name, self.slots, started, groups, self.scopes)
        tats: dict[RateKey, int] = {}
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
        limits.write_rates(tx, tats)
        for key, tat in tats.items():
            if key.scope == GROUP:
                self.groups[key.group] = self.groups.get(key.group, RateRow())._replace(tat=tat)
            else:
                self.row = self.row._replace(tat=tat)
        name, cost, group_cost = self.name, _cost(self.config.starts), _cost(self.config.group_starts)
        return [
            LimitUse(name, group, cost, group_cost, slot, group_slot)
            for group, slot, group_slot in zip(groups, *taken, strict=True)
        ]


def _cost(rate: Rate | None) -> int:
    # Rounded down: what is given back is never more than was taken.
    return 0 if rate is None else rate.period_us // rate.count
