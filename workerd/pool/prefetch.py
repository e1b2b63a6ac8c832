"""Prefetching: short attempts are queued at a busy worker, and revoked when one before them is slow."""

from __future__ import annotations

import time
from collections import deque

from workerd.job import Claim
from workerd.pool.capacity import RunTimeAverage
from workerd.pool.policies import Policies
from workerd.pool.worker_manager import WorkerManager
from workerd.pool.worker_process import WorkerProcess, WorkerState
from workerd.runtime.loop import Loop, Timer

PREFETCH_S = 0.001
"""Seconds of work that may be queued at a worker, so that it need not wait for the pool between short runs.
Measured with no-ops: a quarter less CPU time of pool and worker for each."""
MAX_PREFETCHED = 8
SLOW_RUN_NS = 10_000_000
"""A run that takes longer was not a short one: what is queued behind it is revoked."""
CHECK_INTERVAL_S = 0.01


class Prefetch:
    """Decides what is queued at busy workers, and when that is revoked."""

    def __init__(
        self, loop: Loop, worker_manager: WorkerManager, policies: Policies, run_times: RunTimeAverage
    ) -> None:
        self._loop = loop
        self._worker_manager = worker_manager
        self._policies = policies
        self._run_times = run_times
        self._timer: Timer | None = None

    def fill(self, worker: WorkerProcess, claims: deque[Claim], max_payload: int) -> None:
        """Move claims to the queue of a worker that is at a short run; `max_payload` in bytes."""
        depth = self._depth()
        if not claims or len(worker.queued) >= depth or not _is_at_short_run(worker):
            return
        while claims and len(worker.queued) < depth:
            if not worker.enqueue(claims[0], self._policies.of(claims[0]), max_payload):
                break
            claims.popleft()
        if worker.queued and self._timer is None:
            self._timer = self._loop.call_later(CHECK_INTERVAL_S, self._check)

    def _depth(self) -> int:
        seconds = self._run_times.seconds
        if seconds is None or self._worker_manager.recycles:  # recycling is decided after each run
            return 0
        return min(MAX_PREFETCHED, int(PREFETCH_S / max(seconds, 1e-6)))

    def revoke_all(self) -> None:
        """Revoke everything that no worker has started."""
        for worker in list(self._worker_manager.workers.values()):
            worker.revoke()

    def _check(self) -> None:
        self._timer = None
        slow = time.monotonic_ns() - SLOW_RUN_NS
        workers = [worker for worker in self._worker_manager.workers.values() if worker.queued]
        for worker in workers:
            if worker.attempt is not None and worker.attempt.start_ns < slow:
                worker.revoke()
        if workers:
            self._timer = self._loop.call_later(CHECK_INTERVAL_S, self._check)


def _is_at_short_run(worker: WorkerProcess) -> bool:
    attempt = worker.attempt
    return (
        attempt is not None
        and worker.state is WorkerState.RUNNING
        and time.monotonic_ns() - attempt.start_ns < SLOW_RUN_NS
    )
