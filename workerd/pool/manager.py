"""The pool's process: loads the handlers, leads the work, and comes to an orderly end."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import time
from typing import Any

import setproctitle

from workerd import metrics
from workerd.config.model import Pool
from workerd.errors import LoadError
from workerd.log import get_logger
from workerd.messages import Loaded
from workerd.pool import sources
from workerd.pool.fds import WorkerFds
from workerd.pool.loading import LoadedHandlers
from workerd.pool.preload import preload
from workerd.pool.work import Work
from workerd.pool.worker import worker_main
from workerd.process.child import become_subreaper, children_of, outlive_parent
from workerd.process.context import Paths, RoleContext
from workerd.process.loop import Timer
from workerd.process.service import Service

CANNOT_LOAD = 78
"""Exit status of a pool whose handlers do not load."""
CRASH_LOOP = 75
"""Exit status of a pool whose workers die without a job: the supervisor holds it back."""
LAST_WAIT = 2.0
"""Seconds that the workers, and what they left, have for being gone at the end."""
_GONE_EVERY = 0.002

log = get_logger("pool")


class Manager(Service):
    """One pool's process under the supervisor."""

    def __init__(self, ctx: RoleContext, pool: Pool, life: int) -> None:
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
        metrics.enter(self._metrics, name)
        return worker_main(fds, name, self._pool, self._loaded)

    def _cannot_load(self, sentence: str) -> None:
        log.error("handlers do not load", pool=self._pool.name, error=sentence)
        self._status = CANNOT_LOAD
        self.become("failed", sentence)
        self.loop.call_later(0, self.loop.stop)

    # -- told by the work

    def on_up(self) -> None:
        if not self._draining:
            self.become("up")

    def on_trouble(self, sentence: str) -> None:
        self.become(self.state, sentence)

    def on_crash_loop(self) -> None:
        self._status = CRASH_LOOP
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
            self._work.strangers.look()
            self._end_when_gone()

    def _end_when_gone(self) -> None:
        assert self._work is not None
        gone = not self._work.crew.members and not self._work.strangers.busy
        if gone or time.monotonic() >= self._last_end:
            self._work.intake.stop()
            self._work.outbox.stop()
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
        os._exit(71)

    # -- for people

    def on_report(self) -> None:
        """Somebody looks: see now whether a reload should load the handlers anew."""
        self._stale = self._work is not None and sources.changed(self._work.sources)

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
