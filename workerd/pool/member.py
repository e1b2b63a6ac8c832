"""A worker as its pool sees it: the process, its channel, and the force that keeps its deadlines."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable

from workerd.log import get_logger
from workerd.messages import Assignment, FromWorker, Progressed
from workerd.outcome import Ending
from workerd.pool.confinement import Cell
from workerd.pool.fds import DUMP_SIGNAL, SOFT_SIGNAL, WorkerFds
from workerd.pool.lane import Lane
from workerd.pool.owner import Owner
from workerd.pool.page import Page
from workerd.pool.run import Run, trim
from workerd.pool.states import BUSY, MOVES, State, Verdict
from workerd.process.alarm import Alarm
from workerd.process.channel import Channel
from workerd.process.child import fork
from workerd.process.dump import StackDump, kernel_view
from workerd.process.loop import Loop
from workerd.process.output import Output

SIGNAL_EVERY = 0.1
"""Seconds between soft signals: one may come while user code holds exceptions back."""
DUMP_WAIT = 0.1
"""Seconds that a worker has for writing its stacks before it is killed without: it takes 1 ms, but on a
busy machine it may not run at all for 20 ms, and why it hung is worth that wait."""
_LOOK_EVERY = 0.001
CUT_OFF_WAIT = 0.05
"""Seconds that a worker whose channel has ended has for being dead."""
RETIRE_WAIT = 1.0
"""Seconds that a worker has for ending by itself after its channel was closed."""

_UNREAD = frozenset({Verdict.NONE, Verdict.FAULT, Verdict.DEADLINE, Verdict.INTERRUPTED})
"""Verdicts that leave a run unharmed which its worker has never read."""

log = get_logger("pool")


class Member:
    """One worker process. It is in one of the states of `states.py` and holds at most one run.

    `run` is what it is at; `ahead` lies in its lane, and goes on in that order unless it is taken back.
    `start` runs in the forked child. `verdict` is why the pool killed it.
    """

    def __init__(
        self, loop: Loop, name: str, owner: Owner, null: int, start: Callable[[WorkerFds], int], cell: Cell
    ) -> None:
        self.name = name
        self.cell = cell
        self.state = State.STARTING
        self.since = self.born = time.monotonic()
        self.run: Run | None = None
        self.ahead: deque[Run] = deque()
        self.verdict = Verdict.NONE
        self.jobs = 0
        self._loop = loop
        self._owner = owner
        self._dying = False
        self._progress_turn = -1
        self._dump_size = 0
        self._dump_until = 0.0
        self._max_payload = 0
        self._by_channel = False
        self.page = Page()
        self._lane = Lane()
        self._dump = StackDump()
        self._alarm = Alarm(loop, self._ring)
        self._fork(null, start)

    def _fork(self, null: int, start: Callable[[WorkerFds], int]) -> None:
        ours, theirs = socket.socketpair()
        reading, writing = os.pipe()
        fds = WorkerFds(
            theirs.fileno(),
            self._lane.fileno(),
            output=writing,
            null=null,
            page=self.page,
            dump=self._dump.fd,
        )
        try:
            self.child = fork(lambda: start(fds), keep=(fds.channel, fds.lane, writing, null, fds.dump))
        except OSError:
            ours.close()
            os.close(reading)
            self._lane.close()
            self._dump.close()
            self.page.close()
            raise
        finally:
            theirs.close()
            os.close(writing)
        self.output = Output(self._loop, reading, self._lines, self._catch_up)
        self.channel: Channel[FromWorker] = Channel(
            self._loop, ours, FromWorker, self._on_message, self._on_eof, rank=1
        )
        self._loop.on_readable(self.child.pidfd, self._on_death, rank=2)

    @property
    def pid(self) -> int:
        return self.child.pid

    def move(self, state: State) -> None:
        """Change the state; an impossible change is a fault of the pool."""
        assert state in MOVES[self.state], f"{self.name}: {self.state} -> {state}"
        self.state = state
        self.since = time.monotonic()

    # -- giving it work

    def load_within(self, seconds: float) -> None:
        """Kill it if it is not ready by then."""
        self._alarm.set(time.monotonic() + seconds)

    def assign(self, run: Run, max_payload: int) -> None:
        """Give it a run; it must be idle. Raises FrameTooLarge, and is idle still."""
        if self.output.touched:
            self._close_period(None)
        self._max_payload = max_payload
        assignment = Assignment(run.serial, run.claim, run.deadline, max_payload)
        self.page.begin(run.serial, run.soft_ns)
        self._by_channel = not self._lane.put(assignment)
        if self._by_channel:
            self.channel.post(assignment)
            self._lane.announce(assignment)
        self._at(run)

    def stock(self, run: Run, max_payload: int) -> bool:
        """Let a run lie ahead, to be begun when those before it have ended; false if there is no room."""
        # Behind one that came by the channel nothing may lie: that one could not be taken back with it.
        if self._by_channel or not self._lane.put(
            Assignment(run.serial, run.claim, run.deadline, max_payload)
        ):
            return False
        self.ahead.append(run)
        return True

    def _at(self, run: Run) -> None:
        self.run = run
        self.state = State.RUNNING
        self.since = run.start_ns / 1e9
        if run.deadline > 0:
            self._alarm.set(self.since + run.deadline)

    def give_back(self) -> None:
        """Give its owner the runs ahead that it has not begun.

        Afterwards nothing is ahead: if it had gone on meanwhile, the endings before are there to be read.
        Not to be called while its channel is being read.
        """
        if not self.ahead:
            return
        taken = self._lane.take_back()
        back = [run for run in self.ahead if run.serial in taken]
        self.ahead = deque(run for run in self.ahead if run.serial not in taken)
        if self.run is not None and self.run.serial in taken:
            self._not_begun(self.run, back)
        self._catch_up()
        for run in reversed(back):
            self._owner.on_unread(run)

    def _not_begun(self, run: Run, back: list[Run]) -> None:
        """Its present run was taken back too: it has gone on to a later one, or still gets it."""
        if self.ahead:
            back.insert(0, run)
            self._go_on()
        else:
            self._lane.put(Assignment(run.serial, run.claim, run.deadline, self._max_payload))

    def _go_on(self) -> None:
        run = self.ahead.popleft()
        run.start(time.monotonic_ns())
        if self._dying or self.state not in BUSY:
            self.run = run
            return
        self.page.begin(run.serial, run.soft_ns)
        self._at(run)

    def _catch_up(self) -> None:
        """Hear which run it is at."""
        if self.ahead:
            self.channel.drain()

    def _is_at(self, run: Run) -> bool:
        """Whether a blow hits this run and no other: nothing is ahead of it any more."""
        self.give_back()
        return self.run is run

    @property
    def fit(self) -> bool:
        """Whether it may go on after a run."""
        return not self._dying and self.state in (State.IDLE, State.RUNNING)

    def cancel(self) -> None:
        """End the present run as cancelled: by signal, by force when its grace is over."""
        run = self.run
        if run is None or run.cancelled or not self._is_at(run):
            return
        run.cancelled = True
        if self.state in (State.RUNNING, State.INTERRUPTING):
            self.page.ask_cancel()
            run.hard = min(run.hard, time.monotonic() + run.grace)
            self._interrupt(run, Verdict.CANCELLED)

    def retire(self) -> None:
        """Let it end by itself: it has no job and gets none any more."""
        self.move(State.RETIRING)
        self.verdict = Verdict.RETIRED
        self._lane.hang_up()
        self.channel.close()
        self._alarm.set(time.monotonic() + RETIRE_WAIT)

    def kill(self, verdict: Verdict) -> None:
        """SIGKILL to its process group; what it left elsewhere comes to the pool and is killed there."""
        if self.state in (State.KILLING, State.DEAD):
            return
        self.move(State.KILLING)
        self.verdict = verdict
        self._alarm.clear()
        self._kill_group()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # The worker leads a session of its own and is not reaped yet: the number is its group's.
            os.killpg(self.pid, signal.SIGKILL)
        self.child.kill()
        self.cell.kill()

    # -- what its alarm means depends on its state

    def _ring(self) -> None:
        match self.state:
            case State.STARTING:
                self.kill(Verdict.LOAD_TIMEOUT)
            case State.RUNNING:
                assert self.run is not None
                if self._is_at(self.run):
                    self._interrupt(self.run, Verdict.DEADLINE)
            case State.INTERRUPTING:
                assert self.run is not None
                self._press(self.run)
            case State.DUMPING:
                self._look_at_dump()
            case State.CUT_OFF:
                self.kill(Verdict.FAULT)
            case State.RETIRING:
                self.kill(Verdict.RETIRED)

    def _interrupt(self, run: Run, cause: Verdict) -> None:
        run.cause = cause
        if self.state is State.RUNNING:
            self.move(State.INTERRUPTING)
        self.child.kill(SOFT_SIGNAL)
        self._alarm.set(min(time.monotonic() + SIGNAL_EVERY, run.hard))

    def _press(self, run: Run) -> None:
        now = time.monotonic()
        if now < run.hard:
            self.child.kill(SOFT_SIGNAL)
            self._alarm.set(min(now + SIGNAL_EVERY, run.hard))
            return
        self.move(State.DUMPING)
        self._dump.clear()
        self._dump_size = 0
        self._dump_until = now + DUMP_WAIT
        self.child.kill(DUMP_SIGNAL)
        self._alarm.set(now + _LOOK_EVERY)

    def _look_at_dump(self) -> None:
        assert self.run is not None
        size, now = self._dump.size(), time.monotonic()
        stable = size > 0 and size == self._dump_size
        if not stable and now < self._dump_until:
            self._dump_size = size
            self._alarm.set(now + _LOOK_EVERY)
            return
        self.run.stack = trim(self._dump.text()) if size else kernel_view(self.pid)
        self.kill(self.run.cause)

    # -- what it says

    def _on_message(self, message: FromWorker) -> None:
        if isinstance(message, Ending):
            self._ended(message)
        elif isinstance(message, Progressed):
            self._progressed(message)
        elif self.state is State.STARTING:
            self._alarm.clear()
            self._owner.on_ready(self, message)

    def _ended(self, ending: Ending) -> None:
        run = self.run
        if run is None or ending.serial != run.serial:
            self.kill(Verdict.FAULT)
            return
        if self._progress_turn == self._loop.turns and not self.ahead:
            # Both came in one read, so its last output may not have been seen in this turn.
            self.output.drain()
        if self.output.touched:
            self._close_period(run)
        self.jobs += 1
        self._alarm.clear()
        if self.ahead:
            self._go_on()
        else:
            self.run = None
            if not self._dying and self.state in BUSY:
                self.state = State.IDLE
                self.since = time.monotonic()
        self._owner.on_ending(self, run, ending)

    def _progressed(self, message: Progressed) -> None:
        run = self.run
        if run is not None and message.serial == run.serial:
            run.progress, run.note, run.changed = message.progress, message.note, True
            self._progress_turn = self._loop.turns

    def _on_eof(self) -> None:
        # Its own death closes the channel a moment before its pidfd speaks, and a kill now would look as
        # if we had been the reason. Who lives on without a channel is at fault and must die (law 3).
        if State.CUT_OFF in MOVES[self.state]:
            self.move(State.CUT_OFF)
            self._alarm.set(time.monotonic() + CUT_OFF_WAIT)

    def _lines(self, lines: list[str]) -> None:
        self._owner.on_lines(self, self.run, lines)

    def _close_period(self, run: Run | None) -> None:
        dropped = self.output.turn_over()
        if dropped:
            self._owner.on_dropped(self, run, dropped)

    # -- its death

    def _on_death(self) -> None:
        self._dying = True
        self._catch_up()
        self.output.drain()
        self.channel.drain()
        self._kill_group()
        status = self.child.reap()
        if status is None:
            return
        self._close_period(self.run)
        if self.run is not None and self.run.stack is None and status < 0 and self._dump.size():
            # faulthandler wrote it on the way to a crash.
            self.run.stack = trim(self._dump.text())
        if self.verdict is Verdict.NONE and self.cell.ran_out_of_memory(status):
            self.verdict = Verdict.OOM
            if self.run is not None:
                self.run.peak_kib = self.cell.peak_kib
        self.move(State.DEAD)
        unread = self._never_begun()
        self._release()
        run, self.run = self.run, None
        for other in reversed(unread):
            self._owner.on_unread(other)
        self._owner.on_dead(self, run, status)

    def _never_begun(self) -> list[Run]:
        """What no attempt is to be blamed for; `run` is what it was at."""
        runs = [self.run, *self.ahead] if self.run is not None else []
        self.ahead.clear()
        # Not what lies in the lane: a reader that is being killed may still take something out of it.
        begun = self.page.begun
        unread = [run for run in runs if run.serial != begun]
        if self.run in unread:
            if self.verdict not in _UNREAD:
                unread.remove(self.run)
                return unread
            self.run = next((run for run in runs if run.serial == begun), None)
        return unread

    def _release(self) -> None:
        self._loop.forget(self.child.pidfd)
        self._alarm.close()
        self.channel.close()
        self.output.close()
        self._lane.close()
        self.child.close()
        self._dump.close()
        self.page.close()
