"""A rate over time, from a counter that only grows."""

from __future__ import annotations

import time

SHORTEST_SPAN_S = 0.5


class Rate:
    """Counts per second, averaged since the last reading at least SHORTEST_SPAN_S ago."""

    def __init__(self) -> None:
        self._count = 0
        self._read_at = time.monotonic()
        self._rate = 0.0

    def per_second(self, count: int) -> float:
        """The rate at which the counter reached `count`."""
        now = time.monotonic()
        if now - self._read_at >= SHORTEST_SPAN_S:
            self._rate = (count - self._count) / (now - self._read_at)
            self._count, self._read_at = count, now
        return round(self._rate, 1)
