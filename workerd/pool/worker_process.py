"""A worker as its pool sees it: process, channel, state, and the deadlines kept by force."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Literal, Protocol

from workerd.config.model import Policy
from workerd.job import Claim
from workerd.log import get_logger
from workerd.messages import Assignment, FromWorker, Loaded, Progressed
from workerd.outcome import RunResult, Usage
from workerd.pool.assignment_queue import AssignmentQueue
from workerd.pool.shared import DUMP_SIGNAL, SOFT_SIGNAL, SharedFlags, WorkerFds
from workerd.pool.worker_limits import WorkerLimits
from workerd.runtime.child import ManagedChild
from workerd.runtime.loop import Alarm, Loop
from workerd.runtime.output import OutputReader
from workerd.runtime.stackdump import StackDump, kernel_view
from workerd.text import death_text


class WorkerState(StrEnum):
    """What a worker is doing; `workerd status` shows it."""

    STARTING = "starting"  # forked, not ready yet
    IDLE = "idle"
    RUNNING = "running"
    INTERRUPTING = "interrupting"  # the soft signal was sent: deadline or cancel
    DUMPING = "dumping"  # its stacks are being asked for; then it is killed
    CUT_OFF = "cut off"  # its channel has ended; it is dying, or else a fault and killed
    RETIRING = "retiring"  # its channel was closed: it ends by itself
    KILLING = "killing"  # SIGKILL was sent
    DEAD = "dead"


MOVES: dict[WorkerState, frozenset[WorkerState]] = {
    WorkerState.STARTING: frozenset(
        {WorkerState.CUT_OFF, WorkerState.IDLE, WorkerState.RETIRING, WorkerState.KILLING, WorkerState.DEAD}
    ),
    WorkerState.IDLE: frozenset(
        {
            WorkerState.CUT_OFF,
            WorkerState.RUNNING,
            WorkerState.RETIRING,
            WorkerState.KILLING,
            WorkerState.DEAD,
        }
    ),
    WorkerState.RUNNING: frozenset(
        {
            WorkerState.CUT_OFF,
            WorkerState.IDLE,
            WorkerState.INTERRUPTING,
            WorkerState.KILLING,
            WorkerState.DEAD,
        }
    ),
    WorkerState.INTERRUPTING: frozenset(
        {WorkerState.CUT_OFF, WorkerState.IDLE, WorkerState.DUMPING, WorkerState.KILLING, WorkerState.DEAD}
    ),
    WorkerState.DUMPING: frozenset({WorkerState.IDLE, WorkerState.KILLING, WorkerState.DEAD}),
    WorkerState.CUT_OFF: frozenset({WorkerState.KILLING, WorkerState.DEAD}),
    WorkerState.RETIRING: frozenset({WorkerState.KILLING, WorkerState.DEAD}),
    WorkerState.KILLING: frozenset({WorkerState.DEAD}),
    WorkerState.DEAD: frozenset(),
}

BUSY = frozenset({WorkerState.RUNNING, WorkerState.INTERRUPTING, WorkerState.DUMPING})
"""States in which a worker may be at a job and is not being killed yet."""


class KillReason(StrEnum):
    """Why the pool killed a worker, which decides how its attempt ended."""

    NONE = ""  # it was not killed by the pool
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    OOM = "oom"
    FAULT = "fault"  # it broke the rules of its channel
    LOAD_TIMEOUT = "load timeout"
    NOT_READY = "not ready"  # it said that it could not load
    RETIRED = "retired"  # it had nothing left to do


_PACKAGE = f'File "{Path(__file__).parent}/'


class RunningAttempt:
    """A claim that was given to a worker.

    `deadline`, `grace`: seconds, deadline 0 for none. `start_ns`: CLOCK_MONOTONIC, when it was given, or
    when the one before it was seen to have ended. `hard`: monotonic seconds after which the worker is
    killed. `cause`: why it is being interrupted. `cancelled`: somebody asked for its end, so that it is
    not tried again, however it ends.
    """

    __slots__ = (
        "cancelled", "cause", "changed", "claim", "deadline", "grace", "hard", "note", "peak_kib", "policy",
        "progress", "serial", "stack", "start_ns", "told_ns",
    )  # fmt: skip

    def __init__(self, serial: int, claim: Claim, policy: Policy, start_ns: int) -> None:
        self.serial = serial
        self.claim = claim
        self.policy = policy
        own = claim.deadline_ms
        self.deadline = policy.deadline if own is None else own / 1000
        self.grace = policy.grace
        self.start(start_ns)
        self.cause = KillReason.NONE
        self.cancelled = False
        self.progress: float | None = None
        self.note: str | None = None
        self.changed = True
        self.told_ns = 0
        self.stack: str | None = None
        self.peak_kib: int | None = None

    def start(self, now_ns: int) -> None:
        """It begins now: its deadlines count from here."""
        self.start_ns = now_ns
        self.hard = now_ns / 1e9 + self.deadline + self.grace if self.deadline > 0 else math.inf

    def began_ns(self, ending: RunResult, now_ns: int) -> int:
        """When it began, as far as its ending tells: the pool hears late of one that lay ahead."""
        run_us = ending.usage.run_us
        return self.start_ns if run_us is None else min(self.start_ns, now_ns - run_us * 1000)

    @property
    def soft_ns(self) -> int:
        """CLOCK_MONOTONIC nanoseconds of the soft deadline, 0 for none."""
        return self.start_ns + int(self.deadline * 1e9) if self.deadline > 0 else 0


def ending_of_death(
    run: RunningAttempt, status: int, verdict: KillReason, now_ns: int, memory_max: int = 0
) -> RunResult:
    """How the attempt ended whose worker is dead: by the wait status, unless the pool killed it.

    `status`: exit code, or a negative signal number.
    """
    if verdict is KillReason.NONE and status == -SOFT_SIGNAL:
        # A handler that put the signal's default disposition back dies of it.
        verdict = run.cause
    kind, error = _KINDS.get(verdict) or ("crashed", death_sentence(status, verdict))
    if verdict is KillReason.DEADLINE:
        error = f"It still ran {run.grace:g} s after its deadline of {run.deadline:g} s and was killed."
    elif verdict is KillReason.OOM:
        error = f"It used {run.peak_kib or 0} KiB of memory, its limit is {memory_max // 1024} KiB."
    return RunResult(
        serial=run.serial,
        kind=kind,
        error=error,
        stack=run.stack,
        exit_signal=-status if status < 0 else None,
        exit_code=status if status >= 0 else None,
        usage=Usage(run_us=max(0, now_ns - run.start_ns) // 1000, max_rss_kib=run.peak_kib),
        progress=run.progress,
        note=run.note,
    )


_Kind = Literal["deadline", "cancelled", "interrupted", "oom", "crashed"]

_KINDS: dict[KillReason, tuple[_Kind, str]] = {
    KillReason.DEADLINE: ("deadline", ""),
    KillReason.OOM: ("oom", ""),
    KillReason.CANCELLED: ("cancelled", "It was cancelled while it ran and did not end by itself."),
    KillReason.INTERRUPTED: ("interrupted", "The daemon stopped before it had finished."),
}


def death_sentence(status: int, verdict: KillReason = KillReason.NONE) -> str:
    """What a person reads of a worker that died with this wait status."""
    if verdict is KillReason.FAULT:
        return "The worker broke its channel to the pool, which a handler must leave alone, and was killed."
    if verdict is KillReason.LOAD_TIMEOUT:
        return "The worker was not ready within `load_timeout` and was killed."
    if verdict is KillReason.NOT_READY:
        return "The worker could not load its handlers or `init`."
    return f"The worker {death_text(status)}."


def trim(dump: str) -> str:
    """The dump without the pool's own frames below the handler's."""
    kept, skipping = [], False
    for line in dump.splitlines():
        if not line.startswith("  "):
            skipping = False
        elif _PACKAGE in line:
            skipping = True
        if not skipping:
            kept.append(line)
    return "\n".join(kept)


class Owner(Protocol):
    """Who is told what becomes of a worker; called from the loop."""

    def on_ready(self, member: WorkerProcess, loaded: Loaded) -> None:
        """It may be given a job, or says why it cannot."""

    def on_ending(self, member: WorkerProcess, run: RunningAttempt, ending: RunResult) -> None:
        """It finished a run."""

    def on_unread(self, run: RunningAttempt) -> None:
        """This run was not begun, and its worker will not begin it."""

    def on_dead(self, member: WorkerProcess, run: RunningAttempt | None, status: int) -> None:
        """It is dead and reaped; `run` is what it was at and has not ended."""

    def on_lines(self, member: WorkerProcess, run: RunningAttempt | None, lines: list[str]) -> None:
        """It printed something, while at `run`."""

    def on_dropped(self, member: WorkerProcess, run: RunningAttempt | None, count: int) -> None:
        """So many bytes of what it printed were not told."""


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

_UNREAD = frozenset({KillReason.NONE, KillReason.FAULT, KillReason.DEADLINE, KillReason.INTERRUPTED})
"""Verdicts that leave a run unharmed which its worker has never read."""

log = get_logger("pool")


class WorkerProcess:
    """One worker process. It is in one of the states of `states.py` and holds at most one run.

    `run` is what it is at; `ahead` lies in its lane, and goes on in that order unless it is taken back.
    `start` runs in the forked child. `verdict` is why the pool killed it.
    """

    def __init__(
        self,
        loop: Loop,
        name: str,
        owner: Owner,
        null: int,
        start: Callable[[WorkerFds], int],
        cell: WorkerLimits,
    ) -> None:
        self.name = name
        self.cell = cell
        self.state = WorkerState.STARTING
        self.since = self.born = time.monotonic()
        self.run: RunningAttempt | None = None
        self.ahead: deque[RunningAttempt] = deque()
        self.verdict = KillReason.NONE
        self.jobs = 0
        self._loop = loop
        self._owner = owner
        self._dying = False
        self._progress_turn = -1
        self._dump_size = 0
        self._dump_until = 0.0
        self._max_payload = 0
        self._by_channel = False
        self.page = SharedFlags()
        self._lane = AssignmentQueue()
        self._dump = StackDump()
        self._alarm = Alarm(loop, self._ring)
        self._fork(null, start)

    def _fork(self, null: int, start: Callable[[WorkerFds], int]) -> None:
        reading, writing = os.pipe()
        lane, page, dump = self._lane.fileno(), self.page, self._dump.fd
        try:
            self.child: ManagedChild[FromWorker] = ManagedChild(
                self._loop,
                lambda channel: start(
                    WorkerFds(channel.fileno(), lane, output=writing, null=null, page=page, dump=dump)
                ),
                keep=(lane, writing, null, dump),
                incoming=FromWorker,
                on_message=self._on_message,
                on_eof=self._on_eof,
                on_death=self._on_death,
            )
        except OSError:
            os.close(reading)
            self._lane.close()
            self._dump.close()
            self.page.close()
            raise
        finally:
            os.close(writing)
        self.output = OutputReader(self._loop, reading, self._lines, self._catch_up)
        self.channel = self.child.channel

    @property
    def pid(self) -> int:
        return self.child.pid

    def move(self, state: WorkerState) -> None:
        """Change the state; an impossible change is a fault of the pool."""
        assert state in MOVES[self.state], f"{self.name}: {self.state} -> {state}"
        self.state = state
        self.since = time.monotonic()

    # -- giving it work

    def load_within(self, seconds: float) -> None:
        """Kill it if it is not ready by then."""
        self._alarm.set(time.monotonic() + seconds)

    def assign(self, run: RunningAttempt, max_payload: int) -> None:
        """Give it a run; it must be idle. Raises FrameTooLarge, and is idle still."""
        if self.output.touched:
            self._close_period(None)
        self._max_payload = max_payload
        assignment = Assignment(run.serial, run.claim, run.deadline, max_payload)
        self.page.begin(run.serial, run.soft_ns)
        self._by_channel = not self._lane.put(assignment)
        if self._by_channel:
            self.channel.send_now(assignment)
            self._lane.announce(assignment)
        self._at(run)

    def stock(self, run: RunningAttempt, max_payload: int) -> bool:
        """Let a run lie ahead, to be begun when those before it have ended; false if there is no room."""
        # Behind one that came by the channel nothing may lie: that one could not be taken back with it.
        if self._by_channel or not self._lane.put(
            Assignment(run.serial, run.claim, run.deadline, max_payload)
        ):
            return False
        self.ahead.append(run)
        return True

    def _at(self, run: RunningAttempt) -> None:
        self.run = run
        self.state = WorkerState.RUNNING
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

    def _not_begun(self, run: RunningAttempt, back: list[RunningAttempt]) -> None:
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

    def _is_at(self, run: RunningAttempt) -> bool:
        """Whether a blow hits this run and no other: nothing is ahead of it any more."""
        self.give_back()
        return self.run is run

    @property
    def fit(self) -> bool:
        """Whether it may go on after a run."""
        return not self._dying and self.state in (WorkerState.IDLE, WorkerState.RUNNING)

    def cancel(self) -> None:
        """End the present run as cancelled: by signal, by force when its grace is over."""
        run = self.run
        if run is None or run.cancelled or not self._is_at(run):
            return
        run.cancelled = True
        if self.state in (WorkerState.RUNNING, WorkerState.INTERRUPTING):
            self.page.ask_cancel()
            run.hard = min(run.hard, time.monotonic() + run.grace)
            self._interrupt(run, KillReason.CANCELLED)

    def retire(self) -> None:
        """Let it end by itself: it has no job and gets none any more."""
        self.move(WorkerState.RETIRING)
        self.verdict = KillReason.RETIRED
        self._lane.hang_up()
        self.channel.close()
        self._alarm.set(time.monotonic() + RETIRE_WAIT)

    def kill(self, verdict: KillReason) -> None:
        """SIGKILL to its process group; what it left elsewhere comes to the pool and is killed there."""
        if self.state in (WorkerState.KILLING, WorkerState.DEAD):
            return
        self.move(WorkerState.KILLING)
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
            case WorkerState.STARTING:
                self.kill(KillReason.LOAD_TIMEOUT)
            case WorkerState.RUNNING:
                assert self.run is not None
                if self._is_at(self.run):
                    self._interrupt(self.run, KillReason.DEADLINE)
            case WorkerState.INTERRUPTING:
                assert self.run is not None
                self._press(self.run)
            case WorkerState.DUMPING:
                self._look_at_dump()
            case WorkerState.CUT_OFF:
                self.kill(KillReason.FAULT)
            case WorkerState.RETIRING:
                self.kill(KillReason.RETIRED)

    def _interrupt(self, run: RunningAttempt, cause: KillReason) -> None:
        run.cause = cause
        if self.state is WorkerState.RUNNING:
            self.move(WorkerState.INTERRUPTING)
        self.child.kill(SOFT_SIGNAL)
        self._alarm.set(min(time.monotonic() + SIGNAL_EVERY, run.hard))

    def _press(self, run: RunningAttempt) -> None:
        now = time.monotonic()
        if now < run.hard:
            self.child.kill(SOFT_SIGNAL)
            self._alarm.set(min(now + SIGNAL_EVERY, run.hard))
            return
        self.move(WorkerState.DUMPING)
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
        if isinstance(message, RunResult):
            self._ended(message)
        elif isinstance(message, Progressed):
            self._progressed(message)
        elif self.state is WorkerState.STARTING:
            self._alarm.clear()
            self._owner.on_ready(self, message)

    def _ended(self, ending: RunResult) -> None:
        run = self.run
        if run is None or ending.serial != run.serial:
            self.kill(KillReason.FAULT)
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
                self.state = WorkerState.IDLE
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
        if WorkerState.CUT_OFF in MOVES[self.state]:
            self.move(WorkerState.CUT_OFF)
            self._alarm.set(time.monotonic() + CUT_OFF_WAIT)

    def _lines(self, lines: list[str]) -> None:
        self._owner.on_lines(self, self.run, lines)

    def _close_period(self, run: RunningAttempt | None) -> None:
        dropped = self.output.end_period()
        if dropped:
            self._owner.on_dropped(self, run, dropped)

    # -- its death

    def _on_death(self) -> None:
        self._dying = True
        self._catch_up()
        self.output.drain()
        self._kill_group()
        status = self.child.reap()
        if status is None:
            return
        self._close_period(self.run)
        if self.run is not None and self.run.stack is None and status < 0 and self._dump.size():
            # faulthandler wrote it on the way to a crash.
            self.run.stack = trim(self._dump.text())
        if self.verdict is KillReason.NONE and self.cell.ran_out_of_memory(status):
            self.verdict = KillReason.OOM
            if self.run is not None:
                self.run.peak_kib = self.cell.peak_kib
        self.move(WorkerState.DEAD)
        unread = self._never_begun()
        self._release()
        run, self.run = self.run, None
        for other in reversed(unread):
            self._owner.on_unread(other)
        self._owner.on_dead(self, run, status)

    def _never_begun(self) -> list[RunningAttempt]:
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
        self._alarm.close()
        self.output.close()
        self._lane.close()
        self._dump.close()
        self.page.close()
