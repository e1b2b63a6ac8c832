"""The way of claims through the pool: received, assigned to workers, and ended with exactly one outcome."""

from __future__ import annotations

import time
from collections.abc import Iterator

from workerd.config.handler_config import PoolConfig
from workerd.errors import FrameTooLarge
from workerd.job import AttemptRef, Claim, ClaimedAttempt
from workerd.messages import LeaseState, Traced
from workerd.outcome import Outcome, RunResult
from workerd.pool.attempt import AssignedAttempt
from workerd.pool.capacity import BATCHES_IN_BUFFER, BUFFER_S, Capacity, ClaimTimeAverage, RunTimeAverage
from workerd.pool.claim_queue import ClaimQueue
from workerd.pool.dispatcher_link import DispatcherLink
from workerd.pool.draining import PoolDrain
from workerd.pool.endings import Endings
from workerd.pool.monitor import CHECK_INTERVAL_S, Monitor
from workerd.pool.policies import Policies
from workerd.pool.prefetch import Prefetch
from workerd.pool.results import unrunnable
from workerd.pool.shared import NO_END_NS
from workerd.pool.state_relay import StateRelay
from workerd.pool.worker_manager import WorkerManager
from workerd.pool.worker_messages import Saved
from workerd.pool.worker_process import WorkerProcess
from workerd.pool.worker_state import WorkerState
from workerd.runtime.loop import Loop, Timer
from workerd.runtime.outcome_sender import OutcomeSender


class Assigner:
    """Gives claims to workers, and asks the dispatcher for as many as they can take.

    A claim waits in `queue`, then belongs to one worker, then its outcome belongs to `outcome_sender` until
    it is acknowledged; `holdings` names all of them (law 2).
    """

    def __init__(
        self,
        loop: Loop,
        pool: PoolConfig,
        claim_batch: int,
        *,
        queue: ClaimQueue,
        policies: Policies,
        worker_manager: WorkerManager,
        prefetch: Prefetch,
        endings: Endings,
        state_relay: StateRelay,
        drain: PoolDrain,
        dispatcher_link: DispatcherLink,
        outcome_sender: OutcomeSender,
    ) -> None:
        """`claim_batch`: the most claims that the dispatcher makes at once."""
        self._loop = loop
        self._claim_batch = claim_batch
        # What waits here has had its start or its turn: no more than is needed.
        self._keeps_queue_short = any(handler.fair or handler.rated for handler in pool.handlers)
        self._checks_age = bool(pool.max_age)
        self._queue = queue
        self._policies = policies
        self._worker_manager = worker_manager
        self._prefetch = prefetch
        self._endings = endings
        self._state_relay = state_relay
        self._drain = drain
        self._dispatcher_link = dispatcher_link
        self._outcome_sender = outcome_sender
        self._monitor = Monitor(pool, worker_manager, outcome_sender)
        self._monitor_timer: Timer | None = None
        self._run_times = RunTimeAverage()
        self._claim_times = ClaimTimeAverage()
        self._assign_scheduled = self._report_scheduled = False
        self._lease_held = True
        self._start_until_ns = NO_END_NS

    # -- from the dispatcher

    def on_claims(self, claims: list[Claim]) -> None:
        """The dispatcher has claimed these for the pool."""
        self._claim_times.add(max(0, time.monotonic_ns() - claims[0].mono) / 1e9)
        self.report_capacity_soon()
        if not self._may_start_jobs:
            self._endings.release(claims)
            return
        known = [claim for claim in claims if claim.handler in self._policies]
        if len(known) < len(claims):
            self._endings.release([claim for claim in claims if claim.handler not in self._policies])
        if any(claim.is_ahead for claim in known):
            self._prefetch.make_way()
        self._queue.extend(known)
        self.assign_queued()
        if self._queue.waiting:
            self._start_monitor()  # which releases claims that no worker takes

    def on_cancel(self, ref: AttemptRef) -> None:
        """End this attempt as cancelled, wherever it is."""
        workers = self._worker_manager.workers.values()
        for worker in workers:
            if any(attempt.claim.ref == ref for attempt in worker.queued):
                worker.revoke()
        for claim in self._queue.take(lambda claim: claim.ref == ref):
            self._endings.cancel(claim)
        for worker in workers:
            if worker.attempt is not None and worker.attempt.claim.ref == ref:
                worker.cancel()

    def on_lease(self, lease: LeaseState) -> None:
        """The dispatcher says whether it holds the node's lease, and until when."""
        if self._lease_held and self._lease_is_over:  # this process was stopped, and nobody told it
            self._void_unstarted()
        self._start_until_ns = lease.until_ns
        self._worker_manager.set_start_until(lease.until_ns)
        self._set_lease(lease.held)

    def _set_lease(self, held: bool) -> None:
        if held == self._lease_held:
            return
        self._lease_held = held
        self._worker_manager.set_stopping(self._runs_are_to_stop)
        if not held:
            self._void_unstarted()
        self.report_capacity_soon()

    def _void_unstarted(self) -> None:
        """Release what has not begun: another node may have it by now."""
        self._worker_manager.void_unstarted()
        self.release_unstarted()
        self.report_capacity_soon()

    @property
    def lease_held(self) -> bool:
        """Whether the dispatcher holds the lease, as far as the pool knows."""
        return self._lease_held and not self._lease_is_over

    @property
    def _may_start_jobs(self) -> bool:
        return self._lease_held and not self._drain.started and not self._lease_is_over

    @property
    def _runs_are_to_stop(self) -> bool:
        is_drained = self._drain.started and not self._drain.is_overlap
        return is_drained or not self.lease_held

    @property
    def _lease_is_over(self) -> bool:
        """Whether its time is over, which a dispatcher that hangs does not say, nor one that was stopped."""
        return time.monotonic_ns() >= self._start_until_ns

    def holdings(self) -> Iterator[ClaimedAttempt | Outcome]:
        """All claims that are here, and the outcomes that are not acknowledged."""
        yield from self._queue.waiting
        yield from (attempt.claim for attempt in self._worker_manager.attempts())
        yield from self._outcome_sender.kept()

    def release_unstarted(self, handlers: tuple[str, ...] = ()) -> None:
        """Release the claims that no worker has started (law 4), of these handlers or of all."""
        self._prefetch.revoke_all()
        self._endings.release(self._queue.take_of(handlers))

    # -- to the dispatcher

    def report_capacity_soon(self) -> None:
        """Tell the dispatcher at the end of this turn what the pool can take."""
        if not self._report_scheduled:
            self._report_scheduled = True
            self._loop.at_end_of_turn(self._report_capacity)

    def _report_capacity(self) -> None:
        self._report_scheduled = False
        if self._dispatcher_link.connected:
            self._dispatcher_link.report(self._capacity(), len(self._queue.waiting))

    def _capacity(self) -> Capacity | None:
        if not self._may_start_jobs or self._outcome_sender.full:
            return None
        manager = self._worker_manager
        idle = len(manager.idle) + manager.starting_soon
        if not idle and self._monitor.all_long():
            return Capacity(0, 0)
        buffer_s = BUFFER_S if self._keeps_queue_short else self._claim_times.buffer_s
        claims = self._claim_batch if self._keeps_queue_short else BATCHES_IN_BUFFER * self._claim_batch
        return Capacity(idle, self._run_times.runs_within(buffer_s, len(manager.workers), claims))

    # -- to the workers

    def add_worker(self, worker: WorkerProcess) -> None:
        """The worker is ready: it may be assigned jobs from the next `assign_queued` on."""
        worker.flags.set_stopping(self._runs_are_to_stop)
        worker.flags.set_start_until(self._start_until_ns)
        self._worker_manager.add_ready(worker)

    def assign_queued(self) -> None:
        """Assign what waits to idle workers, and prefetch for busy ones."""
        self._assign_scheduled = False
        if self._lease_is_over:
            self._set_lease(held=False)
        idle, queue = self._worker_manager.idle, self._queue.waiting
        while idle and queue:
            worker = idle.pop()
            if worker.state is WorkerState.IDLE:  # else it is dying, and is forgotten at its death
                self._assign(worker, queue.popleft())
        self._prefetch.fill(queue, self._outcome_sender.max_payload)
        self._prefetch.rest()
        self._queue.watch()

    def _assign_soon(self) -> None:
        if not self._assign_scheduled:
            self._assign_scheduled = True
            self._loop.at_end_of_turn(self.assign_queued)

    def _assign(self, worker: WorkerProcess, claim: Claim) -> None:
        try:
            worker.assign(claim, self._policies.of(claim), self._outcome_sender.max_payload)
        except FrameTooLarge as error:
            self._endings.close(claim, unrunnable(0, f"Its vars are too large: {error}."))
            self._worker_manager.idle.append(worker)
            self._assign_soon()
            return
        self._start_monitor()

    # -- from the workers

    def on_result(self, worker: WorkerProcess, attempt: AssignedAttempt, result: RunResult) -> None:
        now = time.monotonic_ns()
        self._run_times.add((now - attempt.start_ns) / 1e9)
        if result.usage.run_us is not None:
            self._prefetch.add_run(result.usage.run_us)
        self._endings.close_attempt(attempt, result, worker.pid, now)
        self._go_on(worker, tainted=result.tainted)

    def on_unstarted(self, worker: WorkerProcess, attempt: AssignedAttempt) -> None:
        self.on_revoked(attempt)
        self._go_on(worker, tainted=False)

    def _go_on(self, worker: WorkerProcess, *, tainted: bool) -> None:
        """An attempt of this worker is over."""
        if self._worker_manager.reuse_or_recycle(worker, tainted):
            self._assign_next(worker)
        if len(self._queue.waiting) <= self._dispatcher_link.low:
            self.report_capacity_soon()
        if self._drain.started:
            self._drain.finish_if_done()

    def _assign_next(self, worker: WorkerProcess) -> None:
        queue = self._queue.waiting
        if worker.attempt is None:
            if not queue:
                self._worker_manager.idle.append(worker)
                return
            if self._lease_is_over:
                self._worker_manager.idle.append(worker)
            else:
                self._assign(worker, queue.popleft())
        self._assign_soon()  # the others together, after the results of this turn

    def on_saved(self, worker: WorkerProcess, attempt: AssignedAttempt, saved: Saved) -> None:
        self._state_relay.on_saved(worker, attempt, saved)

    def on_traced(self, traced: Traced) -> None:
        self._outcome_sender.notify(traced)

    def on_revoked(self, attempt: AssignedAttempt) -> None:
        if attempt.cancelled:
            self._endings.cancel(attempt.claim)
        elif self._may_start_jobs and not attempt.is_void:
            self._queue.waiting.appendleft(attempt.claim)
            self._assign_soon()
        else:
            self._endings.release([attempt.claim])

    # -- monitoring

    def _start_monitor(self) -> None:
        if self._monitor_timer is None:
            self._monitor_timer = self._loop.call_later(CHECK_INTERVAL_S, self._check_workers)

    def _check_workers(self) -> None:
        self._monitor_timer = None
        running = self._monitor.check()
        if self._queue.waiting and self._monitor.stuck():
            self.release_unstarted()
        self._worker_manager.recycle_idle()
        self.report_capacity_soon()
        if running or self._queue.waiting or self._checks_age:
            self._start_monitor()
