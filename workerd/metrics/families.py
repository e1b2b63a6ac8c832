"""The metric families that dashboards and alerts rely on."""

from __future__ import annotations

from typing import Literal, NamedTuple

SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0,
)  # fmt: skip
"""Upper bounds of how long jobs run and wait."""
_BATCH_ROWS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
_BATCH_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

MAX_HANDLERS = 1000
"""Handlers with series of their own; all others share those of OTHER."""
OTHER = "other"


class Definition(NamedTuple):
    """One family: its name as exported, its kind, its labels and, for a histogram, its bounds.

    `help` says what is counted, in which unit, of this node or of the whole store.
    """

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
    "workerd_attempts_total",
    "counter",
    "Ended attempts of this node, by handler, reason and success (none: neither); without skipped runs.",
    ("handler", "outcome", "success"),
)
JOBS_ENDED = Definition(
    "workerd_jobs_ended_total",
    "counter",
    "Jobs that ended on this node, by handler and final status: a failure here is not retried again.",
    ("handler", "status"),
)
RUN_SECONDS = Definition(
    "workerd_run_seconds",
    "histogram",
    "Seconds that ended attempts of this node ran, by handler and success.",
    ("handler", "success"),
    SECONDS,
)
QUEUE_SECONDS = Definition(
    "workerd_queue_seconds",
    "histogram",
    "Seconds from when ended attempts of this node were due until they started, by handler.",
    ("handler",),
    SECONDS,
)
ERRORS_NEW = Definition(
    "workerd_errors_new_total",
    "counter",
    "Error groups that this node saw first, or again after they were resolved, by handler; not muted ones.",
    ("handler",),
)
JOBS = Definition(
    "workerd_jobs",
    "gauge",
    "Jobs in the whole store that are scheduled, new (waiting) or inprogress, by handler, up to 10000 each.",
    ("handler", "status"),
)
OLDEST_SECONDS = Definition(
    "workerd_oldest_seconds",
    "gauge",
    "Seconds since the oldest new job in the whole store became due, by handler; 0 without one.",
    ("handler",),
)
PAUSED = Definition(
    "workerd_paused_seconds",
    "gauge",
    "Seconds since the handler was paused in the whole store; 0 if it is not paused.",
    ("handler",),
)
LIMIT_USED = Definition(
    "workerd_limit_used",
    "gauge",
    "Running jobs in the whole store that hold slots of the limit.",
    ("limit",),
)
LIMIT_WAITING = Definition(
    "workerd_limit_waiting",
    "gauge",
    "New jobs in the whole store of the handlers of this node that have the limit, up to 10000 each.",
    ("limit",),
)
SCHEDULE_LATE = Definition(
    "workerd_schedule_late_seconds",
    "gauge",
    "Seconds since a run of the schedule was due that has not started; 0 if it is on time or paused.",
    ("schedule",),
)
REQUESTS_FAILED = Definition(
    "workerd_requests_failed",
    "gauge",
    "Requests in the whole store that failed within the last 15 minutes, by workflow, up to 1000 in all.",
    ("workflow",),
)
WORKERS = Definition(
    "workerd_workers",
    "gauge",
    "Worker processes of each pool of this node, by what they do now.",
    ("pool", "state"),
)
RESTARTS = Definition(
    "workerd_restarts_total",
    "counter",
    "Restarts of the roles and pools of this node, by process and by how the last one ended.",
    ("process", "reason"),
)
QUARANTINED = Definition(
    "workerd_quarantined",
    "gauge",
    "1 while a pool of this node is held back because it crash-looped, else 0.",
    ("pool",),
)
STALE = Definition(
    "workerd_stale",
    "gauge",
    "1 while a pool of this node runs older code than the files of its handlers hold, else 0.",
    ("pool",),
)
LEASE_SECONDS = Definition(
    "workerd_lease_seconds",
    "gauge",
    "Seconds until this node's lease expires; negative: since it expired.",
)
INGEST_BATCH = Definition(
    "workerd_ingest_batch",
    "histogram",
    "Outcomes that this node wrote to the store in one transaction.",
    bounds=_BATCH_ROWS,
)
INGEST_SECONDS = Definition(
    "workerd_ingest_seconds",
    "histogram",
    "Seconds that one transaction with outcomes of this node took, with its commit.",
    bounds=_BATCH_SECONDS,
)
SPOOL_BYTES = Definition(
    "workerd_spool_bytes",
    "gauge",
    "Bytes of outcomes in this node's spool, which the store has not taken yet.",
)
SPANS = Definition(
    "workerd_spans_total",
    "counter",
    "Spans of traced runs of this node, by result: exported, failed, or dropped because the queue was full.",
    ("result",),
)
STORE_ERRORS = Definition(
    "workerd_store_errors_total",
    "counter",
    "Errors of the store seen by this node, by the server's code; 1205 and 1213: the transaction ran again.",
    ("code",),
)
PROCESS_CPU = Definition(
    "workerd_process_cpu_seconds_total",
    "counter",
    "Seconds of CPU time used by each role and pool of this node; a pool with its workers.",
    ("process",),
)
PROCESS_RSS = Definition(
    "workerd_process_rss_bytes",
    "gauge",
    "Bytes of resident memory of each role and pool of this node; a pool with its workers.",
    ("process",),
)

ALL = (
    ATTEMPTS, JOBS_ENDED, RUN_SECONDS, QUEUE_SECONDS, ERRORS_NEW, JOBS, OLDEST_SECONDS, PAUSED, LIMIT_USED,
    LIMIT_WAITING, SCHEDULE_LATE,
    REQUESTS_FAILED, WORKERS, RESTARTS, QUARANTINED, STALE, LEASE_SECONDS, INGEST_BATCH, INGEST_SECONDS,
    SPOOL_BYTES, SPANS, STORE_ERRORS, PROCESS_CPU, PROCESS_RSS,
)  # fmt: skip
