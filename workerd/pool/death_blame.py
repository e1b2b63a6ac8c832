"""Which attempt the death of a worker counts for."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from workerd.pool.attempt import AssignedAttempt, KillReason

MAX_SPARED_JOBS = 1000

_SPARES_UNSTARTED = frozenset(
    {
        KillReason.NONE,
        KillReason.PROTOCOL_ERROR,
        KillReason.DEADLINE,
        KillReason.INTERRUPTED,
        KillReason.OVERLAP_OVER,
        KillReason.HOST_OOM,
    }
)
"""Kill reasons that do not end an attempt which the worker has not started."""


class DeathBlame:
    """Blames an attempt for the death of its worker, or none; one for all workers of a pool.

    Knows the last MAX_SPARED_JOBS jobs that were not blamed for a death which they may have caused.
    """

    def __init__(self) -> None:
        self._spared: dict[bytes, None] = {}

    def attempt_blamed(
        self,
        attempts: Sequence[AssignedAttempt],
        untouched: Collection[int],
        kill_reason: KillReason,
        *,
        unmarked: bool,
    ) -> AssignedAttempt | None:
        """Which of the attempts that the worker had been given it was running.

        `untouched`: the serials of those in its queue, which it did not take. `unmarked`: a signal killed it,
        and it had marked none as started that has not ended.

        A worker that is being killed may still take an assignment out of the queue, and not mark it as
        started. But a handler can write to the marks too, so that they alone must not hide its deaths: an
        attempt may count as not started although its worker took it, once for each job.
        """
        for attempt in attempts:
            if attempt.serial not in untouched and not (unmarked and self._spare(attempt)):
                return attempt
        return None if kill_reason in _SPARES_UNSTARTED or not attempts else attempts[0]

    def _spare(self, attempt: AssignedAttempt) -> bool:
        """True the first time for each job, whatever the number of the attempt."""
        job = attempt.claim.id
        if job in self._spared:
            return False
        if len(self._spared) >= MAX_SPARED_JOBS:
            del self._spared[next(iter(self._spared))]
        self._spared[job] = None
        return True
