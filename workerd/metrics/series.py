"""Our own families, written in sums instead of one by one: what a batch changed costs a write a series."""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Mapping, Sequence

from workerd.metrics.names import STORE_ERRORS, Definition
from workerd.metrics.values import Value

SERIES_LIMIT = 10_000
"""Label sets of one family that a process keeps; what comes beyond them is not counted."""


class Counter:
    """A family that only grows."""

    def __init__(self, definition: Definition) -> None:
        self._definition = definition
        self._series: dict[tuple[str, ...], Value] = {}

    def add(self, labels: tuple[str, ...], amount: float) -> None:
        """Add to the series with these label values, in the definition's order."""
        value = self._series.get(labels)
        if value is None:
            if len(self._series) >= SERIES_LIMIT:
                return
            d = self._definition
            value = self._series[labels] = Value("counter", d.family, d.name, d.labels, labels, d.help)
        value.inc(amount)


class Gauge:
    """One number that a process knows best; shown as it was last set."""

    def __init__(self, definition: Definition) -> None:
        d = definition
        self._value = Value("gauge", d.name, d.name, (), (), d.help, multiprocess_mode="mostrecent")

    def set(self, value: float, timestamp: float) -> None:
        """Set it; the newest `timestamp` (seconds since the epoch) of all processes is shown."""
        self._value.set(value, timestamp)


class Histogram:
    """A family of observations, added bucket by bucket."""

    def __init__(self, definition: Definition) -> None:
        self._definition = definition
        self.bounds = definition.bounds
        self._series: dict[tuple[str, ...], tuple[Value, list[Value]]] = {}

    def buckets(self) -> list[int]:
        """Zeros to count in: one for each bound, in order, and one for what is above the last."""
        return [0] * (len(self.bounds) + 1)

    def add(self, labels: tuple[str, ...], counts: Sequence[int], total: float) -> None:
        """Add observations: how many fell into each bucket, and their sum."""
        series = self._series.get(labels)
        if series is None:
            if len(self._series) >= SERIES_LIMIT:
                return
            series = self._series[labels] = self._new(labels)
        for count, value in zip(counts, series[1], strict=True):
            if count:
                value.inc(count)
        series[0].inc(total)

    def _new(self, labels: tuple[str, ...]) -> tuple[Value, list[Value]]:
        d = self._definition
        names = (*d.labels, "le")
        bounds = [*(repr(float(bound)) for bound in d.bounds), "+Inf"]
        return (
            Value("histogram", d.name, f"{d.name}_sum", d.labels, labels, d.help),
            [Value("histogram", d.name, f"{d.name}_bucket", names, (*labels, le), d.help) for le in bounds],
        )


class StoreErrors:
    """What a store role adds of its own store's errors."""

    def __init__(self) -> None:
        self._family = Counter(STORE_ERRORS)
        self._told: Count[int] = Count()

    def write(self, errors: Mapping[int, int]) -> None:
        """Count what has come since the last call; `errors` is `store.stats.errors`."""
        for code, count in errors.items():
            if count > self._told[code]:
                self._family.add((str(code),), count - self._told[code])
                self._told[code] = count
