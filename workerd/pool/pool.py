"""The pool's process: claims in, assignments to workers, outcomes out, whatever became of them."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Protocol

import msgspec
import setproctitle

from workerd.config.model import Config, PoolConfig
from workerd.errors import LoadError
from workerd.job import AttemptRef, Claim, id_text
from workerd.log import get_logger
from workerd.messages import Hello, Loaded, Seen
from workerd.metrics import values
from workerd.outcome import Outcome, RunResult, released
from workerd.pool import loading
from workerd.pool.dispatcher_link import Capacity, Desk, DispatcherLink, RunTimeAverage
from workerd.pool.loading import LoadedHandlers, preload
from workerd.pool.monitor import Monitor
from workerd.pool.policies import Policies
from workerd.pool.prefetch import Prefetch
from workerd.pool.shared import WorkerFds
from workerd.pool.worker import worker_main
from workerd.pool.worker_manager import WorkerMain, WorkerManager
from workerd.pool.worker_process import (
    KillReason,
    RunningAttempt,
    WorkerProcess,
    WorkerState,
    death_sentence,
    ending_of_death,
)
from workerd.runtime.child import (
    CANNOT_LOAD_EXIT_STATUS,
    CRASH_LOOP_EXIT_STATUS,
    ORPHANED_EXIT_STATUS,
    become_subreaper,
    children_of,
    outlive_parent,
)
from workerd.runtime.loop import Loop, Timer
from workerd.runtime.outcome_sender import OutcomeSender
from workerd.runtime.paths import Paths, RoleContext
from workerd.runtime.reaper import Strangers
from workerd.runtime.service import Service


def worker_info(member: WorkerProcess) -> dict[str, Any]:
    """One worker; `since` and `deadline` (soft) are monotonic seconds."""
    info: dict[str, Any] = {
        "name": member.name,
        "pid": member.pid,
        "state": member.state.value,
        "since": round(member.since, 3),
        "jobs": member.jobs,
    }
    run = member.run
    if run is not None:
        info |= {
            "job": id_text(run.claim.id),
            "attempt": run.claim.attempt,
            "handler": run.claim.handler,
            "since": round(run.start_ns / 1e9, 3),
            "deadline": round(run.soft_ns / 1e9, 3) if run.deadline > 0 else None,
            "progress": run.progress,
            "note": run.note,
        }
    return info


_CANCELLED = RunResult(serial=0, kind="cancelled", error="It was cancelled before it began.")

log = get_logger("pool")


class Head(Protocol):
    """Who leads the pool's process."""

    def on_up(self) -> None:
        """A worker is ready."""

    def on_trouble(self, sentence: str) -> None:
        """A worker cannot be made ready."""

    def on_crash_loop(self) -> None:
        """Workers without a job die again and again."""

    def on_less(self) -> None:
        """Something ended: a run, a worker, or the way of an outcome."""


class Work:
    """Everything between the dispatcher's claims and the ingester's acknowledgements.

    `closed`: the pool drains, nothing more is taken. `held`: the node's lease is certain.
    """

    def __init__(
        self,
        loop: Loop,
        config: Config,
        pool: PoolConfig,
        life: int,
        main: WorkerMain,
        kept: set[int],
        head: Head,
    ) -> None:
        self.closed = False
        self.held = True
        self.done: Counter[str] = Counter()
        self.sources: dict[str, int] = {}
        self.policies = Policies(config, pool)
        self._loop = loop
        self._pool = pool
        self._head = head
        self._batch = config.dispatcher.batch
        self._pace = RunTimeAverage()
        paths = Paths(config.node)
        hello = Hello(role="pool", name=pool.name, life=life)
        self.outcome_sender = OutcomeSender(
            loop, paths.ingester, hello, config.ingester.max_payload, self._on_acknowledged
        )
        desk = Desk(self._room, self._claimed, self._cancel, self._give_back, self._holdings, self._lease)
        handlers = tuple(handler.name for handler in pool.handlers)
        self.intake = DispatcherLink(loop, paths.dispatcher, hello, handlers, desk)
        self.crew = WorkerManager(loop, pool, self, main, head.on_crash_loop)
        self.handing = Prefetch(
            loop, self.crew, self.intake.waiting, self.policies, self._pace,
            lambda: self.outcome_sender.max_payload, self._settle, lambda: self.watch.wake(),
        )  # fmt: skip
        # What the import itself started is the handler's own; all that comes later is nobody's.
        self.strangers = Strangers(loop, lambda: kept | self.crew.pids())
        self.watch = Monitor(loop, pool, self)

    def start(self) -> None:
        """Fork the workers and connect."""
        self.crew.start()
        self.outcome_sender.start()
        self.intake.start()

    def learn(self, loaded: Loaded) -> None:
        """Take over what loading the handlers told."""
        if loaded.specs is not None:
            self.policies.learn(loaded.specs)
            self.outcome_sender.announce([Seen(spec.name, spec.signature) for spec in loaded.specs])
        for file, changed_at in loaded.sources.items():
            # The oldest counts: a worker that was forked later may have imported newer code than the rest.
            self.sources[file] = min(changed_at, self.sources.get(file, changed_at))

    # -- from the dispatcher

    def _room(self) -> Capacity | None:
        if self.closed or not self.held or self.outcome_sender.full:
            return None
        idle = len(self.crew.idle) + self.crew.coming
        if not idle and self.watch.all_slow():
            return Capacity(0, 0)
        return Capacity(idle, self._pace.ahead(len(self.crew.members), self._batch))

    def _claimed(self, claims: list[Claim]) -> None:
        if self.closed or not self.held:
            self._release(claims)
            return
        for claim in claims:
            if claim.handler in self.policies:
                self.intake.waiting.append(claim)
            else:
                self.outcome_sender.send(released(claim))
        self.handing.hand_out()
        if self.intake.waiting:
            self.watch.wake()  # it gives back what nobody takes

    def _cancel(self, key: AttemptRef) -> None:
        for member in self.crew.members.values():
            if any(run.claim.ref == key for run in member.ahead):
                member.give_back()
        for claim in self.intake.remove(lambda claim: claim.ref == key):
            self._settle(claim, _CANCELLED)
        for member in self.crew.members.values():
            if member.run is not None and member.run.claim.ref == key:
                member.cancel()

    def _give_back(self, handlers: tuple[str, ...]) -> None:
        self.handing.take_back()
        self._release(self.intake.remove(lambda claim: not handlers or claim.handler in handlers))

    def _release(self, claims: list[Claim]) -> None:
        for claim in claims:
            self.outcome_sender.send(released(claim))

    def release_waiting(self) -> None:
        """Give back everything that no worker has begun."""
        self._give_back(())
        self.intake.consider()

    def _holdings(self) -> Iterator[AttemptRef]:
        yield from (claim.ref for claim in self.intake.waiting)
        for member in self.crew.members.values():
            if member.run is not None:
                yield member.run.claim.ref
            yield from (run.claim.ref for run in member.ahead)
        yield from self.outcome_sender.keys()

    def _lease(self, held: bool) -> None:
        if held == self.held:
            return
        self.held = held
        self.set_stopping()
        if held:
            self.intake.consider()
        else:
            self.release_waiting()

    # -- from the workers

    def on_ready(self, member: WorkerProcess, loaded: Loaded) -> None:
        if loaded.error is not None:
            log.error("worker is not ready", pool=self._pool.name, worker=member.name, error=loaded.error)
            self.crew.trouble = loaded.error
            self._head.on_trouble(loaded.error)
            member.kill(KillReason.NOT_READY)
            return
        self.learn(loaded)
        member.page.set_stopping(self.closed or not self.held)
        self.crew.ready(member)
        self._head.on_up()
        self.handing.hand_out()
        self.intake.consider()

    def on_ending(self, member: WorkerProcess, run: RunningAttempt, ending: RunResult) -> None:
        now = time.monotonic_ns()
        self._pace.note((now - run.start_ns) / 1e9)
        self._settle_run(member, run, ending, now)
        if self.crew.done(member, ending.tainted):
            self.handing.next_for(member)
        if len(self.intake.waiting) <= self.intake.low:
            self.intake.consider()
        if self.closed:
            self._head.on_less()

    def on_unread(self, run: RunningAttempt) -> None:
        if run.cancelled:
            self._settle(run.claim, _CANCELLED)
        elif self.closed or not self.held:
            self._release([run.claim])
        else:
            self.intake.waiting.appendleft(run.claim)
            self.handing.soon()

    def on_dead(self, member: WorkerProcess, run: RunningAttempt | None, status: int) -> None:
        if run is not None:
            now = time.monotonic_ns()
            ending = ending_of_death(run, status, member.verdict, now, self._pool.memory_max)
            self._settle_run(member, run, ending, now)
        elif member.verdict is not KillReason.RETIRED:
            sentence = death_sentence(status, member.verdict)
            log.warning(
                "worker died without a job", pool=self._pool.name, worker=member.name, pid=member.pid,
                error=sentence,
            )  # fmt: skip
            self._head.on_trouble(self.crew.trouble or sentence)
        self.strangers.sweep()
        self.crew.gone(member, run is not None)
        self.handing.hand_out()
        self.intake.consider()
        self._head.on_less()

    def on_lines(self, member: WorkerProcess, run: RunningAttempt | None, lines: list[str]) -> None:
        where = self._where(member, run)
        for line in lines:
            log.info("output", line=line, **where)

    def on_dropped(self, member: WorkerProcess, run: RunningAttempt | None, count: int) -> None:
        log.warning("more output was not logged", bytes=count, **self._where(member, run))

    def _where(self, member: WorkerProcess, run: RunningAttempt | None) -> dict[str, Any]:
        where: dict[str, Any] = {"pool": self._pool.name, "worker": member.name}
        if run is not None:
            where |= {
                "handler": run.claim.handler,
                "job": id_text(run.claim.id),
                "attempt": run.claim.attempt,
            }
        return where

    # -- to the ingester

    def _settle_run(self, member: WorkerProcess, run: RunningAttempt, ending: RunResult, now_ns: int) -> None:
        began = run.began_ns(ending, now_ns)
        outcome = self.policies.settle(
            run.claim, ending, started_ns=began, finished_ns=now_ns, pid=member.pid
        )
        if run.cancelled and outcome.next is not None:
            # It failed, or died, while it was being cancelled: nobody wants it to be tried again.
            ending = msgspec.structs.replace(ending, kind="cancelled")
            outcome = self.policies.settle(
                run.claim, ending, started_ns=began, finished_ns=now_ns, pid=member.pid
            )
        self._send(outcome)

    def _settle(self, claim: Claim, ending: RunResult) -> None:
        self._send(self.policies.settle(claim, ending))

    def _send(self, outcome: Outcome) -> None:
        self.outcome_sender.send(outcome)
        self.done[outcome.reason or ""] += 1
        if outcome.success is False:
            self._log_failure(outcome)

    def _log_failure(self, outcome: Outcome) -> None:
        log.warning(
            "attempt failed", handler=outcome.handler, job=id_text(outcome.id), attempt=outcome.attempt,
            reason=outcome.reason, status=outcome.status, error=outcome.error,
        )  # fmt: skip

    def _on_acknowledged(self) -> None:
        self.intake.consider()
        if self.closed:
            self._head.on_less()

    # -- the end

    def set_stopping(self) -> None:
        """Let every handler see in ctx.stopping whether it should come to an end."""
        for member in self.crew.members.values():
            if member.state is not WorkerState.DEAD:
                member.page.set_stopping(self.closed or not self.held)

    def close(self) -> None:
        """Take nothing more, give back what waits, start no worker."""
        self.closed = True
        self.crew.close()
        self.set_stopping()
        self.release_waiting()

    def interrupt(self) -> None:
        """Kill what runs; its attempts end as interrupted."""
        for member in list(self.crew.members.values()):
            if member.run is not None:
                member.kill(KillReason.INTERRUPTED)

    @property
    def finished(self) -> bool:
        """Nothing runs, nothing waits, and everything is acknowledged."""
        return not (
            self.intake.waiting
            or self.outcome_sender.unacknowledged
            or any(member.run is not None for member in self.crew.members.values())
        )

    def info(self) -> dict[str, Any]:
        """What `workerd status` and the metrics show."""
        return {
            "workers": [worker_info(member) for member in self.crew.members.values()],
            "waiting": len(self.intake.waiting) + sum(len(m.ahead) for m in self.crew.members.values()),
            "unacknowledged": self.outcome_sender.unacknowledged,
            "done": dict(self.done),
            "worker_restarts": dict(self.crew.restarts),
            "strangers_killed": self.strangers.killed,
            "lease_held": self.held,
            "dispatcher": self.intake.connected,
            "ingester": self.outcome_sender.connected,
        }


LAST_WAIT = 2.0
"""Seconds that the workers, and what they left, have for being gone at the end."""
_GONE_EVERY = 0.002


class Manager(Service):
    """One pool's process under the supervisor."""

    def __init__(self, ctx: RoleContext, pool: PoolConfig, life: int) -> None:
        super().__init__(ctx.control, ctx.watchdog)
        self._config = ctx.config
        self._pool = pool
        self._life = life
        self._loaded: LoadedHandlers | None = None
        self._work: Work | None = None
        self._status = 0
        self._drain_timer: Timer | None = None
        self._drain_ends = 0.0
        self._last_end = 0.0
        self._stale = False
        self._metrics = Paths(ctx.config.node).metrics

    def run(self) -> int:
        """Serve until the supervisor says stop, or until there is no sense in going on."""
        super().run()
        return self._status

    def start(self) -> None:
        """Load, fork, connect. The loop does not turn before; the supervisor knows how long that may take."""
        setproctitle.setproctitle(f"workerd: pool {self._pool.name}")
        for name in [name for name in os.environ if name.startswith("WORKERD_")]:
            del os.environ[name]
        become_subreaper()
        self.trouble = f"Its handlers are being loaded; `load_timeout` is {self._pool.load_timeout:g} s."
        self.beat()
        self.supervisor.flush()
        self.trouble = ""
        told = Loaded(specs=None)
        if self._pool.preload:
            try:
                self._loaded = preload(self._pool)
            except LoadError as error:
                self._cannot_load(str(error))
                return
            told = Loaded(specs=list(self._loaded.specs), sources=self._loaded.sources)
        # From here on the end of the supervisor's channel is read, and there is something to end before us.
        outlive_parent()
        # What is there now is shared with every worker for as long as neither of us writes to it.
        gc.collect()
        gc.freeze()
        kept = set(children_of(os.getpid()))
        self._work = Work(self.loop, self._config, self._pool, self._life, self._be_worker, kept, self)
        self._work.learn(told)
        self._work.start()

    def _be_worker(self, fds: WorkerFds, name: str) -> int:
        values.enter(self._metrics, name)
        return worker_main(fds, name, self._pool, self._loaded)

    def _cannot_load(self, sentence: str) -> None:
        log.error("handlers do not load", pool=self._pool.name, error=sentence)
        self._status = CANNOT_LOAD_EXIT_STATUS
        self.become("failed", sentence)
        self.loop.call_later(0, self.loop.stop)

    # -- told by the work

    def on_up(self) -> None:
        if not self._draining:
            self.become("up")

    def on_trouble(self, sentence: str) -> None:
        self.become(self.state, sentence)

    def on_crash_loop(self) -> None:
        self._status = CRASH_LOOP_EXIT_STATUS
        trouble = f"Its workers died without a job more than {self._pool.restart.intensity} times in "
        trouble += f"{self._pool.restart.period:g} s; the last time: {self.trouble}"
        log.error("pool gives up", pool=self._pool.name, error=trouble)
        self._drain(self._config.shutdown.drain)
        self.become("failed", trouble)

    def on_less(self) -> None:
        if self._draining and not self._last_end:
            self._end_if_finished()

    # -- told by the supervisor

    @property
    def _draining(self) -> bool:
        return self._drain_timer is not None

    def on_drain(self, seconds: float) -> None:
        """Let what runs finish within `seconds`, then interrupt it; end when all is acknowledged."""
        if self._work is None:
            self.loop.stop()
            return
        self._drain(seconds)
        if self.state != "failed":
            self.become("draining")

    def on_stop(self) -> None:
        """The same at once."""
        self.on_drain(0.0)

    def _drain(self, seconds: float) -> None:
        assert self._work is not None
        ends = time.monotonic() + seconds
        if self._drain_timer is not None:
            if ends >= self._drain_ends:
                return
            self._drain_timer.cancel()
        self._drain_ends = ends
        self._drain_timer = self.loop.call_at(ends, self._work.interrupt)
        self._work.close()
        # Claims that are on their way when the pool says that it takes no more are still read in this turn.
        self.loop.call_later(0, self.on_less)

    def _end_if_finished(self) -> None:
        assert self._work is not None
        if self._work.finished:
            self._last_end = time.monotonic() + LAST_WAIT
            self._work.crew.retire_all()
            self._work.strangers.sweep()
            self._end_when_gone()

    def _end_when_gone(self) -> None:
        assert self._work is not None
        gone = not self._work.crew.members and not self._work.strangers.busy
        if gone or time.monotonic() >= self._last_end:
            self._work.intake.stop()
            self._work.outcome_sender.stop()
            self.loop.stop()
            return
        self.loop.call_later(_GONE_EVERY, self._end_when_gone)

    def on_orphaned(self) -> None:
        """An orphan has no right to its claims: everything below it goes with it."""
        end = time.monotonic() + LAST_WAIT / 2
        for pid in self._work.crew.pids() if self._work is not None else ():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        while time.monotonic() < end and _kill_children():
            time.sleep(_GONE_EVERY)
        os._exit(ORPHANED_EXIT_STATUS)

    # -- for people

    def on_report(self) -> None:
        """Somebody looks: see now whether a reload should load the handlers anew."""
        self._stale = self._work is not None and loading.changed(self._work.sources)

    def info(self) -> dict[str, Any]:
        """What `workerd status` and the metrics show. `stale`: handler code changed since it was loaded."""
        handlers = [handler.name for handler in self._pool.handlers]
        info: dict[str, Any] = {"handlers": handlers, "stale": self._stale}
        if self._work is not None:
            info |= self._work.info()
        return info


def _kill_children() -> bool:
    children = children_of(os.getpid())
    for pid in children:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return bool(children)


def main(ctx: RoleContext, pool_name: str, life: int) -> int:
    """Be the pool `pool_name` until the supervisor says stop; returns the exit status."""
    return Manager(ctx, ctx.config.pools[pool_name], life).run()
