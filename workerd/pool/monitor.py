"""The periodic check of running attempts: progress to the store, memory, stuck queues."""

from __future__ import annotations

import time

from workerd import clock
from workerd.config.handler_config import PoolConfig
from workerd.messages import Progress
from workerd.pool.attempt import AssignedAttempt, KillReason
from workerd.pool.capacity import BUFFER_S
from workerd.pool.worker_manager import WorkerManager
from workerd.pool.worker_process import WorkerProcess
from workerd.pool.worker_state import BUSY, WorkerState
from workerd.runtime.child import descendants_of
from workerd.runtime.limits import resident_bytes
from workerd.runtime.outcome_sender import OutcomeSender

CHECK_INTERVAL_S = 0.25
LONG_RUN_NS = 500_000_000
"""A run that takes longer is reported to the store before it ends."""
PROGRESS_INTERVAL_NS = 1_000_000_000
"""Between two Progress messages of one run."""
STUCK_S = 1.0
"""When every run has taken longer, waiting claims are released: another node may have an idle worker."""


class Monitor:
    """Checks the workers of one pool; called every CHECK_INTERVAL_S while anything runs."""

    def __init__(
        self, pool: PoolConfig, worker_manager: WorkerManager, outcome_sender: OutcomeSender
    ) -> None:
        self._worker_manager = worker_manager
        self._outcome_sender = outcome_sender
        # Not where a control group enforces the limit: then the kernel kills before a check could.
        self._memory_max = 0 if worker_manager.limits.memory_enforced else pool.memory_max
        self._programs = frozenset(handler.name for handler in pool.handlers if handler.command is not None)

    def check(self) -> bool:
        """Send progress and enforce `memory_max`; true if anything is running."""
        now = time.monotonic_ns()
        running = False
        self._worker_manager.limits.host_memory.check()
        for worker in list(self._worker_manager.workers.values()):
            attempt = worker.attempt
            if attempt is not None:
                running = True
                self._send_progress(worker, attempt, now)
                if self._memory_max:
                    self._check_memory(worker, attempt)
        return running

    def all_longer_than(self, seconds: float) -> bool:
        """Whether every run has taken longer than that; true if nothing runs."""
        limit = time.monotonic_ns() - int(seconds * 1e9)
        return all(
            w.attempt is None or w.attempt.start_ns < limit for w in self._worker_manager.workers.values()
        )

    def all_long(self) -> bool:
        """Whether no run is expected to end while a claim is on its way."""
        return self.all_longer_than(BUFFER_S)

    def stuck(self) -> bool:
        """Whether waiting claims are unlikely to start soon: no run is new, no worker is just starting."""
        limit = time.monotonic() - STUCK_S
        starting = WorkerState.STARTING
        workers = self._worker_manager.workers.values()
        return self.all_longer_than(STUCK_S) and not any(
            worker.state is starting and worker.started_at > limit for worker in workers
        )

    def _send_progress(self, worker: WorkerProcess, attempt: AssignedAttempt, now: int) -> None:
        if (
            now - attempt.start_ns < LONG_RUN_NS
            or not attempt.progress_changed
            or now - attempt.progress_sent_ns < PROGRESS_INTERVAL_NS
        ):
            return
        attempt.progress_changed = False
        attempt.progress_sent_ns = now
        claim = attempt.claim
        self._outcome_sender.notify(
            Progress(
                id=claim.id,
                attempt=claim.attempt,
                claimed_at=claim.claimed_at,
                started_at=clock.after(claim.claimed_at, claim.mono, attempt.start_ns),
                pid=worker.pid,
                progress=attempt.progress,
                note=attempt.note,
            )
        )

    def _check_memory(self, worker: WorkerProcess, attempt: AssignedAttempt) -> None:
        size = resident_bytes(worker.pid)
        if attempt.claim.handler in self._programs:  # processes that a function forks share pages with it
            size += sum(map(resident_bytes, descendants_of(worker.pid)))
        attempt.peak_kib = max(attempt.peak_kib or 0, size // 1024)
        if size > self._memory_max and worker.state in BUSY:
            worker.kill(KillReason.OOM)
