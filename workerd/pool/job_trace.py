"""Debug lines about single jobs; callers look at `log.debugging` first, so that they cost nothing else."""

from __future__ import annotations

from workerd.job import id_text
from workerd.log import get_logger
from workerd.outcome import Outcome
from workerd.pool.attempt import AssignedAttempt

log = get_logger("pool")


def started(worker: str, attempt: AssignedAttempt) -> None:
    """The attempt was given to an idle worker, or follows another one there."""
    claim = attempt.claim
    log.debug(
        "job.started", handler=claim.handler, job=id_text(claim.id), attempt=claim.attempt, worker=worker
    )


def ended(outcome: Outcome) -> None:
    """The attempt ended, and its outcome is on its way to the ingester."""
    log.debug(
        "job.ended", handler=outcome.handler, job=id_text(outcome.id), attempt=outcome.attempt,
        reason=outcome.reason, status=outcome.status, run_us=outcome.usage.run_us,
    )  # fmt: skip
