"""How much one transaction takes on: less on a slow line, so that all else is done in time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from workerd.errors import StoreAway

SLOW_S = 1.0
"""A transaction that took longer was too large."""
QUICK_S = 0.25
"""After one that took less and used what it might, the next may be twice as large."""


class AdaptiveSize:
    """A number of rows or bytes: halved after a slow transaction, doubled after a quick one.

    It stays between `least` and `most`. `value`: of the next transaction.
    """

    def __init__(self, most: int, first: int | None = None, *, least: int = 1) -> None:
        self._most = most
        self._least = least
        self.value = most if first is None else min(first, most)

    @property
    def is_reduced(self) -> bool:
        """Whether it is below `most`."""
        return self.value < self._most

    def halve(self, used: int | None = None) -> None:
        """The transaction, which used so much of it, was too large."""
        value = self.value if used is None else min(self.value, used)
        self.value = max(self._least, value // 2)

    def note(self, seconds: float, used: int) -> None:
        """A transaction that used so much of it took so long."""
        if seconds > SLOW_S:
            self.halve(used)
        elif seconds < QUICK_S and 2 * used >= self.value:
            self.value = min(self._most, 2 * self.value)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Note the transaction of the block, which uses all of it, also where it fails for want of time."""
        began_at = time.monotonic()
        size = self.value
        try:
            yield
        except StoreAway:
            self.note(time.monotonic() - began_at, size)
            raise
        self.note(time.monotonic() - began_at, size)
