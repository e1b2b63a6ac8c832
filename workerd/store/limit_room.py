"""What a limit leaves to one claim, and taking of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from workerd.config.limit_config import LimitConfig
from workerd.job import Claim, LimitUse
from workerd.rate_limit import Rate
from workerd.store import limits, slots
from workerd.store.base import Tx
from workerd.store.claim_window import LimitedHandler
from workerd.store.limits import RateKey, RateRow
from workerd.store.session import Row
from workerd.store.slots import GROUP, LIMIT


class LimitRoom:
    """What a limit leaves to a handler: of itself, and of each group."""

    def __init__(
        self,
        now: int,
        handler: LimitedHandler,
        config: LimitConfig,
        row: RateRow,
        taken: list[Row],
        groups: list[Row],
    ) -> None:
        self._handler = handler.name
        self._own = handler.sharing | {handler.name}
        assert handler.limit is not None
        self.name = handler.limit
        self.config = config
        self.row = row
        self.now = now
        self.slots = slots.read(taken)
        self.groups = limits.read_group_rates(groups)
        self._started: Counter[str] = Counter()
        self._started_in_all = 0
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
        kept = self.row.is_kept(self.now, self._own)
        return self.config.concurrency - kept - self.slots.of_limit.bit_count() - self._started_in_all

    def _free_group_slots(self, group: str) -> int | None:
        """The same of a group."""
        if self.config.group_concurrency is None:
            return None
        row = self.groups.get(group)
        kept = row is not None and row.is_kept(self.now, self._own)
        running = self.slots.of_groups.get(group, 0).bit_count() + self._started[group]
        return self.config.group_concurrency - kept - running

    @property
    def full(self) -> dict[RateKey, RateRow]:
        """The limit, with its row, if its slots are all taken or kept; else nothing."""
        free = self._free_slots
        return {} if free is None or free > 0 else {RateKey(self.name, LIMIT, ""): self.row}

    def full_groups(self, groups: Iterable[str]) -> dict[RateKey, RateRow]:
        """Those of these groups, with their rows, whose slots are all taken or kept."""
        free = {group: self._free_group_slots(group) for group in groups}
        return {
            RateKey(self.name, GROUP, group): self.groups.get(group, RateRow())
            for group, count in free.items()
            if count is not None and count <= 0
        }

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
        limits.write_rates(tx, tats)
        self._keep_no_longer(tx, groups)
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

    def _keep_no_longer(self, tx: Tx, groups: Sequence[str]) -> None:
        """What was kept for the handler has been taken."""
        used = {RateKey(self.name, LIMIT, ""): self.row}
        if self.groups:
            used |= {RateKey(self.name, GROUP, g): self.groups[g] for g in set(groups) & self.groups.keys()}
        limits.keep_no_longer(tx, [key for key, row in used.items() if row.next_handler == self._handler])


def _cost(rate: Rate | None) -> int:
    # Rounded down: what is given back is never more than was taken.
    return 0 if rate is None else rate.period_us // rate.count
