"""The metric families that dashboards and alerts rely on, and how roles add to them."""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from workerd.metrics.values import Value

SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0,
)  # fmt: skip
"""Upper bounds of how long jobs run and wait."""


class Definition(NamedTuple):
    """One family: its name as exported, its kind, its labels and, for a histogram, its bounds."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()

    @property
    def family(self) -> str:
        """The name that prometheus-client gives the family: without a counter's ending."""
        return self.name.removesuffix("_total") if self.kind == "counter" else self.name


ATTEMPTS = Definition(
    "workerd_attempts_total", "counter", "Attempts that ended, by how they ended.",
    ("handler", "outcome", "success"),
)  # fmt: skip
RUN_SECONDS = Definition(
    "workerd_run_seconds", "histogram", "Wall time of attempts that ran.", ("handler", "success"), SECONDS
)
QUEUE_SECONDS = Definition(
    "workerd_queue_seconds", "histogram", "From due to started.", ("handler",), SECONDS
)
JOBS = Definition("workerd_jobs", "gauge", "Live jobs in the store.", ("handler", "status"))
OLDEST_SECONDS = Definition(
    "workerd_oldest_seconds", "gauge", "How long the oldest job that could run has waited.", ("handler",)
)
WORKERS = Definition("workerd_workers", "gauge", "Workers of a pool, by what they do.", ("pool", "state"))
RESTARTS = Definition(
    "workerd_restarts_total", "counter", "Processes that were started again, by why.", ("process", "reason")
)
QUARANTINED = Definition(
    "workerd_quarantined", "gauge", "1 while a pool that crash-looped is held back.", ("pool",)
)
LEASE_SECONDS = Definition(
    "workerd_lease_seconds", "gauge", "Seconds until this node's lease runs out; negative: it has."
)
INGEST_BATCH = Definition(
    "workerd_ingest_batch", "histogram", "Outcomes in one transaction.", (),
    (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000),
)  # fmt: skip
INGEST_SECONDS = Definition(
    "workerd_ingest_seconds", "histogram", "Duration of one such transaction.", (),
    (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)  # fmt: skip
SPOOL_BYTES = Definition(
    "workerd_spool_bytes", "gauge", "Outcomes on this node's disk that the store has not taken yet."
)
STORE_ERRORS = Definition(
    "workerd_store_errors_total", "counter",
    "Errors of the store by its code; 1205 and 1213 are transactions that were run again.", ("code",),
)  # fmt: skip
PROCESS_CPU = Definition(
    "workerd_process_cpu_seconds_total", "counter", "CPU time of a process; of a pool with its workers.",
    ("process",),
)  # fmt: skip
PROCESS_RSS = Definition(
    "workerd_process_rss_bytes", "gauge", "Resident memory of a process; of a pool with its workers.",
    ("process",),
)  # fmt: skip

ALL = (
    ATTEMPTS, RUN_SECONDS, QUEUE_SECONDS, JOBS, OLDEST_SECONDS, WORKERS, RESTARTS, QUARANTINED,
    LEASE_SECONDS, INGEST_BATCH, INGEST_SECONDS, SPOOL_BYTES, STORE_ERRORS, PROCESS_CPU, PROCESS_RSS,
)  # fmt: skip


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
