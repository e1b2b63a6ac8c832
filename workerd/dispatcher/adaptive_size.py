"""How much one transaction takes on: less on a slow line, so that the lease is renewed in time."""

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
    """A number of rows or bytes: halved after a slow transaction, doubled after a quick one, up to `most`.

    `value`: of the next transaction.
    """

    def __init__(self, most: int, first: int | None = None) -> None:
        self._most = most
        self.value = most if first is None else min(first, most)

    def halve(self) -> None:
        """The transaction was too large for another reason."""
        self.value = max(1, self.value // 2)

    def note(self, seconds: float, used: int) -> None:
        """A transaction that used so much of it took so long."""
        if seconds > SLOW_S:
            self.value = max(1, min(self.value, max(used, 2)) // 2)
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
