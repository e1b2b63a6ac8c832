"""Turns of handlers at the slots of a limit that they share, over all nodes.

The node that ends a job knows immediately that its slot is free, and claims the next job before any other
node looks. So a handler that gets nothing reserves the next slot, in the row of the limit or of the group,
which claims lock anyway: other handlers leave one free. A handler that got a reserved slot then has a turn of
some time without new reservations, since a slot that changes nodes is unused for a moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from workerd.clock import SECOND
from workerd.config.limit_config import LimitConfig
from workerd.store import limits, slots
from workerd.store.base import Tx
from workerd.store.limited_batch import LimitedBatch
from workerd.store.limits import RateKey, RateRow
from workerd.store.slot_numbers import GROUP, LIMIT

TURN_US = 250_000
"""From taking a reserved slot until another may be reserved."""
RETRY_S = (0.01, 0.25)
"""From one claim to the next while a slot is missing: an eighth of the wait so far, within these bounds. The
longest is a turn, so that all handlers see its end coming and retry then."""
KEPT_US = 200_000
"""Minimum time for which a slot is reserved; else three retries."""
MAX_NEW = 8
"""Slots that one claim reserves at most."""
FORGOTTEN_S = 2.0
"""A wait that no claim has seen for so long is over."""


class _Wait(NamedTuple):
    """Since when a slot is wanting, or was asked for; and when that was seen last. Monotonic seconds."""

    since: float
    seen: float


class _Next(NamedTuple):
    """The columns `next_handler` and `next_until`."""

    handler: str | None
    until: int | None


class SlotTurns:
    """The slots that the handlers of one node wait for and ask for.

    `mono`: monotonic seconds.
    """

    def __init__(self, mono: Callable[[], float] = time.monotonic) -> None:
        self._mono = mono
        self._contested: frozenset[str] = frozenset()
        self._waits: dict[str, dict[RateKey, _Wait]] = {}

    def agree(self, own: Mapping[str, str], others: Iterable[Mapping[str, str]]) -> None:
        """Learn the limits of the handlers of this node, and of the other live ones."""
        users: dict[str, set[str]] = {}
        for limit_of in others:
            for handler, limit in limit_of.items():
                users.setdefault(limit, set()).add(handler)
        self._contested = frozenset(h for h, limit in own.items() if users.get(limit, set()) - {h})

    def is_contested(self, handler: str) -> bool:
        """Whether another handler has its limit on another live node."""
        return handler in self._contested

    def settle(self, tx: Tx, handler: str, config: LimitConfig, batch: LimitedBatch) -> LimitedBatch:
        """Ask for slots that are wanting, and say what becomes of those that were kept for the handler.

        Within the transaction of the claim: changes nothing here, since it may run again.
        """
        now, taken, full = tx.now, _taken(batch), batch.full or {}
        written: dict[RateKey, _Next] = {
            key: _Next(None, now + TURN_US if key in taken else None)
            for key in batch.kept
            if key in taken or key not in full
        }
        moments = [] if batch.retry_at is None else [batch.retry_at]
        asked: set[RateKey] = set()
        wanting = [key for key in full if key not in taken]
        for key in _with_few_slots(tx, handler, config, wanting):
            row, retry_us = full[key], self._retry_us(handler, key)
            until = row.asked_until(now)
            if until is None and len(asked) < MAX_NEW:
                asked.add(key)
                retry_us = round(RETRY_S[0] * SECOND)
            moments.append(now + retry_us)
            if until is not None and row.next_handler is None:
                moments.append(until)
            is_running_out = until is not None and until < now + 2 * retry_us
            if key in asked or (row.next_handler == handler and is_running_out):
                written[key] = _Next(handler, now + max(KEPT_US, 3 * retry_us))
        limits.write_next(tx, written)
        retry_at = min(moments, default=None)
        return batch._replace(retry_at=retry_at, asked=frozenset(asked), row=_after(batch.row, written))

    def learn(self, handler: str, batch: LimitedBatch) -> None:
        """The transaction with this batch was committed."""
        if batch.full is None:
            return
        now, before, taken = self._mono(), self._waits.get(handler, {}), _taken(batch)
        self._waits[handler] = {
            key: _Wait(now if key in batch.asked else self._since(before.get(key), now), now)
            for key in batch.full
            if key not in taken
        }

    def _since(self, wait: _Wait | None, now: float) -> float:
        return now if wait is None or now - wait.seen > FORGOTTEN_S else wait.since

    def _retry_us(self, handler: str, key: RateKey) -> int:
        now = self._mono()
        since = self._since(self._waits.get(handler, {}).get(key), now)
        least, most = RETRY_S
        return round(min(most, max(least, (now - since) / 8)) * SECOND)


def _with_few_slots(tx: Tx, handler: str, config: LimitConfig, wanting: Collection[RateKey]) -> list[RateKey]:
    """Those of which the handler has less than half of the slots: else it would keep others from asking."""
    if not wanting:
        return []
    most = {LIMIT: config.concurrency or 0, GROUP: config.group_concurrency or 0}
    (limit,) = {key.limit for key in wanting}
    counts = slots.counts_of(tx, limit, handler)
    return [key for key in wanting if 2 * counts.get((key.scope, key.group), 0) < most[key.scope]]


def _after(row: RateRow | None, written: Mapping[RateKey, _Next]) -> RateRow | None:
    """The row of the limit with what was written there."""
    for key, (handler, until) in written.items():
        if key.scope == LIMIT and row is not None:
            return row._replace(next_handler=handler, next_until=until)
    return row


def _taken(batch: LimitedBatch) -> set[RateKey]:
    """The limit and the groups of which the claim took a slot."""
    found: set[RateKey] = set()
    for claim in batch.batch.claims:
        use = claim.limited
        if use is not None and use.slot is not None:
            found.add(RateKey(use.name, LIMIT, ""))
        if use is not None and use.group_slot is not None:
            found.add(RateKey(use.name, GROUP, use.group))
    return found
