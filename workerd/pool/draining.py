"""The end of a pool: running jobs may finish until a deadline, then workers and orphans are killed."""

from __future__ import annotations

import time
from collections.abc import Callable

from workerd.pool.claim_queue import ClaimQueue
from workerd.pool.worker_manager import WorkerManager
from workerd.pool.worker_process import RETIRE_TIMEOUT_S
from workerd.runtime.loop import Loop, Timer
from workerd.runtime.outcome_sender import OutcomeSender
from workerd.runtime.reaper import OrphanReaper

EXIT_TIMEOUT_S = RETIRE_TIMEOUT_S + 1.0
"""For the workers and their descendants to be gone at the end."""
ORPHANED_TIMEOUT_S = 1.0
"""The same for a pool without supervisor, which kills them at once."""
RESUMABLE_S = 3.0
"""For resumable attempts to end by themselves when an overlap is over; the supervisor waits for longer."""
_EXIT_POLL_S = 0.002


class PoolDrain:
    """The drain of one pool; `started` once it has begun, and not undone. `is_overlap`: see `start`.

    `on_finished` is called when no process is left, or after EXIT_TIMEOUT_S.
    """

    def __init__(
        self,
        loop: Loop,
        worker_manager: WorkerManager,
        orphan_reaper: OrphanReaper,
        queue: ClaimQueue,
        outcome_sender: OutcomeSender,
        on_finished: Callable[[], None],
    ) -> None:
        self.started = self.is_overlap = False
        self._loop = loop
        self._worker_manager = worker_manager
        self._orphan_reaper = orphan_reaper
        self._queue = queue
        self._outcome_sender = outcome_sender
        self._on_finished = on_finished
        self._timer: Timer | None = None
        self._exit_deadline = 0.0

    def start(self, seconds: float, *, overlap: bool = False) -> bool:
        """Interrupt what still runs in `seconds`; false if that is later than a drain under way has it.

        `overlap`: what is resumable was not interrupted before, and gets its time then.
        """
        deadline = time.monotonic() + seconds
        if self._timer is not None:
            if deadline >= self._timer.when:
                return False
            self._timer.cancel()
        self.started, self.is_overlap = True, overlap
        end = self._end_overlap if overlap else self._worker_manager.interrupt_all
        self._timer = self._loop.call_at(deadline, end)
        self._worker_manager.close()
        return True

    def _end_overlap(self) -> None:
        self._worker_manager.end_overlap()
        self._timer = self._loop.call_later(RESUMABLE_S, self._worker_manager.interrupt_all)

    def finish_if_done(self) -> None:
        """End the workers, once it was started and all jobs are done and acknowledged."""
        if not self.started:
            return
        if self._queue.waiting or self._worker_manager.busy or self._outcome_sender.unacknowledged:
            return
        if not self._exit_deadline:
            self._exit_deadline = time.monotonic() + EXIT_TIMEOUT_S
            self._worker_manager.retire_all()
            self._orphan_reaper.sweep()
            self._wait_until_gone()

    def _wait_until_gone(self) -> None:
        gone = not self._worker_manager.workers and not self._orphan_reaper.busy
        if gone or time.monotonic() >= self._exit_deadline:
            self._on_finished()
        else:
            self._loop.call_later(_EXIT_POLL_S, self._wait_until_gone)
