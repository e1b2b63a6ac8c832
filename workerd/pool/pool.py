"""The pool's process: its parts wired together, its life from loading to drain, and what it reports."""

from __future__ import annotations

import os
import time
from typing import Any

import setproctitle

from workerd.config.handler_config import PoolConfig
from workerd.errors import LoadError
from workerd.job import AttemptRef
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
)
from workerd.pool import noted_calls
from workerd.pool.assigner import Assigner
from workerd.pool.attempt import AssignedAttempt, KillReason, death_error, result_of_death
from workerd.pool.claim_queue import ClaimQueue
from workerd.pool.dispatcher_link import DispatcherLink
from workerd.pool.draining import ORPHANED_TIMEOUT_S, PoolDrain
from workerd.pool.endings import Endings
from workerd.pool.isolation import forget_exit_functions
from workerd.pool.kept_log import KeptLog
from workerd.pool.known_handlers import KnownHandlers
from workerd.pool.loading import LoadedHandlers, preload
from workerd.pool.policies import Policies
from workerd.pool.prefetch import Prefetch
from workerd.pool.state_relay import StateRelay
from workerd.pool.status import queued_count, workers_info
from workerd.pool.worker_manager import WorkerManager
from workerd.pool.worker_messages import HandlerSpec, Loaded
from workerd.pool.worker_output import OutputLog
from workerd.pool.worker_process import WorkerProcess
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
from workerd.runtime.outcome_sender import OutcomeSender
from workerd.runtime.paths import Paths, RoleContext, pool_instance
from workerd.runtime.reaper import OrphanReaper
from workerd.runtime.service import Service
from workerd.tracing import switch as tracing

log = get_logger("pool")


class Pool(Service):
    """Everything between the dispatcher's claims and the ingester's acknowledgements."""

    def __init__(self, ctx: RoleContext, pool: PoolConfig, life: int) -> None:
        super().__init__(ctx.control, ctx.watchdog)
        config, paths = ctx.config, Paths(ctx.config.node)
        hello = Hello(role="pool", name=pool.name, life=life)
        self._pool = pool
        self._crash_loop_drain_s = config.shutdown.drain
        self._exit_status = 0
        self._serving = False
        self._has_worker = False  # one was ready
        self._preexisting: set[int] = set()
        fair = any(handler.fair for handler in pool.handlers)
        rated = any(handler.rated for handler in pool.handlers)
        self._policies = Policies(config, pool)
        self._handlers = KnownHandlers(config, self._policies)
        self._outcome_sender = OutcomeSender(
            self.loop, paths.ingester, hello, config.ingester.max_payload, self._on_acknowledged,
            self._become_up,
        )  # fmt: skip
        self._dispatcher_link = DispatcherLink(
            self.loop, paths.dispatcher, hello, tuple(handler.name for handler in pool.handlers),
            self._on_dispatcher_message, lambda: self._assigner.report_capacity_soon(),
        )  # fmt: skip
        output_log = OutputLog(pool.name, self.loop, self._handlers)
        self._worker_manager = WorkerManager(
            self.loop, pool, output_log, paths.metrics, pool_instance(pool.name, ctx.generation)
        )
        prefetch = Prefetch(self.loop, self._worker_manager, self._policies, output_log)
        self._orphan_reaper = OrphanReaper(self.loop, lambda: self._preexisting | self._worker_manager.pids())
        state_relay = StateRelay(self.loop, self._outcome_sender)
        self._endings = Endings(
            self._outcome_sender, self._policies, self._handlers, state_relay, traced=pool.otel is not None
        )
        self._queue = ClaimQueue(self.loop, self._endings.release, fair=fair, rated=rated)
        self._drain = PoolDrain(
            self.loop, self._worker_manager, self._orphan_reaper, self._queue, self._outcome_sender,
            self._exit,
        )  # fmt: skip
        self._assigner = Assigner(
            self.loop, pool, config.dispatcher.batch,
            queue=self._queue,
            policies=self._policies,
            worker_manager=self._worker_manager,
            prefetch=prefetch,
            endings=self._endings,
            state_relay=state_relay,
            drain=self._drain,
            dispatcher_link=self._dispatcher_link,
            outcome_sender=self._outcome_sender,
        )  # fmt: skip

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
        self._worker_manager.start(loaded, self, self._assigner)
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
                self._assigner.on_claims(message.claims)
            case Cancel():
                self._assigner.on_cancel(message.key)
            case Release():
                self._assigner.release_unstarted(message.handlers)
            case Inventory():
                held = list(self._assigner.holdings())
                self._dispatcher_link.send(
                    Holdings(message.token, [h.ref for h in held], [h.claimed_at for h in held])
                )
            case LeaseState():
                self._assigner.on_lease(message)

    # -- life of the workers

    def on_ready(self, worker: WorkerProcess, loaded: Loaded) -> None:
        if loaded.error is not None:
            log.error("worker.not_ready", pool=self._pool.name, worker=worker.name, error=loaded.error)
            self._worker_manager.trouble = loaded.error.partition("\n")[0]  # the stack is for the log
            self.become(self.state, self._worker_manager.trouble)
            worker.kill(KillReason.NOT_READY)
            return
        if loaded.specs is not None:
            self._learn_handlers(loaded.specs, loaded.sources)
        self._assigner.add_worker(worker)
        self._has_worker = True
        self._become_up()
        self._assigner.assign_queued()
        self._assigner.report_capacity_soon()

    def _become_up(self) -> None:
        """Up: a worker is ready, and the handlers can be found by those who enqueue."""
        if self._has_worker and self._outcome_sender.announced and not self._drain.started:
            self.become("up")

    def on_death(self, worker: WorkerProcess, attempt: AssignedAttempt | None, status: int) -> None:
        if attempt is not None:
            now = time.monotonic_ns()
            result = result_of_death(attempt, status, worker.kill_reason, now, self._pool.memory_max)
            self._endings.close_attempt(attempt, result, worker.pid, now)
        elif worker.kill_reason is not KillReason.RETIRED and not worker.killed_at_work:
            error = death_error(status, worker.kill_reason, ready=worker.was_ready)
            log.warning("worker.died", pool=self._pool.name, worker=worker.name, pid=worker.pid, error=error)
            self.become(self.state, self._worker_manager.trouble or error)
        self._orphan_reaper.sweep()
        self._worker_manager.replace_dead(worker, attempt is not None)
        if self._worker_manager.crash_looping and not self._drain.started:
            self._give_up()
        self._assigner.assign_queued()
        self._assigner.report_capacity_soon()
        self._drain.finish_if_done()

    def _on_acknowledged(self) -> None:
        self._assigner.report_capacity_soon()
        self._drain.finish_if_done()

    # -- what it reports

    def on_report(self) -> None:
        """Check now whether handler code changed since it was loaded."""
        if self._serving:
            self._handlers.look()

    def log_of(self, message: ReadLog) -> LogText:
        """The log of a job that runs here, or was the last that its worker ran."""
        workers = self._worker_manager.workers.values() if self._serving else ()
        for worker in workers:
            found = worker.output.log_of(AttemptRef(message.job, message.attempt))
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
                "lease_held": self._assigner.lease_held,
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
        earlier = self._drain.start(drain.seconds, overlap=drain.overlap)
        if not drain.overlap:
            self._worker_manager.set_stopping(True)
        if earlier:
            self._assigner.release_unstarted()
            self._assigner.report_capacity_soon()
            # Claims that were sent before the dispatcher reads that are still received in this turn.
            self.loop.call_later(0, self._drain.finish_if_done)
        if not drain.overlap:
            self._worker_manager.interrupt_resumable()

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
