"""The metric families that dashboards and alerts rely on."""

from __future__ import annotations

from typing import Literal, NamedTuple

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
