"""How many claims the pool can take: for idle workers, and a buffer that hides the latency of claims."""

from __future__ import annotations

from typing import NamedTuple

BUFFER_S = 0.025
"""Seconds of work that may wait in the pool: about the time that a claim takes."""
_SMOOTHING = 0.05
"""Smoothing factor of the run-time moving average."""


class Capacity(NamedTuple):
    """Claims that the pool could take: for idle workers, and to wait for busy ones."""

    idle: int
    buffer: int


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
