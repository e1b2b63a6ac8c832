"""Running ahead: short runs queue in front of a busy worker, and are revoked when one is slow."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable

from workerd.errors import FrameTooLarge
from workerd.job import Claim
from workerd.outcome import RunResult
from workerd.pool.dispatcher_link import RunTimeAverage
from workerd.pool.policies import Policies
from workerd.pool.worker_manager import WorkerManager
from workerd.pool.worker_process import RunningAttempt, WorkerProcess, WorkerState
from workerd.runtime.loop import Loop, Timer

AHEAD = 0.001
"""Seconds of work that may lie in a worker's lane: it need not wait for the pool between short runs.
Measured with no-ops: a quarter less processor time of pool and worker for each."""
DEPTH = 8
"""Runs that may lie there."""
STALL_NS = 10_000_000
"""A run that takes longer is not a short one: what lies behind it is taken back."""
LOOK_EVERY = 0.01


class Prefetch:
    """Gives claims that wait to workers, and takes back what a worker has not begun.

    `limit`: bytes of one payload at present. `refuse` is told a claim that cannot be sent. `begun` is
    called when a run has begun.
    """

    def __init__(
        self,
        loop: Loop,
        crew: WorkerManager,
        waiting: deque[Claim],
        policies: Policies,
        pace: RunTimeAverage,
        limit: Callable[[], int],
        refuse: Callable[[Claim, RunResult], None],
        begun: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._crew = crew
        self._waiting = waiting
        self._policies = policies
        self._pace = pace
        self._limit = limit
        self._refuse = refuse
        self._begun = begun
        self._serials = itertools.count(1)
        self._timer: Timer | None = None
        self._due = False

    def hand_out(self) -> None:
        """Give what waits to whoever may take it."""
        self._due = False
        idle, waiting = self._crew.idle, self._waiting
        while idle and waiting:
            member = idle.pop()
            if member.state is WorkerState.IDLE:  # else it is dying and is forgotten at its death
                self._assign(member)
        if waiting:
            for member in self._crew.members.values():
                self._stock(member)

    def soon(self) -> None:
        """Do so at the end of this turn."""
        if not self._due:
            self._due = True
            self._loop.at_end_of_turn(self.hand_out)

    def next_for(self, member: WorkerProcess) -> None:
        """It has ended a run and may have another."""
        if member.run is not None:
            self._stock(member)
        elif self._waiting:
            self._assign(member)
            self._stock(member)
        else:
            self._crew.idle.append(member)

    def _run(self, claim: Claim) -> RunningAttempt:
        return RunningAttempt(next(self._serials), claim, self._policies.of(claim), time.monotonic_ns())

    def _assign(self, member: WorkerProcess) -> None:
        run = self._run(self._waiting.popleft())
        try:
            member.assign(run, self._limit())
        except FrameTooLarge as error:
            ending = RunResult(serial=run.serial, kind="failure", error=f"Its vars are too large: {error}.")
            self._refuse(run.claim, ending)
            self._crew.idle.append(member)
            self.soon()
            return
        self._begun()

    def _stock(self, member: WorkerProcess) -> None:
        """Put short runs into its lane."""
        waiting = self._waiting
        depth = self._depth()
        if not waiting or len(member.ahead) >= depth or not self._quick(member):
            return
        while waiting and len(member.ahead) < depth:
            if not member.stock(self._run(waiting[0]), self._limit()):
                break
            waiting.popleft()
        if member.ahead and self._timer is None:
            self._timer = self._loop.call_later(LOOK_EVERY, self._look)

    def _depth(self) -> int:
        seconds = self._pace.seconds
        if seconds is None or self._crew.bounded:  # who is looked at after each run gets one at a time
            return 0
        return min(DEPTH, int(AHEAD / max(seconds, 1e-6)))

    def _quick(self, member: WorkerProcess) -> bool:
        run = member.run
        return (
            run is not None
            and member.state is WorkerState.RUNNING
            and time.monotonic_ns() - run.start_ns < STALL_NS
        )

    # -- taking back

    def take_back(self) -> None:
        """Take from every worker what it has not begun."""
        for member in list(self._crew.members.values()):
            member.give_back()

    def _look(self) -> None:
        self._timer = None
        late = time.monotonic_ns() - STALL_NS
        stocked = [member for member in self._crew.members.values() if member.ahead]
        for member in stocked:
            if member.run is not None and member.run.start_ns < late:
                member.give_back()
        if stocked:
            self._timer = self._loop.call_later(LOOK_EVERY, self._look)
