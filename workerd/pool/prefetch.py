"""Prefetching: short attempts are queued at a busy worker, and revoked when one before them is slow."""

from __future__ import annotations

import time
from collections import deque

from workerd.job import Claim
from workerd.pool.capacity import RunTimeAverage
from workerd.pool.policies import Policies
from workerd.pool.worker_manager import WorkerManager
from workerd.pool.worker_process import WorkerProcess
from workerd.pool.worker_state import WorkerState
from workerd.runtime.loop import Loop, Timer

PREFETCH_S = 0.002
"""Seconds of work that may be queued at a worker, so that it need not wait for the pool between short runs.
Measured with no-ops: a quarter less CPU time of pool and worker for each."""
MAX_PREFETCHED = 48
"""Measured with no-ops: with 24 a worker ran dry while the pool let results gather or waited for a processor;
with 48 it takes 28 -> 25 µs of CPU time for each, the pool 18 -> 17.5."""
MAX_AHEAD_S = 0.02
"""Behind runs that take up to so long one is queued, where there are more claims than workers. Measured with
8 workers and runs of 10 ms on 2 cores beside other load: 48 -> 60 % of the time busy."""
LONG_RUN_S = 0.0005
"""Behind runs of at least so long nothing stays queued that may be overtaken, and what overtakes it is not
queued: the worker that is free first takes it."""
MAX_REST_S = 0.0005
"""How long a pool whose workers all have work lets their results gather. Without it each result wakes the
pool, and what the pool then sends wakes the worker: measured with no-ops, pool 39 -> 27 µs of CPU time for
each, worker 66 -> 52, and a third of the context switches."""
MIN_REST_S = 0.0001
TURNS_AFTER_OUTPUT = 50
TURNAROUND_S = 0.00003
"""From the end of a run to the beginning of the next one in the same worker."""
SLOW_RUN_NS = 10_000_000
"""What is queued behind a run that takes longer, and longer than twice the average, is revoked."""
CHECK_INTERVAL_S = 0.01


class Prefetch:
    """Decides what is queued at busy workers, and when that is revoked."""

    def __init__(self, loop: Loop, worker_manager: WorkerManager, policies: Policies) -> None:
        self._loop = loop
        self._worker_manager = worker_manager
        self._policies = policies
        self._run_times = RunTimeAverage()
        self._printed_at = 0
        self._timer: Timer | None = None

    def fill(self, claims: deque[Claim], max_payload: int) -> None:
        """Move claims to the queues of workers that are at short runs; `max_payload` in bytes."""
        workers = self._worker_manager.workers.values()
        if not claims or not workers:
            return
        if claims[0].is_ahead and not claims[-1].is_ahead and self._runs_are_long:
            return
        depth = self._depth(surplus=len(claims) >= len(workers))
        share = -(-len(claims) // len(workers))  # few are spread over all
        slow = time.monotonic_ns() - self._slow_ns
        for worker in workers:
            room = min(share, depth - len(worker.queued))
            if room > 0 and _is_running_since(worker, slow):
                self._queue_at(worker, room, claims, max_payload)

    def _queue_at(self, worker: WorkerProcess, count: int, claims: deque[Claim], max_payload: int) -> None:
        while claims and count > 0:
            if not worker.enqueue(claims[0], self._policies.of(claims[0]), max_payload):
                break
            claims.popleft()
            count -= 1
        if worker.queued and self._timer is None:
            self._timer = self._loop.call_later(CHECK_INTERVAL_S, self._check)

    def add_run(self, run_us: int) -> None:
        """A run took so long by its worker's clock; that of the pool also counts waiting for a processor."""
        self._run_times.add(run_us / 1e6 + TURNAROUND_S)

    def on_output(self) -> None:
        """A worker has printed: it waits until that is read, so the pool does not rest for a while."""
        self._printed_at = self._loop.turns

    def rest(self) -> None:
        """Let results gather, while every worker has enough queued not to run dry."""
        seconds = self._run_times.seconds
        workers = self._worker_manager.workers.values()
        if seconds is None or not workers or self._loop.turns - self._printed_at < TURNS_AFTER_OUTPUT:
            return
        rest_s = min(MAX_REST_S, min(len(worker.queued) for worker in workers) * seconds / 2)
        if rest_s >= MIN_REST_S:
            self._loop.rest(rest_s)

    def _depth(self, *, surplus: bool) -> int:
        """How many may be queued at a worker. `surplus`: no worker will be idle for want of these claims."""
        seconds = self._run_times.seconds
        if seconds is None or self._worker_manager.recycles:  # recycling is decided after each run
            return 0
        if seconds > PREFETCH_S:
            return int(surplus and seconds <= MAX_AHEAD_S)
        return min(MAX_PREFETCHED, int(PREFETCH_S / seconds))

    @property
    def _slow_ns(self) -> int:
        """Nanoseconds of a run behind which nothing stays queued."""
        return max(SLOW_RUN_NS, int(2e9 * (self._run_times.seconds or 0.0)))

    def make_way(self) -> None:
        """Revoke what claims of groups that were idle may overtake."""
        if self._runs_are_long:
            for worker in list(self._worker_manager.workers.values()):
                if not all(attempt.claim.is_ahead for attempt in worker.queued):
                    worker.revoke()

    @property
    def _runs_are_long(self) -> bool:
        return (self._run_times.seconds or 0.0) >= LONG_RUN_S

    def revoke_all(self) -> None:
        """Revoke everything that no worker has started."""
        for worker in list(self._worker_manager.workers.values()):
            worker.revoke()

    def _check(self) -> None:
        self._timer = None
        slow = time.monotonic_ns() - self._slow_ns
        workers = [worker for worker in self._worker_manager.workers.values() if worker.queued]
        for worker in workers:
            if worker.attempt is not None and worker.attempt.start_ns < slow:
                worker.revoke()
        if workers:
            self._timer = self._loop.call_later(CHECK_INTERVAL_S, self._check)


def _is_running_since(worker: WorkerProcess, ns: int) -> bool:
    attempt = worker.attempt
    return attempt is not None and worker.state is WorkerState.RUNNING and attempt.start_ns > ns
