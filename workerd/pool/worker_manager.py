"""The workers of a pool: forked, recycled, replaced when they die."""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path

from workerd.config.handler_config import PoolConfig
from workerd.log import get_logger
from workerd.metrics import values
from workerd.pool.attempt import AssignedAttempt, KillReason
from workerd.pool.death_blame import DeathBlame
from workerd.pool.loading import LoadedHandlers
from workerd.pool.shared import WorkerFds
from workerd.pool.worker import worker_main
from workerd.pool.worker_limits import PoolLimits, WorkerLimits
from workerd.pool.worker_output import OutputLog
from workerd.pool.worker_process import AttemptOwner, SharedByWorkers, WorkerOwner, WorkerProcess
from workerd.pool.worker_state import WorkerState
from workerd.runtime.child import CrashLoopPolicy, children_of
from workerd.runtime.descriptors import OpenDescriptor, make_dead
from workerd.runtime.limits import WORKER_NICENESS, be_killed_first, resident_bytes, yield_processors
from workerd.runtime.loop import Loop, Timer

MAX_FORKS_PER_S = 50
FAST_START_S = 0.05
"""Where workers are ready sooner, claims are demanded for those that are being forked."""
FORK_RETRY_PAUSE_S = 1.0
_KILL_POLL_S = 0.002

log = get_logger("pool")


class RecycleLimits:
    """When a worker is to be recycled; jittered, so that workers are not all replaced together."""

    def __init__(self, pool: PoolConfig, worker: WorkerProcess) -> None:
        self._worker = worker
        self._max_jobs = pool.max_jobs - random.randint(0, pool.max_jobs // 10)
        self._expires = worker.started_at + pool.max_age * random.uniform(0.9, 1.0) if pool.max_age else 0.0
        self._max_growth = pool.max_rss
        self._initial_rss = 0

    def start(self) -> None:
        """Count growth from now: the worker has loaded what it needs."""
        self._initial_rss = resident_bytes(self._worker.pid) if self._max_growth else 0

    def exceeded(self) -> str:
        """The key of the limit that is exceeded, else empty."""
        if self._max_jobs and self._worker.jobs >= self._max_jobs:
            return "max_jobs"
        if self._expires and time.monotonic() >= self._expires:
            return "max_age"
        if self._max_growth and resident_bytes(self._worker.pid) - self._initial_rss > self._max_growth:
            return "max_rss"
        return ""


class WorkerManager:
    """Keeps the configured number of workers alive.

    `workers`: all that are not reaped, by name. `idle`: those that may be assigned a job; one of them may
    be dying. `restarts`: by cause. `trouble`: why a worker could not be forked or loaded. `recycles`:
    whether workers are checked against recycling limits. `crash_looping`: workers without a job died more
    often than `restart` allows.
    """

    def __init__(
        self, loop: Loop, pool: PoolConfig, output_log: OutputLog, metrics_folder: Path, instance: str
    ) -> None:
        """`instance`: what the files and control groups of this generation of the pool are named after."""
        self.workers: dict[str, WorkerProcess] = {}
        self.idle: list[WorkerProcess] = []
        self.restarts: Counter[str] = Counter()
        self.trouble = ""
        self.limits = PoolLimits(pool, instance)
        self.recycles = bool(pool.max_jobs or pool.max_age or pool.max_rss)
        self._loop = loop
        self._pool = pool
        self._output_log = output_log
        self._shared: SharedByWorkers | None = None  # until they are started
        self._metrics_folder = metrics_folder
        self._instance = instance
        self._loaded: LoadedHandlers | None = None
        self._recycle_limits: dict[str, RecycleLimits] = {}
        self._pending: dict[str, Timer] = {}
        self._forked_at: deque[float] = deque(maxlen=MAX_FORKS_PER_S)
        self._crash_loop = CrashLoopPolicy(pool.restart)  # of workers that had no job
        self._last_start_s = math.inf
        self._closed = False
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    def start(self, loaded: LoadedHandlers | None, owner: WorkerOwner, attempts: AttemptOwner) -> None:
        """Fork all workers; with `loaded` None each of them imports the handlers itself."""
        self._loaded = loaded
        self._shared = SharedByWorkers(owner, attempts, self._output_log, DeathBlame(), self._null)
        for index in range(self._pool.workers):
            self._fork(f"{self._pool.name}/{index}")

    def pids(self) -> set[int]:
        """Pids of the workers, which are not reaped."""
        return {worker.pid for worker in self.workers.values()}

    def attempts(self) -> Iterator[AssignedAttempt]:
        """All attempts that the workers have, running and queued."""
        for worker in self.workers.values():
            if worker.attempt is not None:
                yield worker.attempt
            yield from worker.queued

    @property
    def busy(self) -> bool:
        """Whether any worker has an attempt."""
        return any(worker.attempt is not None for worker in self.workers.values())

    @property
    def crash_looping(self) -> bool:
        return self._crash_loop.exceeded

    @property
    def starting_soon(self) -> int:
        """Workers that will be ready in a moment, judging by the last one."""
        if self._last_start_s >= FAST_START_S:
            return 0
        return sum(worker.state is WorkerState.STARTING for worker in self.workers.values())

    # -- forking

    def _fork(self, name: str) -> None:
        self._pending.pop(name, None)
        if self._closed or self._shared is None:
            return
        pause = self._fork_pause()
        if pause > 0:
            self._fork_later(name, pause)
            return
        self._forked_at.append(time.monotonic())
        limits = self.limits.new_worker()
        try:
            worker = WorkerProcess(
                self._loop, name, self._shared, lambda fds: self._main(fds, name, limits), limits,
                [descriptor.fd for descriptor in self._imported_descriptors()],
            )  # fmt: skip
        except OSError as error:
            self.limits.release(limits)
            self.trouble = f"Forking a worker failed: {error.strerror}; it is retried every second."
            log.warning("worker.fork_failed", pool=self._pool.name, worker=name, error=str(error))
            self._fork_later(name, FORK_RETRY_PAUSE_S)
            return
        self.workers[name] = worker
        worker.kill_unless_ready_within(self._pool.load_timeout)
        if self.recycles:
            self._recycle_limits[name] = RecycleLimits(self._pool, worker)

    def _main(self, fds: WorkerFds, name: str, limits: WorkerLimits) -> int:
        """Runs in the forked child."""
        make_dead(self._imported_descriptors())
        yield_processors(WORKER_NICENESS)
        be_killed_first()
        limits.enter()
        values.enter(self._metrics_folder, self._instance + name.removeprefix(self._pool.name))
        return worker_main(fds, name, self._pool, self._loaded)

    def _imported_descriptors(self) -> list[OpenDescriptor]:
        """What imports left open; not a number that was closed since, and may be the pool's own now."""
        opened = self._loaded.descriptors if self._loaded is not None else ()
        return [descriptor for descriptor in opened if descriptor.is_unchanged]

    def _fork_pause(self) -> float:
        if len(self._forked_at) < MAX_FORKS_PER_S:
            return 0.0
        return self._forked_at[0] + 1.0 - time.monotonic()

    def _fork_later(self, name: str, pause: float) -> None:
        self._pending[name] = self._loop.call_later(pause, lambda: self._fork(name))

    # -- life of a worker

    def add_ready(self, worker: WorkerProcess) -> None:
        """It has loaded and may be assigned jobs."""
        self.trouble = ""
        self._last_start_s = time.monotonic() - worker.started_at
        worker.move(WorkerState.IDLE)
        worker.was_ready = True
        if worker.name in self._recycle_limits:
            self._recycle_limits[worker.name].start()
        self.idle.append(worker)

    def reuse_or_recycle(self, worker: WorkerProcess, tainted: bool) -> bool:
        """True if it may run another job after a result; else it is retired or killed, and replaced."""
        if not worker.usable:
            return False
        self._crash_loop.quick_deaths = 0
        if tainted and worker.attempt is None:
            # The soft signal interrupted arbitrary code: nothing in there is worth a graceful exit.
            self.restarts["tainted"] += 1
            worker.kill(KillReason.RETIRED)
            return False
        return not (self.recycles and self._recycle(worker))

    def _recycle(self, worker: WorkerProcess) -> bool:
        limit = self._recycle_limits[worker.name].exceeded()
        if limit:
            self.restarts[limit] += 1
            worker.retire()
        return bool(limit)

    def recycle_idle(self) -> None:
        """Retire idle workers that have become too old or too large."""
        if self.recycles:
            self.idle = [worker for worker in self.idle if not self._recycle(worker)]

    def replace_dead(self, worker: WorkerProcess, had_job: bool) -> None:
        """Forget a dead worker and fork another, unless `crash_looping` becomes true."""
        del self.workers[worker.name]
        self._recycle_limits.pop(worker.name, None)
        self.limits.release(worker.limits)
        if worker in self.idle:
            self.idle.remove(worker)
        if self._closed:
            return
        # Killed at work, yet without a job: its result came while it was being killed at its deadline.
        if had_job or worker.killed_at_work or worker.kill_reason is KillReason.RETIRED:
            self._fork(worker.name)
            return
        self.restarts["no_job"] += 1
        pause = self._crash_loop.record_death(worker.started_at, time.monotonic())
        if self._crash_loop.exceeded:
            return
        if pause:
            self._fork_later(worker.name, pause)
        else:
            self._fork(worker.name)

    # -- shutdown

    def set_stopping(self, stopping: bool) -> None:
        """Set ctx.stopping in every worker."""
        for worker in self.workers.values():
            if worker.state is not WorkerState.DEAD:
                worker.flags.set_stopping(stopping)

    def void_unstarted(self) -> None:
        """Let no attempt begin that was assigned so far: the node has lost its lease."""
        for worker in self.workers.values():
            if worker.state is not WorkerState.DEAD:
                worker.void_unstarted()

    def set_start_until(self, until_ns: int) -> None:
        """Set until when attempts may begin, in every worker."""
        for worker in self.workers.values():
            if worker.state is not WorkerState.DEAD:
                worker.flags.set_start_until(until_ns)

    def close(self) -> None:
        """Fork no more."""
        self._closed = True
        for timer in self._pending.values():
            timer.cancel()
        self._pending.clear()

    def interrupt_resumable(self) -> None:
        """Interrupt the attempts that go on elsewhere from what they have saved."""
        for worker in list(self.workers.values()):
            if worker.attempt is not None and worker.attempt.resumable:
                worker.interrupt()

    def interrupt_all(self) -> None:
        """Kill the workers that are running a job; their attempts end as interrupted."""
        for worker in list(self.workers.values()):
            if worker.attempt is not None:
                worker.kill(KillReason.INTERRUPTED)

    def end_overlap(self) -> None:
        """Interrupt the attempts that are resumable, kill the others: another generation takes them on."""
        self.set_stopping(True)
        self.interrupt_resumable()
        for worker in list(self.workers.values()):
            if worker.attempt is not None and not worker.attempt.resumable:
                worker.kill(KillReason.OVERLAP_OVER)

    def retire_all(self) -> None:
        """Retire the idle workers, kill the others."""
        self.idle.clear()
        for worker in list(self.workers.values()):
            if worker.state is WorkerState.IDLE:
                worker.retire()
            elif worker.state is not WorkerState.RETIRING:
                worker.kill(KillReason.RETIRED)

    def kill_descendants(self, timeout: float) -> None:
        """Kill every worker and every child of this process; waits `timeout` seconds for them to be gone."""
        deadline = time.monotonic() + timeout
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        while time.monotonic() < deadline and _kill_children():
            time.sleep(_KILL_POLL_S)


def _kill_children() -> bool:
    children = children_of(os.getpid())
    for pid in children:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return bool(children)
