"""The workers of a pool: started, replaced, recycled, watched."""

from __future__ import annotations

import math
import os
import random
import time
from collections import Counter, deque
from collections.abc import Callable

from workerd.config.model import PoolConfig
from workerd.log import get_logger
from workerd.pool.shared import WorkerFds
from workerd.pool.worker_limits import PoolLimits, WorkerLimits
from workerd.pool.worker_process import KillReason, Owner, WorkerProcess, WorkerState
from workerd.runtime.child import CrashLoopPolicy
from workerd.runtime.limits import resident_bytes
from workerd.runtime.loop import Loop, Timer

FORKS = 50
"""Forks in any one second."""
SOON = 0.05
"""Seconds; where a worker needs no longer to be ready, a job is asked for while it is being forked."""

log = get_logger("pool")

WorkerMain = Callable[[WorkerFds, str], int]


class RestartBudget:
    """When this worker is to be recycled; jittered, so that workers forked together do not go together."""

    def __init__(self, pool: PoolConfig, member: WorkerProcess) -> None:
        self._member = member
        self._jobs = pool.max_jobs - random.randint(0, pool.max_jobs // 10)
        self._until = member.born + pool.max_age * random.uniform(0.9, 1.0) if pool.max_age else 0.0
        self._growth = pool.max_rss
        self._base = 0

    def ready(self) -> None:
        """It has loaded what it needs: growth counts from here."""
        self._base = resident_bytes(self._member.pid) if self._growth else 0

    def why(self) -> str:
        """Why it is to be recycled now, empty if it is not."""
        if self._jobs and self._member.jobs >= self._jobs:
            return "max_jobs"
        if self._until and time.monotonic() >= self._until:
            return "max_age"
        if self._growth and resident_bytes(self._member.pid) - self._base > self._growth:
            return "max_rss"
        return ""


class WorkerManager:
    """Forks the members and forks them again.

    `on_crash_loop`: called once when members without a job died more often than `restart` allows.
    """

    def __init__(
        self, loop: Loop, pool: PoolConfig, owner: Owner, main: WorkerMain, on_crash_loop: Callable[[], None]
    ) -> None:
        self.members: dict[str, WorkerProcess] = {}
        self.idle: list[WorkerProcess] = []
        self.restarts: Counter[str] = Counter()
        self.trouble = ""
        self._loop = loop
        self._pool = pool
        self._owner = owner
        self._main = main
        self._on_crash_loop = on_crash_loop
        self._limits: dict[str, RestartBudget] = {}
        self._pending: dict[str, Timer] = {}
        self._forks: deque[float] = deque(maxlen=FORKS)
        self._crash_loop = CrashLoopPolicy(pool.restart)  # of workers that had no job
        self._readying = math.inf  # seconds that the last one took
        self._closed = False
        self.confinement = PoolLimits(pool)
        self.bounded = bool(pool.max_jobs or pool.max_age or pool.max_rss)
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    def start(self) -> None:
        """Fork all."""
        for index in range(self._pool.workers):
            self._fork(f"{self._pool.name}/{index}")

    def pids(self) -> set[int]:
        """The processes that are ours and not reaped."""
        return {member.pid for member in self.members.values()}

    def find(self, state: WorkerState) -> list[WorkerProcess]:
        """Those in that state."""
        return [member for member in self.members.values() if member.state is state]

    @property
    def coming(self) -> int:
        """Workers that will be ready in a moment, as far as the last one tells."""
        return len(self.find(WorkerState.STARTING)) if self._readying < SOON else 0

    # -- forking

    def _fork(self, name: str) -> None:
        self._pending.pop(name, None)
        if self._closed:
            return
        wait = self._too_fast()
        if wait > 0:
            self._fork_later(name, wait)
            return
        self._forks.append(time.monotonic())
        cell = self.confinement.cell()
        try:
            member = WorkerProcess(
                self._loop, name, self._owner, self._null, lambda fds: self._live(fds, name, cell), cell
            )
        except OSError as error:
            self.confinement.leave(cell)
            self.trouble = f"A worker cannot be forked ({error.strerror}); it is tried again every second."
            log.warning("worker cannot be forked", pool=self._pool.name, worker=name, error=str(error))
            self._fork_later(name, 1.0)
            return
        self.members[name] = member
        member.load_within(self._pool.load_timeout)
        if self.bounded:
            self._limits[name] = RestartBudget(self._pool, member)

    def _live(self, fds: WorkerFds, name: str, cell: WorkerLimits) -> int:
        cell.enter()
        return self._main(fds, name)

    def _too_fast(self) -> float:
        if len(self._forks) < FORKS:
            return 0.0
        return self._forks[0] + 1.0 - time.monotonic()

    def _fork_later(self, name: str, pause: float) -> None:
        self._pending[name] = self._loop.call_later(pause, lambda: self._fork(name))

    # -- what becomes of them

    def ready(self, member: WorkerProcess) -> None:
        """It has loaded and may be given jobs."""
        self.trouble = ""
        self._readying = time.monotonic() - member.born
        member.move(WorkerState.IDLE)
        if member.name in self._limits:
            self._limits[member.name].ready()
        self.idle.append(member)

    def done(self, member: WorkerProcess, tainted: bool) -> bool:
        """It has ended a job; true if it can be given another, else it goes and is replaced."""
        if not member.fit:
            return False
        self._crash_loop.quick_deaths = 0
        if tainted and member.run is None:
            # What an exception in the middle of anything left behind is not worth a gentle end.
            self.restarts["tainted"] += 1
            member.kill(KillReason.RETIRED)
            return False
        return not (self.bounded and self._recycle(member))

    def _recycle(self, member: WorkerProcess) -> bool:
        why = self._limits[member.name].why()
        if why:
            self.restarts[why] += 1
            member.retire()
        return bool(why)

    def recycle_idle(self) -> None:
        """Retire those that have become too old or too large and have no job."""
        if self.bounded:
            self.idle = [member for member in self.idle if not self._recycle(member)]

    def gone(self, member: WorkerProcess, had_job: bool) -> None:
        """It is dead: forget it and fork another in its place."""
        del self.members[member.name]
        self._limits.pop(member.name, None)
        self.confinement.leave(member.cell)
        if member in self.idle:
            self.idle.remove(member)
        if self._closed:
            return
        if had_job or member.verdict is KillReason.RETIRED:
            self._fork(member.name)
            return
        self._died_without_job(member)

    def _died_without_job(self, member: WorkerProcess) -> None:
        self.restarts["no_job"] += 1
        pause = self._crash_loop.record_death(member.born, time.monotonic())
        if self._crash_loop.exceeded:
            self._on_crash_loop()
        elif pause:
            self._fork_later(member.name, pause)
        else:
            self._fork(member.name)

    # -- the end

    def close(self) -> None:
        """Fork no more."""
        self._closed = True
        for timer in self._pending.values():
            timer.cancel()
        self._pending.clear()

    def retire_all(self) -> None:
        """Let the idle ones end, kill the others."""
        self.idle.clear()
        for member in list(self.members.values()):
            if member.state is WorkerState.IDLE:
                member.retire()
            elif member.state is not WorkerState.RETIRING:
                member.kill(KillReason.RETIRED)
