"""The last minutes of this node's rates and latencies, kept for the charts; read from the metrics' files."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from workerd.metrics import exposition, families

EVERY = 5.0
"""Seconds between two looks."""
KEPT = 121
"""Looks that are remembered: ten minutes."""
BAD = frozenset({"error", "failure", "refused", "deadline", "crashed", "oom", "lost"})
"""Outcomes that nobody wished for."""

Buckets = dict[float, float]


@dataclass(frozen=True)
class Totals:
    """What was counted since the node's start: attempts that ended well and badly, and two histograms."""

    at: float
    good: float = 0.0
    bad: float = 0.0
    run: Buckets = field(default_factory=dict)
    queue: Buckets = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """Between two looks: ends a second, and quantiles in seconds; None where nothing ended."""

    good: float
    bad: float
    run_half: float | None
    run_most: float | None
    queue_half: float | None
    queue_most: float | None


def read(folder: Path) -> Totals:
    """The totals as the metrics' files have them now."""
    good = bad = 0.0
    buckets: dict[str, Buckets] = {families.RUN_SECONDS.name: {}, families.QUEUE_SECONDS.name: {}}
    for family in exposition.collect(folder):
        for sample in family.samples:
            if sample.name == families.ATTEMPTS.name:
                if sample.labels.get("outcome") in BAD:
                    bad += sample.value
                elif sample.labels.get("outcome") not in ("skipped", "interrupted"):
                    good += sample.value
            elif family.name in buckets and "le" in sample.labels:
                found = buckets[family.name]
                bound = float(sample.labels["le"])
                found[bound] = found.get(bound, 0.0) + sample.value
    return Totals(
        time.monotonic(), good, bad, buckets[families.RUN_SECONDS.name], buckets[families.QUEUE_SECONDS.name]
    )


def quantile(part: float, before: Mapping[float, float], after: Mapping[float, float]) -> float | None:
    """The value below which `part` of what came between two cumulative histograms lies, by its buckets."""
    grown = {bound: after[bound] - before.get(bound, 0.0) for bound in sorted(after)}
    total = max(grown.values(), default=0.0)
    if total <= 0:
        return None
    lower, below = 0.0, 0.0
    for bound, count in grown.items():
        if count >= part * total:
            if bound == float("inf"):
                return lower
            share = (part * total - below) / max(count - below, 1e-9)
            return lower + (bound - lower) * share
        lower, below = bound, count
    return lower


def between(before: Totals, after: Totals) -> Sample:
    """What happened between two looks."""
    seconds = max(0.001, after.at - before.at)
    return Sample(
        good=max(0.0, after.good - before.good) / seconds,
        bad=max(0.0, after.bad - before.bad) / seconds,
        run_half=quantile(0.5, before.run, after.run),
        run_most=quantile(0.95, before.run, after.run),
        queue_half=quantile(0.5, before.queue, after.queue),
        queue_most=quantile(0.95, before.queue, after.queue),
    )


class History:
    """Looks every few seconds, in a thread; remembers ten minutes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last: Totals | None = None
        self._samples: deque[Sample] = deque(maxlen=KEPT - 1)

    async def keep(self) -> None:
        """Look until cancelled."""
        while True:
            with contextlib.suppress(OSError, ValueError):
                totals = await asyncio.to_thread(read, self._folder)
                if self._last is not None:
                    self._samples.append(between(self._last, totals))
                self._last = totals
            await asyncio.sleep(EVERY)

    @property
    def samples(self) -> Sequence[Sample]:
        """The oldest first."""
        return tuple(self._samples)

    @property
    def span(self) -> str:
        """The time that the samples cover, in words."""
        seconds = len(self._samples) * EVERY
        return f"last {seconds / 60:.0f} min" if seconds >= 60 else f"last {seconds:.0f} s"


def by_name(samples: Sequence[Sample]) -> dict[str, list[float | None]]:
    """The samples as lines: a list for each field."""
    lines: dict[str, list[float | None]] = defaultdict(list)
    for sample in samples:
        for name in Sample.__dataclass_fields__:
            lines[name].append(getattr(sample, name))
    return lines
