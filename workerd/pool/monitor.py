"""A look at everything that runs, four times a second while anything does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from workerd import clock
from workerd.config.model import PoolConfig
from workerd.messages import Progress
from workerd.pool.dispatcher_link import AHEAD
from workerd.pool.worker_process import BUSY, KillReason, RunningAttempt, WorkerProcess
from workerd.runtime.limits import resident_bytes
from workerd.runtime.loop import Loop, Timer

if TYPE_CHECKING:
    from workerd.pool.pool import Work


LOOK_EVERY = 0.25
"""Seconds between two looks."""
QUIET_NS = 500_000_000
"""A run that takes longer is told to the store before it ends."""
TELL_EVERY_NS = 1_000_000_000
"""Between two Progress messages of one run."""
STUCK = 1.0
"""Seconds; what waits while no worker takes anything is given back: another node may have room."""


class Monitor:
    """Tells progress, keeps `memory_max`, gives back what waits too long, retires who is too old."""

    def __init__(self, loop: Loop, pool: PoolConfig, work: Work) -> None:
        self._loop = loop
        # Where the kernel keeps the limit, looking from time to time adds nothing.
        self._memory_max = 0 if work.crew.confinement.hard else pool.memory_max
        self._ages = pool.max_age > 0
        self._work = work
        self._timer: Timer | None = None

    def wake(self) -> None:
        """Something began to run."""
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK_EVERY, self._look)

    def all_slow(self) -> bool:
        """Every run has taken longer than one that is worth waiting for."""
        limit = time.monotonic_ns() - int(AHEAD * 1e9)
        return all(
            member.run is None or member.run.start_ns < limit for member in self._work.crew.members.values()
        )

    def _look(self) -> None:
        self._timer = None
        now = time.monotonic_ns()
        running = [member for member in self._work.crew.members.values() if member.run is not None]
        for member in running:
            assert member.run is not None
            self._tell(member, member.run, now)
            if self._memory_max:
                self._weigh(member, member.run)
        if self._work.intake.waiting and all(
            member.run is None or now - member.run.start_ns > STUCK * 1e9 for member in running
        ):
            self._work.release_waiting()
        self._work.crew.recycle_idle()
        self._work.intake.consider()
        if running or self._work.intake.waiting or self._ages:
            self.wake()

    def _tell(self, member: WorkerProcess, run: RunningAttempt, now: int) -> None:
        if now - run.start_ns < QUIET_NS or not run.changed or now - run.told_ns < TELL_EVERY_NS:
            return
        run.changed = False
        run.told_ns = now
        claim = run.claim
        self._work.outcome_sender.notify(
            Progress(
                id=claim.id,
                attempt=claim.attempt,
                claimed_at=claim.claimed_at,
                started_at=clock.after(claim.claimed_at, claim.mono, run.start_ns),
                pid=member.pid,
                progress=run.progress,
                note=run.note,
            )
        )

    def _weigh(self, member: WorkerProcess, run: RunningAttempt) -> None:
        size = resident_bytes(member.pid)
        run.peak_kib = max(run.peak_kib or 0, size // 1024)
        if size > self._memory_max and member.state in BUSY:
            member.kill(KillReason.OOM)
