"""Rates and latencies of the last ten minutes, sampled from this node's metrics for the charts."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from itertools import accumulate

from workerd.gateway.backend import Backend
from workerd.gateway.periodic import repeat
from workerd.messages import Series
from workerd.metrics import families

SAMPLE_INTERVAL_S = 5.0
MAX_SAMPLES = 120
"""Ten minutes."""
FAILED_OUTCOMES = frozenset({"error", "failure", "refused", "deadline", "crashed", "oom", "lost"})
UNCOUNTED_OUTCOMES = frozenset({"skipped", "interrupted"})

Buckets = dict[float, float]
"""Cumulative counts by upper bound."""


@dataclass(frozen=True)
class Times:
    """A histogram: cumulative counts by upper bound, and the sum of what was observed."""

    counts: Buckets = field(default_factory=dict)
    sum_s: float = 0.0

    def since(self, before: Times) -> Times:
        """What was observed after an earlier reading."""
        added = {bound: count - before.counts.get(bound, 0.0) for bound, count in sorted(self.counts.items())}
        return Times(added, self.sum_s - before.sum_s)

    @property
    def count(self) -> float:
        return max(self.counts.values(), default=0.0)

    @property
    def mean(self) -> float | None:
        """None without observations."""
        return self.sum_s / self.count if self.count > 0 else None

    def within(self, share: float) -> float | None:
        """A time that at least this share of the observations did not exceed; None without observations.

        No guess inside a bucket: it is the bound of the bucket, or less where the sum leaves no more.
        """
        rank = max(1.0, math.ceil(share * self.count - 1e-9))
        lower = below = least_sum = 0.0
        for bound, count in self.counts.items():
            if count >= rank and self.count > 0:
                # The observations from `rank` on are at least as long as this one.
                earlier = least_sum + lower * (rank - 1 - below)
                return max(lower, min(bound, (self.sum_s - earlier) / (self.count - rank + 1)))
            least_sum += lower * (count - below)
            lower, below = bound, count
        return None


@dataclass(frozen=True)
class Totals:
    """Counters since the start of the node, read at the monotonic time `at`; times in seconds."""

    at: float
    succeeded: float = 0.0
    failed: float = 0.0
    run: Times = Times()
    queue: Times = Times()


@dataclass(frozen=True)
class Sample:
    """One interval: attempts per second, and times in seconds; None: nothing was measured.

    `run_p95`: 95 % of the attempts ran no longer.
    """

    succeeded: float | None = None
    failed: float | None = None
    run_mean: float | None = None
    run_p95: float | None = None
    queue_mean: float | None = None
    queue_p95: float | None = None


def totals_of(counted: Iterable[Series]) -> Totals:
    """The counters as they are now in the roles' metrics."""
    succeeded = failed = 0.0
    buckets: dict[str, Buckets] = {families.RUN_SECONDS.name: {}, families.QUEUE_SECONDS.name: {}}
    sums = dict.fromkeys(buckets, 0.0)
    for family, labels, numbers in counted:
        if family == families.ATTEMPTS.name:
            outcome = labels[families.ATTEMPTS.labels.index("outcome")]
            if outcome in FAILED_OUTCOMES:
                failed += numbers[0]
            elif outcome not in UNCOUNTED_OUTCOMES:
                succeeded += numbers[0]
        elif family in buckets:
            sums[family] += numbers[0]
            counts = buckets[family]
            cumulative = accumulate(numbers[1:])
            for bound, count in zip((*families.SECONDS, float("inf")), cumulative, strict=True):
                counts[bound] = counts.get(bound, 0.0) + count
    return Totals(
        at=time.monotonic(),
        succeeded=succeeded,
        failed=failed,
        run=Times(buckets[families.RUN_SECONDS.name], sums[families.RUN_SECONDS.name]),
        queue=Times(buckets[families.QUEUE_SECONDS.name], sums[families.QUEUE_SECONDS.name]),
    )


def sample_between(before: Totals, after: Totals) -> Sample:
    """The rates and times of the interval between two readings."""
    run, queue = after.run.since(before.run), after.queue.since(before.queue)
    seconds = max(0.001, after.at - before.at)
    return Sample(
        succeeded=max(0.0, after.succeeded - before.succeeded) / seconds,
        failed=max(0.0, after.failed - before.failed) / seconds,
        run_mean=run.mean,
        run_p95=run.within(0.95),
        queue_mean=queue.mean,
        queue_p95=queue.within(0.95),
    )


class History:
    """Samples the metrics every SAMPLE_INTERVAL_S, and keeps MAX_SAMPLES."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._totals: Totals | None = None
        self._samples: deque[Sample] = deque(maxlen=MAX_SAMPLES)

    async def run(self) -> None:
        """Sample until cancelled."""
        await repeat("history", SAMPLE_INTERVAL_S, self._sample)

    async def _sample(self) -> None:
        counted = await self._backend.supervisor.counted()
        totals = None if counted is None else totals_of(counted)
        if self._totals is not None and totals is not None:
            self._samples.append(sample_between(self._totals, totals))
        elif self._samples:
            self._samples.append(Sample())  # a gap
        self._totals = totals

    @property
    def span_s(self) -> float:
        """The time that the samples cover."""
        return len(self._samples) * SAMPLE_INTERVAL_S

    def series(self) -> dict[str, list[float | None]]:
        """The samples by field, oldest first."""
        samples = tuple(self._samples)
        return {f.name: [getattr(sample, f.name) for sample in samples] for f in fields(Sample)}
