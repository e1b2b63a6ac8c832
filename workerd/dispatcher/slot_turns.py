"""Turns of nodes at the slots of a limit that they share by different handlers.

A node that ends a job knows at once that its slot is free, and has claimed the next job before any other node
looks. So a node whose handler gets nothing asks for the next slot: it is kept for the handler, and nodes that
do not have it leave it free. Where all nodes of a limit have the same handlers, none is asked for: whoever is
first may run whatever waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from workerd.clock import SECOND
from workerd.store import limits
from workerd.store.base import Tx
from workerd.store.limited_claims import LimitedBatch
from workerd.store.limits import RateKey
from workerd.store.slots import GROUP, LIMIT

TURN_S = 0.25
"""After which a node that has got a slot asks for another: a slot that changes nodes is free for a moment."""
RETRY_S = (0.01, 1.0)
"""From one claim to the next while no slot is free: an eighth of the wait so far, within these bounds."""
KEPT_S = 0.2
"""For which the next slot is kept at least; else for three tries."""
MAX_REMEMBERED = 1_000
"""Limits and groups of which it is known when this node got a slot."""


class SlotTurns:
    """What one node has got of slots of late, and asks for.

    `mono`: monotonic seconds.
    """

    def __init__(self, mono: Callable[[], float] = time.monotonic) -> None:
        self._mono = mono
        self._contested: frozenset[str] = frozenset()
        self._got_at: dict[RateKey, float] = {}
        self._waits_since: dict[str, float] = {}
        """Since when a handler's claims find no slot, or since it first asked for one."""
        self._has_asked: set[str] = set()

    def agree(self, own: Mapping[str, str], others: Iterable[Mapping[str, str]]) -> None:
        """Learn the limits of the handlers of this node, and of all live ones."""
        there = list(others)
        self._contested = frozenset(
            handler
            for handler, limit in own.items()
            if any(handler not in theirs and limit in theirs.values() for theirs in there)
        )

    def is_contested(self, handler: str) -> bool:
        """Whether another node has its limit, but not this handler."""
        return handler in self._contested

    def ask(self, tx: Tx, handler: str, batch: LimitedBatch) -> LimitedBatch:
        """Ask for what the claim found full, and set when to try again.

        Within the transaction: changes nothing here, since it may run again.
        """
        if not batch.full:
            return batch
        retry_us = round(self._retry_s(handler) * SECOND)
        until = tx.now + max(round(KEPT_S * SECOND), 3 * retry_us)
        got = _taken(batch)
        asked = {
            key: until
            for key, row in batch.full.items()
            if key not in got
            and self._has_had_none(key)
            and not row.is_kept(tx.now, (handler,))
            and (row.next_until is None or row.next_until < tx.now + 2 * retry_us)
        }
        limits.keep_next(tx, handler, asked)
        retry_at = tx.now + retry_us
        return batch._replace(
            retry_at=retry_at if batch.retry_at is None else min(retry_at, batch.retry_at), asked=bool(asked)
        )

    def learn(self, handler: str, batch: LimitedBatch) -> None:
        """The transaction with this batch was committed."""
        if batch.busy:
            return
        now = self._mono()
        if batch.batch.claims:
            self._note_got(batch, now)
        if batch.batch.claims or not batch.full:
            self._waits_since.pop(handler, None)
            self._has_asked.discard(handler)
        if batch.full:
            self._waits_since.setdefault(handler, now)
        if batch.asked and handler not in self._has_asked:
            self._waits_since[handler] = now
            self._has_asked.add(handler)

    def _note_got(self, batch: LimitedBatch, now: float) -> None:
        if len(self._got_at) >= MAX_REMEMBERED:
            self._got_at = {key: at for key, at in self._got_at.items() if now - at < TURN_S}
        self._got_at.update(dict.fromkeys(_taken(batch), now))

    def _has_had_none(self, key: RateKey) -> bool:
        got_at = self._got_at.get(key)
        return got_at is None or self._mono() - got_at >= TURN_S

    def _retry_s(self, handler: str) -> float:
        waited = self._mono() - self._waits_since.get(handler, self._mono())
        least, most = RETRY_S
        return min(most, max(least, waited / 8))


def _taken(batch: LimitedBatch) -> set[RateKey]:
    """The limits and groups of which it took a slot."""
    found: set[RateKey] = set()
    for claim in batch.batch.claims:
        use = claim.limited
        if use is not None and use.slot is not None:
            found.add(RateKey(use.name, LIMIT, ""))
        if use is not None and use.group_slot is not None:
            found.add(RateKey(use.name, GROUP, use.group))
    return found
