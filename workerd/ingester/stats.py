"""Counts of attempts and batches, summed here and written to the metrics now and then."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter as Count
from collections.abc import Iterable, Mapping

from workerd.metrics import families
from workerd.metrics.families import Counter, Gauge, Histogram, StoreErrors
from workerd.outcome import Outcome, Reason

WRITE_EVERY = 0.1
"""Seconds between two writes of the sums; a killed ingester loses so much of its counts, of nothing else."""

_MICRO = 1_000_000
_RUN_BOUNDS = [int(bound * _MICRO) for bound in families.SECONDS]


class _Sums:
    """One histogram series between two writes: counts by bucket, and the sum in microseconds."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(_RUN_BOUNDS) + 1)
        self.total = 0

    def add(self, us: int) -> None:
        self.counts[bisect_left(_RUN_BOUNDS, us)] += 1
        self.total += us


def success_label(success: bool | None) -> str:
    """`none` for what neither succeeded nor failed: cancelled, given back by a dead node."""
    return "none" if success is None else "true" if success else "false"


class IngestStats:
    """Counts outcomes that took effect, batches, the spool and the store's errors."""

    def __init__(self) -> None:
        self._attempts_total = Counter(families.ATTEMPTS)
        self._run_seconds = Histogram(families.RUN_SECONDS)
        self._queue_seconds = Histogram(families.QUEUE_SECONDS)
        self._batch = Histogram(families.INGEST_BATCH)
        self._seconds = Histogram(families.INGEST_SECONDS)
        self._spool_bytes = Gauge(families.SPOOL_BYTES)
        self._errors = StoreErrors()
        self._attempts: Count[tuple[str, Reason, bool | None]] = Count()
        self._runs: dict[tuple[str, bool | None], _Sums] = {}
        self._queues: dict[str, _Sums] = {}

    def recorded(self, outcomes: Iterable[Outcome]) -> None:
        """These outcomes took effect. Releases and skipped runs are no runs and are not counted."""
        attempts, runs, queues = self._attempts, self._runs, self._queues
        for outcome in outcomes:
            reason = outcome.reason
            if reason is None or reason is Reason.SKIPPED:
                continue
            handler, success = outcome.handler, outcome.success
            attempts[handler, reason, success] += 1
            run_us = outcome.usage.run_us
            if run_us is not None:
                sums = runs.get((handler, success))
                if sums is None:
                    sums = runs[handler, success] = _Sums()
                sums.add(run_us)
            if outcome.started_at is not None and outcome.run_at is not None:
                sums = queues.get(handler)
                if sums is None:
                    sums = queues[handler] = _Sums()
                sums.add(max(0, outcome.started_at - outcome.run_at))

    def batch(self, rows: int, seconds: float) -> None:
        """A transaction of so many outcomes was committed after so long."""
        _observe(self._batch, rows)
        _observe(self._seconds, seconds)

    def write(self, spool_bytes: int, errors: Mapping[int, int]) -> None:
        """Bring the sums to where the gateway reads them."""
        for (handler, reason, success), count in self._attempts.items():
            self._attempts_total.add((handler, reason.value, success_label(success)), count)
        for (handler, success), sums in self._runs.items():
            self._run_seconds.add((handler, success_label(success)), sums.counts, sums.total / _MICRO)
        for handler, sums in self._queues.items():
            self._queue_seconds.add((handler,), sums.counts, sums.total / _MICRO)
        self._attempts.clear()
        self._runs.clear()
        self._queues.clear()
        self._spool_bytes.set(spool_bytes, time.time())
        self._errors.write(errors)


def _observe(histogram: Histogram, value: float) -> None:
    counts = histogram.buckets()
    counts[bisect_left(histogram.bounds, value)] = 1
    histogram.add((), counts, value)
