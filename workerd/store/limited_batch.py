"""What one claim of a limited handler brought, and what it learned of queues and limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from workerd.fairness import FairTurns, Waiting
from workerd.store.claims import ClaimBatch, Cursor
from workerd.store.limits import RateKey, RateRow
from workerd.store.slot_numbers import NO_RANGE


class LimitedBatch(NamedTuple):
    """What one transaction claimed of a limited handler.

    more
        Whether further jobs may fit at once.
    retry_at
        Store time, microseconds, at which the next may fit: by its rate or hold, or since a slot is kept for
        others no longer.
    heads
        What it learned of queues: their first jobs, None for those that are empty.
    scanned
        Whether it looked for queues, then `cursor` is where to go on.
    turns
        The turns as they are after it.
    row
        The row of its limit as it is after it.
    free_range
        With it: numbers of the limit's slots that are free after it.
    busy
        Whether another claim has its limit locked.
    full
        Where jobs wait for nothing but a free slot: the limit and groups of it, with their rows. None if that
        was not asked for.
    kept
        Where the next slot was kept for the handler.
    asked
        Where it asked for the next slot.
    hiding
        The groups of the first rows, if these are few and there are more rows than were looked at; None if it
        did not look.
    """

    batch: ClaimBatch
    more: bool = False
    retry_at: int | None = None
    heads: Mapping[str, Waiting | None] = {}
    scanned: bool = False
    cursor: str | None = None
    turns: FairTurns | None = None
    row: RateRow | None = None
    free_range: range = NO_RANGE
    busy: bool = False
    full: Mapping[RateKey, RateRow] | None = None
    kept: Mapping[RateKey, RateRow] = {}
    asked: frozenset[RateKey] = frozenset()
    hiding: frozenset[str] | None = None

    @classmethod
    def empty(cls, cursor: Cursor | None, *, paused: bool = False, busy: bool = False) -> LimitedBatch:
        """Nothing was claimed; `cursor`: for the next claim."""
        return cls(ClaimBatch([], [], cursor, 0, paused=paused), busy=busy)
