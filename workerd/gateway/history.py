"""Rates and latencies of the last ten minutes, sampled from this node's metrics for the charts."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from itertools import accumulate

from workerd.gateway.backend import Backend
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
class Totals:
    """Counters since the start of the node, read at the monotonic time `at`; histograms in seconds."""

    at: float
    succeeded: float = 0.0
    failed: float = 0.0
    run: Buckets = field(default_factory=dict)
    queue: Buckets = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One interval: attempts per second, and quantiles in seconds, None without attempts."""

    succeeded: float
    failed: float
    run_p50: float | None
    run_p95: float | None
    queue_p50: float | None
    queue_p95: float | None


def totals_of(counted: Iterable[Series]) -> Totals:
    """The counters as they are now in the roles' metrics."""
    succeeded = failed = 0.0
    buckets: dict[str, Buckets] = {families.RUN_SECONDS.name: {}, families.QUEUE_SECONDS.name: {}}
    for family, labels, numbers in counted:
        if family == families.ATTEMPTS.name:
            outcome = labels[families.ATTEMPTS.labels.index("outcome")]
            if outcome in FAILED_OUTCOMES:
                failed += numbers[0]
            elif outcome not in UNCOUNTED_OUTCOMES:
                succeeded += numbers[0]
        elif family in buckets:
            counts = buckets[family]
            cumulative = accumulate(numbers[1:])
            for bound, count in zip((*families.SECONDS, float("inf")), cumulative, strict=True):
                counts[bound] = counts.get(bound, 0.0) + count
    return Totals(
        at=time.monotonic(),
        succeeded=succeeded,
        failed=failed,
        run=buckets[families.RUN_SECONDS.name],
        queue=buckets[families.QUEUE_SECONDS.name],
    )


def quantile(q: float, before: Mapping[float, float], after: Mapping[float, float]) -> float | None:
    """The q-quantile of what was observed between two readings, interpolated; None without observations."""
    added = {bound: after[bound] - before.get(bound, 0.0) for bound in sorted(after)}
    rank = q * max(added.values(), default=0.0)
    if rank <= 0:
        return None
    lower, below = 0.0, 0.0
    for bound, count in added.items():
        if count >= rank:
            if bound == float("inf"):
                return lower
            return lower + (bound - lower) * (rank - below) / max(count - below, 1e-9)
        lower, below = bound, count
    return lower


def sample_between(before: Totals, after: Totals) -> Sample:
    """The rates and quantiles of the interval between two readings."""
    seconds = max(0.001, after.at - before.at)
    return Sample(
        succeeded=max(0.0, after.succeeded - before.succeeded) / seconds,
        failed=max(0.0, after.failed - before.failed) / seconds,
        run_p50=quantile(0.5, before.run, after.run),
        run_p95=quantile(0.95, before.run, after.run),
        queue_p50=quantile(0.5, before.queue, after.queue),
        queue_p95=quantile(0.95, before.queue, after.queue),
    )


class History:
    """Samples the metrics every SAMPLE_INTERVAL_S, and keeps MAX_SAMPLES."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._totals: Totals | None = None
        self._samples: deque[Sample] = deque(maxlen=MAX_SAMPLES)

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            counted = await self._backend.counted()
            if counted is not None:
                totals = totals_of(counted)
                if self._totals is not None:
                    self._samples.append(sample_between(self._totals, totals))
                self._totals = totals
            await asyncio.sleep(SAMPLE_INTERVAL_S)

    @property
    def span_s(self) -> float:
        """The time that the samples cover."""
        return len(self._samples) * SAMPLE_INTERVAL_S

    def series(self) -> dict[str, list[float | None]]:
        """The samples by field, oldest first."""
        samples = tuple(self._samples)
        return {f.name: [getattr(sample, f.name) for sample in samples] for f in fields(Sample)}
