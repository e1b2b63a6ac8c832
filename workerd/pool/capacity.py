"""How many claims the pool can take: for idle workers, and a buffer that hides the latency of claims."""

from __future__ import annotations

from typing import NamedTuple

BUFFER_S = 0.025
"""Seconds of work that may wait in the pool: about the time that a claim and its demand take."""
MAX_BUFFER_S = 0.1
"""Upper bound of the buffer when claims are slow (disk, network, load)."""
MAX_OVERTAKEN_S = 0.1
"""Claims that have waited here for longer are not overtaken."""
MAX_RATED_WAIT_S = 0.1
"""Jobs with a rate, for which a claim counts as a start, are released with their token after this wait."""
BATCHES_IN_BUFFER = 2
"""Full claims that may wait, however short the runs. Measured with no-ops on SQLite, where a claim waits for
outcomes that are being written: with one the workers ran dry between any two claims, 4 % less throughput."""
CLAIMS_IN_BUFFER = 3
_SMOOTHING = 0.05
"""Smoothing factor of the run-time moving average."""


class Capacity(NamedTuple):
    """Claims that the pool could take: for idle workers, and to wait for busy ones."""

    idle: int
    buffer: int


class ClaimTimeAverage:
    """Exponential moving average of how long a claim takes, from its transaction's begin to the pool."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def add(self, seconds: float) -> None:
        """Add the duration of one claim."""
        self._seconds += (seconds - self._seconds) * 4 * _SMOOTHING

    @property
    def buffer_s(self) -> float:
        """Seconds of work that may wait in the pool, so that no worker waits for a claim."""
        return min(MAX_BUFFER_S, max(BUFFER_S, CLAIMS_IN_BUFFER * self._seconds))


class RunTimeAverage:
    """Exponential moving average of how long a run takes; `seconds` is None before the first."""

    def __init__(self) -> None:
        self.seconds: float | None = None

    def add(self, seconds: float) -> None:
        """Add the duration of one run."""
        before = self.seconds
        self.seconds = seconds if before is None else before + (seconds - before) * _SMOOTHING

    def runs_within(self, seconds: float, workers: int, limit: int) -> int:
        """Runs that `workers` finish within `seconds`, at most `limit`; 0 if one run takes longer."""
        if self.seconds is None or self.seconds > seconds:
            return 0
        return min(limit, int(workers * seconds / max(self.seconds, 1e-6)))
