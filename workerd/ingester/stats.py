"""Attempts, run and queue times, and batches, counted until the next Beat takes them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from workerd.job import ENDED, Status
from workerd.messages import Series
from workerd.metrics import families
from workerd.metrics.series import StoreErrorCounts
from workerd.outcome import Outcome, Reason

_MICRO = 1_000_000
_SECONDS_IN_US = [int(bound * _MICRO) for bound in families.SECONDS]


class _Observations:
    """One histogram series: counts by bucket, and the sum, in the unit of the bounds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total: float = 0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def numbers(self, unit: int = 1) -> list[float]:
        """As a Series has them; `unit`: how many units of the bounds are one of the exported sum."""
        return [self.total / unit, *self.counts]


def success_label(success: bool | None) -> str:
    """`none` for what neither succeeded nor failed: cancelled, released by a dead node."""
    return "none" if success is None else "true" if success else "false"


class IngestStats:
    """Counts outcomes that took effect, and batches."""

    def __init__(self, handlers: Iterable[str] = ()) -> None:
        """`handlers`: whose new errors are counted from 0, so that a rate sees the first one."""
        self._errors = StoreErrorCounts()
        self._reset()
        self._new_errors.update(dict.fromkeys(handlers, 0))

    def _reset(self) -> None:
        self._attempts: Counter[tuple[str, Reason, bool | None, Status]] = Counter()
        self._runs: dict[tuple[str, bool | None], _Observations] = {}
        self._queues: dict[str, _Observations] = {}
        self._new_errors: Counter[str] = Counter()
        self._spans: Counter[str] = Counter()
        self._batch_rows = _Observations(families.INGEST_BATCH.bounds)
        self._batch_seconds = _Observations(families.INGEST_SECONDS.bounds)

    def recorded(self, outcomes: Iterable[Outcome]) -> None:
        """Count outcomes that took effect; releases and skipped runs are no runs."""
        attempts, runs, queues = self._attempts, self._runs, self._queues
        for outcome in outcomes:
            reason = outcome.reason
            if reason is None or reason is Reason.SKIPPED:
                continue
            handler, success = outcome.handler, outcome.success
            attempts[handler, reason, success, outcome.status] += 1
            run_us = outcome.usage.run_us
            if run_us is not None:
                observed = runs.get((handler, success))
                if observed is None:
                    observed = runs[handler, success] = _Observations(_SECONDS_IN_US)
                observed.add(run_us)
            if outcome.started_at is not None and outcome.run_at is not None:
                observed = queues.get(handler)
                if observed is None:
                    observed = queues[handler] = _Observations(_SECONDS_IN_US)
                observed.add(max(0, outcome.started_at - outcome.run_at))

    def new_errors(self, handlers: Iterable[str]) -> None:
        """Count error groups that are new, or open again, by their handlers."""
        self._new_errors.update(handlers)

    def spans(self, counts: Mapping[str, int]) -> None:
        """Count spans by what became of them."""
        self._spans.update(counts)

    def batch(self, rows: int, seconds: float) -> None:
        """Count a committed transaction."""
        self._batch_rows.add(rows)
        self._batch_seconds.add(seconds)

    def take(self, store_errors: Mapping[int, int]) -> list[Series]:
        """What was counted since the last call; `store_errors` is `store.stats.errors`."""
        series: list[Series] = self._errors.take(store_errors)
        for (handler, reason, success, status), count in self._attempts.items():
            series.append((families.ATTEMPTS.name, (handler, reason.value, success_label(success)), [count]))
            if status in ENDED:
                series.append((families.JOBS_ENDED.name, (handler, status.value), [count]))
        for (handler, success), observed in self._runs.items():
            labels = handler, success_label(success)
            series.append((families.RUN_SECONDS.name, labels, observed.numbers(_MICRO)))
        for handler, observed in self._queues.items():
            series.append((families.QUEUE_SECONDS.name, (handler,), observed.numbers(_MICRO)))
        for handler, count in self._new_errors.items():
            series.append((families.ERRORS_NEW.name, (handler,), [count]))
        for result, count in self._spans.items():
            series.append((families.SPANS.name, (result,), [count]))
        if self._batch_rows.total:
            series.append((families.INGEST_BATCH.name, (), self._batch_rows.numbers()))
            series.append((families.INGEST_SECONDS.name, (), self._batch_seconds.numbers()))
        self._reset()
        return series
