"""The pool's process: claims in, assignments to its workers, exactly one outcome out for each claim."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import setproctitle

from workerd.config.handler_config import PoolConfig
from workerd.errors import FrameTooLarge, LoadError
from workerd.job import AttemptRef, Claim, ClaimedAttempt
from workerd.log import get_logger
from workerd.messages import (
    Cancel,
    Claims,
    Drain,
    FromDispatcher,
    Hello,
    Holdings,
    Inventory,
    LeaseState,
    LogText,
    ReadLog,
    Release,
    Seen,
    Traced,
)
from workerd.outcome import Outcome, RunResult
from workerd.pool import noted_calls
from workerd.pool.attempt import AssignedAttempt, KillReason, SparedJobs, death_error, result_of_death
from workerd.pool.capacity import BATCHES_IN_BUFFER, BUFFER_S, Capacity, ClaimTimeAverage, RunTimeAverage
from workerd.pool.claim_queue import ClaimQueue
from workerd.pool.dispatcher_link import DispatcherLink
from workerd.pool.draining import ORPHANED_TIMEOUT_S, PoolDrain
from workerd.pool.endings import Endings
from workerd.pool.isolation import forget_exit_functions
from workerd.pool.kept_log import KeptLog
from workerd.pool.known_handlers import KnownHandlers
from workerd.pool.loading import LoadedHandlers, preload
from workerd.pool.log_relay import relay
from workerd.pool.monitor import CHECK_INTERVAL_S, Monitor
from workerd.pool.policies import Policies
from workerd.pool.prefetch import Prefetch
from workerd.pool.results import unrunnable
from workerd.pool.shared import NO_END_NS
from workerd.pool.state_relay import StateRelay
from workerd.pool.status import log_fields, queued_count, workers_info
from workerd.pool.worker_manager import WorkerManager
from workerd.pool.worker_messages import HandlerSpec, Loaded, LogRecord, Saved
from workerd.pool.worker_process import WorkerProcess
from workerd.pool.worker_state import WorkerState
from workerd.redaction import Scrubber
from workerd.runtime.child import (
    CANNOT_LOAD_EXIT_STATUS,
    CRASH_LOOP_EXIT_STATUS,
    ORPHANED_EXIT_STATUS,
    become_subreaper,
    children_of,
    outlive_parent,
    share_memory,
)
from workerd.runtime.limits import POOL_NICENESS, yield_processors
from workerd.runtime.loop import Timer
from workerd.runtime.outcome_sender import OutcomeSender
from workerd.runtime.paths import Paths, RoleContext, pool_instance
from workerd.runtime.reaper import OrphanReaper
from workerd.runtime.service import Service
from workerd.tracing import switch as tracing

log = get_logger("pool")


class Pool(Service):
    """Everything between the dispatcher's claims and the ingester's acknowledgements.

    A claim waits in `_queue`, then belongs to one worker, then its outcome belongs to `outcome_sender`
    until it is acknowledged; `holdings` names all of them (law 2).
    """

    def __init__(self, ctx: RoleContext, pool: PoolConfig, life: int) -> None:
        super().__init__(ctx.control, ctx.watchdog)
        config, paths = ctx.config, Paths(ctx.config.node)
        hello = Hello(role="pool", name=pool.name, life=life)
        self._pool = pool
        self._claim_batch = config.dispatcher.batch
        self._crash_loop_drain_s = config.shutdown.drain
        self._exit_status = 0
        self._serving = False
        self._has_worker = False  # one was ready
        self._lease_held = True
        self._start_until_ns = NO_END_NS
        self._assign_scheduled = self._report_scheduled = False
        self._monitor_timer: Timer | None = None
        self._preexisting: set[int] = set()
        self._spared = SparedJobs()
        fair = any(handler.fair for handler in pool.handlers)
        rated = any(handler.rated for handler in pool.handlers)
        # What waits here has had its start or its turn: no more than is needed.
        self._keeps_queue_short = fair or rated
        self._run_times = RunTimeAverage()
        self._claim_times = ClaimTimeAverage()
        self._policies = Policies(config, pool)
        self._handlers = KnownHandlers(config, self._policies)
        self._outcome_sender = OutcomeSender(
            self.loop, paths.ingester, hello, config.ingester.max_payload, self._on_acknowledged,
            self._become_up,
        )  # fmt: skip
        self._dispatcher_link = DispatcherLink(
            self.loop, paths.dispatcher, hello, tuple(handler.name for handler in pool.handlers),
            self._on_dispatcher_message, self._report_capacity_soon,
        )  # fmt: skip
        self._worker_manager = WorkerManager(
            self.loop, pool, self, paths.metrics, pool_instance(pool.name, ctx.generation)
        )
        self._prefetch = Prefetch(self.loop, self._worker_manager, self._policies)
        self._monitor = Monitor(pool, self._worker_manager, self._outcome_sender)
        self._orphan_reaper = OrphanReaper(self.loop, lambda: self._preexisting | self._worker_manager.pids())
        self._state_relay = StateRelay(self.loop, self._outcome_sender)
        self._endings = Endings(
            self._outcome_sender, self._policies, self._handlers, self._state_relay,
            traced=pool.otel is not None,
        )  # fmt: skip
        self._queue = ClaimQueue(self.loop, self._endings.release, fair=fair, rated=rated)
        self._drain = PoolDrain(self.loop, self._worker_manager, self._orphan_reaper, self._exit)

    def run(self) -> int:
        """Serve until the supervisor stops the pool or it cannot go on; returns the exit status."""
        super().run()
        return self._exit_status

    def start(self) -> None:
        """Load the handlers, fork the workers, connect."""
        setproctitle.setproctitle(f"workerd: pool {self._pool.name}")
        for name in [name for name in os.environ if name.startswith("WORKERD_")]:
            del os.environ[name]
        become_subreaper()
        yield_processors(POOL_NICENESS)
        forget_exit_functions()
        tracing.prepare_runs(self._pool.otel)
        noted_calls.watch()
        # The loop does not run while handlers are imported: the supervisor must know how long that may take.
        self.trouble = f"Its handlers are being loaded; `load_timeout` is {self._pool.load_timeout:g} s."
        self.beat()
        self.supervisor.flush()
        self.trouble = ""
        loaded: LoadedHandlers | None = None
        if self._pool.preload:
            try:
                loaded = preload(self._pool)
            except LoadError as error:
                self._fail_to_load(str(error))
                return
            self._learn_handlers(loaded.specs, loaded.sources)
        # Only now is the end of the supervisor's channel read, and are there children to end before us.
        outlive_parent()
        share_memory()
        # Children that an import started belong to the handler; later ones were left behind by workers.
        self._preexisting = set(children_of(os.getpid()))
        self._serving = True
        self._worker_manager.start(loaded)
        self._outcome_sender.start()
        self._dispatcher_link.start()

    def _fail_to_load(self, error: str) -> None:
        log.error("pool.load_failed", pool=self._pool.name, error=error)
        self._exit_status = CANNOT_LOAD_EXIT_STATUS
        self.become("failed", error)
        self.loop.call_later(0, self.loop.stop)

    def _learn_handlers(self, specs: list[HandlerSpec], sources: dict[str, int]) -> None:
        self._handlers.learn(specs, sources)
        self._outcome_sender.announce([Seen(spec.name, spec.signature) for spec in specs])

    # -- from the dispatcher

    def _on_dispatcher_message(self, message: FromDispatcher) -> None:
        match message:
            case Claims():
                self._on_claims(message.claims)
            case Cancel():
                self._on_cancel(message.key)
            case Release():
                self._release_unstarted(message.handlers)
            case Inventory():
                held = list(self._holdings())
                self._dispatcher_link.send(
                    Holdings(message.token, [h.ref for h in held], [h.claimed_at for h in held])
                )
            case LeaseState():
                self._start_until_ns = message.until_ns
                self._worker_manager.set_start_until(message.until_ns)
                self._on_lease(message.held)

    def _on_claims(self, claims: list[Claim]) -> None:
        self._claim_times.add(max(0, time.monotonic_ns() - claims[0].mono) / 1e9)
        self._report_capacity_soon()
        if not self._may_start_jobs:
            self._endings.release(claims)
            return
        known = [claim for claim in claims if claim.handler in self._policies]
        if len(known) < len(claims):
            self._endings.release([claim for claim in claims if claim.handler not in self._policies])
        if any(claim.is_ahead for claim in known):
            self._prefetch.make_way()
        self._queue.extend(known)
        self._assign_queued()
        if self._queue.waiting:
            self._start_monitor()  # which releases claims that no worker takes

    def _on_cancel(self, ref: AttemptRef) -> None:
        workers = self._worker_manager.workers.values()
        for worker in workers:
            if any(attempt.claim.ref == ref for attempt in worker.queued):
                worker.revoke()
        for claim in self._queue.take(lambda claim: claim.ref == ref):
            self._endings.cancel(claim)
        for worker in workers:
            if worker.attempt is not None and worker.attempt.claim.ref == ref:
                worker.cancel()

    def _on_lease(self, held: bool) -> None:
        if held == self._lease_held:
            return
        self._lease_held = held
        self._worker_manager.set_stopping(not self._may_start_jobs)
        if not held:
            self._release_unstarted()
        self._report_capacity_soon()

    def _holdings(self) -> Iterator[ClaimedAttempt | Outcome]:
        yield from self._queue.waiting
        yield from (attempt.claim for attempt in self._worker_manager.attempts())
        yield from self._outcome_sender.kept()

    @property
    def _may_start_jobs(self) -> bool:
        return self._lease_held and not self._drain.started and not self._lease_is_over

    @property
    def _lease_is_over(self) -> bool:
        """Whether its time is over, which a dispatcher that hangs does not say, nor one that was stopped."""
        return time.monotonic_ns() >= self._start_until_ns

    def _report_capacity_soon(self) -> None:
        """Tell the dispatcher at the end of this turn what the pool can take."""
        if not self._report_scheduled:
            self._report_scheduled = True
            self.loop.at_end_of_turn(self._report_capacity)

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

    def _assign_queued(self) -> None:
        """Assign what waits to idle workers, and prefetch for busy ones."""
        self._assign_scheduled = False
        if self._lease_is_over:
            self._on_lease(held=False)
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
            self.loop.at_end_of_turn(self._assign_queued)

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

    def on_ready(self, worker: WorkerProcess, loaded: Loaded) -> None:
        if loaded.error is not None:
            log.error("worker.not_ready", pool=self._pool.name, worker=worker.name, error=loaded.error)
            self._worker_manager.trouble = loaded.error
            self.become(self.state, loaded.error)
            worker.kill(KillReason.NOT_READY)
            return
        if loaded.specs is not None:
            self._learn_handlers(loaded.specs, loaded.sources)
        worker.flags.set_stopping(not self._may_start_jobs)
        worker.flags.set_start_until(self._start_until_ns)
        self._worker_manager.add_ready(worker)
        self._has_worker = True
        self._become_up()
        self._assign_queued()
        self._report_capacity_soon()

    def _become_up(self) -> None:
        """Up: a worker is ready, and the handlers can be found by those who enqueue."""
        if self._has_worker and self._outcome_sender.announced and not self._drain.started:
            self.become("up")

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
            self._report_capacity_soon()
        if self._drain.started:
            self._finish_if_drained()

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
        elif self._may_start_jobs:
            self._queue.waiting.appendleft(attempt.claim)
            self._assign_soon()
        else:
            self._endings.release([attempt.claim])

    def spares(self, attempt: AssignedAttempt) -> bool:
        return self._spared.spare(attempt)

    def on_death(self, worker: WorkerProcess, attempt: AssignedAttempt | None, status: int) -> None:
        if attempt is not None:
            now = time.monotonic_ns()
            result = result_of_death(attempt, status, worker.kill_reason, now, self._pool.memory_max)
            self._endings.close_attempt(attempt, result, worker.pid, now)
        elif worker.kill_reason is not KillReason.RETIRED and not worker.killed_at_work:
            error = death_error(status, worker.kill_reason)
            log.warning("worker.died", pool=self._pool.name, worker=worker.name, pid=worker.pid, error=error)
            self.become(self.state, self._worker_manager.trouble or error)
        self._orphan_reaper.sweep()
        self._worker_manager.replace_dead(worker, attempt is not None)
        if self._worker_manager.crash_looping and not self._drain.started:
            self._give_up()
        self._assign_queued()
        self._report_capacity_soon()
        self._finish_if_drained()

    def scrubber_of(self, attempt: AssignedAttempt) -> Scrubber | None:
        return self._handlers.scrubber_of(attempt)

    def on_output(self, worker: WorkerProcess, attempt: AssignedAttempt | None, lines: list[str]) -> None:
        self._prefetch.on_output()
        fields = log_fields(self._pool.name, worker, attempt)
        for line in lines:
            log.info("output", line=line, **fields)

    def on_record(self, worker: WorkerProcess, attempt: AssignedAttempt | None, record: LogRecord) -> None:
        self._prefetch.on_output()
        relay(record, log_fields(self._pool.name, worker, attempt))

    def on_output_truncated(self, worker: WorkerProcess, attempt: AssignedAttempt | None, count: int) -> None:
        log.warning("output.truncated", dropped_bytes=count, **log_fields(self._pool.name, worker, attempt))

    def _release_unstarted(self, handlers: tuple[str, ...] = ()) -> None:
        """Release the claims that no worker has started (law 4), of these handlers or of all."""
        self._prefetch.revoke_all()
        self._endings.release(self._queue.take_of(handlers))

    def _on_acknowledged(self) -> None:
        self._report_capacity_soon()
        self._finish_if_drained()

    # -- monitoring

    def _start_monitor(self) -> None:
        if self._monitor_timer is None:
            self._monitor_timer = self.loop.call_later(CHECK_INTERVAL_S, self._check_workers)

    def _check_workers(self) -> None:
        self._monitor_timer = None
        running = self._monitor.check()
        if self._queue.waiting and self._monitor.stuck():
            self._release_unstarted()
        self._worker_manager.recycle_idle()
        self._report_capacity_soon()
        if running or self._queue.waiting or self._pool.max_age:
            self._start_monitor()

    def on_report(self) -> None:
        """Check now whether handler code changed since it was loaded."""
        if self._serving:
            self._handlers.look()

    def log_of(self, message: ReadLog) -> LogText:
        """The log of a job that runs here, or was the last that its worker ran."""
        workers = self._worker_manager.workers.values() if self._serving else ()
        for worker in workers:
            found = worker.log_of(AttemptRef(message.job, message.attempt))
            if found is not None:
                attempt, ended = found
                part = (attempt.log or KeptLog(0)).since(message.start, ended=ended)
                return LogText(message.token, True, attempt.claim.attempt, *part, ended)
        return LogText(message.token)

    def info(self) -> dict[str, Any]:
        """What `workerd status` and the metrics show. `stale`: handler code changed since it was loaded."""
        handlers = [handler.name for handler in self._pool.handlers]
        info: dict[str, Any] = {"handlers": handlers, "stale": self._handlers.stale}
        if self._serving:
            workers = self._worker_manager.workers
            info |= {
                "workers": workers_info(workers),
                "waiting": len(self._queue.waiting) + queued_count(workers.values()),
                "unacknowledged": self._outcome_sender.unacknowledged,
                "done": dict(self._endings.counts),
                "worker_restarts": dict(self._worker_manager.restarts),
                "strangers_killed": self._orphan_reaper.killed,
                "lease_held": self._lease_held and not self._lease_is_over,
                "dispatcher": self._dispatcher_link.connected,
                "ingester": self._outcome_sender.connected,
            }
        return info

    # -- draining and exit

    def on_drain(self, drain: Drain) -> None:
        """Let running jobs finish in time, then interrupt them; exit when all is acknowledged."""
        if not self._serving:
            self.loop.stop()
            return
        self._start_drain(drain)
        if self.state != "failed":
            self.become("draining")

    def on_stop(self) -> None:
        """Drain without waiting for running jobs."""
        self.on_drain(Drain(seconds=0.0))

    def _give_up(self) -> None:
        restart = self._pool.restart
        trouble = f"Its workers died without a job more than {restart.intensity} times in "
        trouble += f"{restart.period:g} s; the last time: {self.trouble}"
        log.error("pool.crash_loop", pool=self._pool.name, error=trouble)
        self._exit_status = CRASH_LOOP_EXIT_STATUS
        self._start_drain(Drain(seconds=self._crash_loop_drain_s))
        self.become("failed", trouble)

    def _start_drain(self, drain: Drain) -> None:
        earlier = self._drain.start(drain.seconds)
        if not drain.overlap:
            self._worker_manager.set_stopping(True)
        if earlier:
            self._release_unstarted()
            self._report_capacity_soon()
            # Claims that were sent before the dispatcher reads that are still received in this turn.
            self.loop.call_later(0, self._finish_if_drained)
        if not drain.overlap:
            self._worker_manager.interrupt_resumable()

    def _finish_if_drained(self) -> None:
        if self._drain.started and not (
            self._queue.waiting or self._worker_manager.busy or self._outcome_sender.unacknowledged
        ):
            self._drain.finish()

    def _exit(self) -> None:
        self._dispatcher_link.stop()
        self._outcome_sender.stop()
        self.loop.stop()

    def on_orphaned(self) -> None:
        """The supervisor is gone: kill every descendant and exit."""
        self._worker_manager.kill_descendants(ORPHANED_TIMEOUT_S)
        os._exit(ORPHANED_EXIT_STATUS)


def main(ctx: RoleContext, pool_name: str, life: int) -> int:
    """Be the pool `pool_name` until the supervisor stops it; returns the exit status."""
    return Pool(ctx, ctx.config.pools[pool_name], life).run()
