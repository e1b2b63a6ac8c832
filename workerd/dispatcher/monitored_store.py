"""The dispatcher's store: its availability, how long it has answered without a gap, and its clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from workerd.clock import SECOND
from workerd.errors import StoreAway, StoreBusy
from workerd.store.availability import StoreAvailability
from workerd.store.base import Store, Tx

T = TypeVar("T")

CLOCK_TOLERANCE_US = SECOND
"""By which a clock that is not set may differ between two readings."""


class MonitoredStore:
    """Runs transactions and records what law 8 needs to know of the answers.

    `max_gap_s`: longest time between two answers that still counts as answering without a gap.
    """

    def __init__(self, store: Store, max_gap_s: float) -> None:
        self.store = store
        self.availability = StoreAvailability("dispatcher", store)
        self._max_gap_s = max_gap_s
        self._answered_at: float | None = None
        self._gapless_since = 0.0
        # Store time minus monotonic time: at least so much, by the readings since it was last set, and at
        # most so much, by the last one alone.
        self._offset_us: int | None = None
        self._most_offset_us = 0
        self._latest_offset_us = 0  # the largest ever
        self._plain_text = False

    def run(self, transaction: Callable[[Tx], T]) -> T:
        """One whole transaction. Raises StoreAway, StoreBusy, CommitUnknown, StoreRefused."""
        return self._record(self.store.run, transaction)

    def read(self, transaction: Callable[[Tx], T]) -> T:
        """As `run`, for a transaction that only reads."""
        return self._record(self.store.read, transaction)

    def read_one(self, statement: Callable[[Tx], T]) -> T:
        """As `read`, for a single statement: one round trip."""
        return self._record(lambda work: self.store.alone(work, write=False), statement)

    def call(self, function: Callable[[], T]) -> T:
        """As `run`, for what the store does outside of our transactions."""
        return self._record(lambda work: work(), function)

    def _record(self, execute: Callable[[Callable[..., T]], T], work: Callable[..., T]) -> T:
        try:
            value = execute(work)
        except StoreBusy:
            raise
        except StoreAway as error:
            self.lost(error)
            raise
        now = time.monotonic()
        if self._answered_at is None or now - self._answered_at > self._max_gap_s:
            self._gapless_since = now
        self._answered_at = now
        if self.store.plain_text is not self._plain_text:
            self._plain_text = self.store.plain_text
            if self._plain_text:
                self.availability.warn_of_plain_text(self.store.shown)
        return value

    def lost(self, error: StoreAway) -> bool:
        """The store is unavailable; returns whether an outage began with this error."""
        self._answered_at = None
        return self.availability.lost(error)

    @property
    def answered_for_s(self) -> float:
        """Seconds for which the store has been seen to answer without a gap."""
        if self._answered_at is None or time.monotonic() - self._answered_at > self._max_gap_s:
            return 0.0
        return self._answered_at - self._gapless_since

    # -- the store's clock

    def set_clock(self, store_us: int, asked_ns: int, answered_ns: int) -> int:
        """The store's clock showed `store_us` between these monotonic moments.

        Returns by how much it was set since it was last read, microseconds, negative if back; 0 if it just
        went on.
        """
        least, most = store_us - answered_ns // 1000, store_us - asked_ns // 1000
        before, self._most_offset_us = self._offset_us, most
        # What is known from readings that were answered sooner stays: a slow one would make all that is
        # waited for late until the next.
        self._offset_us = least if before is None or not least <= before <= most else before
        self.note_time(store_us, answered_ns)
        if before is None or least - CLOCK_TOLERANCE_US <= before <= most + CLOCK_TOLERANCE_US:
            return 0
        return least - before if least > before else most - before

    def note_time(self, store_us: int, mono_ns: int) -> None:
        """The store's clock showed `store_us` by then, as a claim says."""
        least = store_us - mono_ns // 1000
        self._latest_offset_us = max(self._latest_offset_us, least)
        if self._offset_us is not None and self._offset_us < least <= self._most_offset_us:
            self._offset_us = least

    @property
    def knows_time(self) -> bool:
        """Whether the store's clock was ever read."""
        return self._offset_us is not None

    def time_at(self, mono_ns: int) -> int:
        """The store's time at a monotonic moment of this machine; its clock must have been read."""
        assert self._offset_us is not None
        return mono_ns // 1000 + self._offset_us

    def latest_time_at(self, mono_ns: int) -> int:
        """The latest time that the store can have shown at a monotonic moment, however its clock was set."""
        return mono_ns // 1000 + self._latest_offset_us

    def now(self) -> int:
        """The store's time, without asking it."""
        return self.time_at(time.monotonic_ns())

    def seconds_until(self, store_us: int) -> float:
        """How long it is until `store_us`; 0 if that is over."""
        return max(0.0, (store_us - self.now()) / SECOND)
