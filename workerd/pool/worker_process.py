"""A worker process as its pool sees it: state, assignments, deadlines, death."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from workerd import log
from workerd.config.handler_config import Policy
from workerd.job import Claim
from workerd.messages import Traced
from workerd.outcome import RunResult
from workerd.pool import job_trace
from workerd.pool.attempt import AssignedAttempt, KillReason, handler_frames
from workerd.pool.death_blame import DeathBlame
from workerd.pool.forked_worker import ForkedWorker
from workerd.pool.shared import DUMP_SIGNAL, SOFT_SIGNAL, WorkerFds
from workerd.pool.worker_limits import WorkerLimits
from workerd.pool.worker_messages import Assignment, FromWorker, Loaded, Progressed, Saved, Unstarted
from workerd.pool.worker_output import OutputLog, WorkerOutput
from workerd.pool.worker_state import BUSY, TRANSITIONS, WorkerState
from workerd.runtime.loop import Alarm, Loop
from workerd.runtime.stackdump import kernel_view

SIGNAL_INTERVAL_S = 0.1
"""Between soft signals: one may arrive while user code suppresses exceptions."""
_DUMP_POLL_S = 0.001
CUT_OFF_TIMEOUT_S = 0.05
"""For a worker whose channel has ended to be dead."""
RETIRE_TIMEOUT_S = 5.0
"""For a worker to exit by itself after its channel was closed, with what user code registered to run then."""


class WorkerOwner(Protocol):
    """What a worker process reports its life to; called from the loop."""

    def on_ready(self, worker: WorkerProcess, loaded: Loaded) -> None:
        """It may be assigned jobs, or reports why it cannot."""

    def on_death(self, worker: WorkerProcess, attempt: AssignedAttempt | None, status: int) -> None:
        """It is dead and reaped; `attempt` is the one it was running."""


class AttemptOwner(Protocol):
    """What it reports of attempts to that it was assigned."""

    def on_result(self, worker: WorkerProcess, attempt: AssignedAttempt, result: RunResult) -> None:
        """It finished an attempt."""

    def on_unstarted(self, worker: WorkerProcess, attempt: AssignedAttempt) -> None:
        """It took an attempt and did not begin it, because the lease is over, or was lost in between."""

    def on_saved(self, worker: WorkerProcess, attempt: AssignedAttempt, saved: Saved) -> None:
        """The handler saved something in an attempt, and waits for Kept."""

    def on_traced(self, traced: Traced) -> None:
        """Spans ended in a run."""

    def on_revoked(self, attempt: AssignedAttempt) -> None:
        """The worker did not start this attempt, and will not."""


class SharedByWorkers(NamedTuple):
    """What all workers of a pool have in common; `null`: a descriptor of /dev/null."""

    owner: WorkerOwner
    attempts: AttemptOwner
    output_log: OutputLog
    blame: DeathBlame
    null: int


class WorkerProcess:
    """One worker process, which runs one attempt at a time (law 4).

    `attempt` is the one it is running; `queued` follow in this order unless they are revoked. `main` runs
    in the forked child and returns its exit status; `keep`: descriptors of user code that it inherits.
    `was_ready`: it had loaded its handlers. `kill_reason`: why the pool killed it; `killed_at_work`: for
    what its attempt did, whose result may still have come before the death. Raises OSError when it cannot
    be forked.
    """

    def __init__(
        self,
        loop: Loop,
        name: str,
        shared: SharedByWorkers,
        main: Callable[[WorkerFds], int],
        limits: WorkerLimits,
        keep: Iterable[int] = (),
    ) -> None:
        self.name = name
        self.limits = limits
        self.state = WorkerState.STARTING
        self.since = self.started_at = time.monotonic()
        self.attempt: AssignedAttempt | None = None
        self.queued: deque[AssignedAttempt] = deque()
        self.kill_reason = KillReason.NONE
        self.killed_at_work = False
        self.was_ready = False
        self.jobs = 0
        self._loop = loop
        self._owner = shared.owner
        self._attempts = shared.attempts
        self._blame = shared.blame
        self._dying = False
        self._last_serial = 0
        self._last_ended = 0
        self._progress_turn = -1
        self._max_payload = 0
        self._sent_by_channel = False
        self._alarm = Alarm(loop, self._on_alarm)
        forked = self._forked = ForkedWorker(
            loop, main, shared.null, keep,
            on_message=self._on_message, on_eof=self._on_eof, on_death=self._on_death,
        )  # fmt: skip
        self.child, self.channel = forked.child, forked.child.channel
        self.flags, self._assignments, self._dump = forked.flags, forked.assignments, forked.dump
        self.output = WorkerOutput(loop, forked.output, name, shared.output_log, self._read_results)

    @property
    def pid(self) -> int:
        return self.child.pid

    def move(self, state: WorkerState) -> None:
        """Change the state; an impossible transition is a bug of the pool."""
        assert state in TRANSITIONS[self.state], f"{self.name}: {self.state} -> {state}"
        self.state = state
        self.since = time.monotonic()

    # -- assigning and revoking

    def kill_unless_ready_within(self, seconds: float) -> None:
        """Kill it if it does not report ready in time."""
        self._alarm.set(time.monotonic() + seconds)

    def assign(self, claim: Claim, policy: Policy, max_payload: int) -> None:
        """Run this claim now; the worker must be idle. Raises FrameTooLarge and leaves it idle."""
        if self.output.reader.touched:
            self.output.end_period()
        attempt = self._new_attempt(claim, policy)
        self._max_payload = max_payload
        assignment = Assignment(attempt.serial, claim, attempt.deadline, max_payload)
        self.flags.begin(attempt.serial, attempt.soft_deadline_ns)
        self._sent_by_channel = not self._assignments.put(assignment)
        if self._sent_by_channel:
            self.channel.send_now(assignment)
            self._assignments.put_marker(assignment)
        self._run(attempt)

    def enqueue(self, claim: Claim, policy: Policy, max_payload: int) -> bool:
        """Run this claim after those assigned before; false if the queue has no room for it."""
        # Not behind one that was sent by the channel: that one could not be revoked with it.
        if self._sent_by_channel:
            return False
        attempt = self._new_attempt(claim, policy)
        if not self._assignments.put(Assignment(attempt.serial, claim, attempt.deadline, max_payload)):
            return False
        self.queued.append(attempt)
        return True

    def _new_attempt(self, claim: Claim, policy: Policy) -> AssignedAttempt:
        self._last_serial += 1
        return AssignedAttempt(self._last_serial, claim, policy, time.monotonic_ns())

    def _run(self, attempt: AssignedAttempt) -> None:
        self.attempt = attempt
        self.state = WorkerState.RUNNING
        self.since = attempt.start_ns / 1e9
        self.output.begin(attempt)
        if log.debugging:
            job_trace.started(self.name, attempt)
        if attempt.deadline > 0:
            self._alarm.set(self.since + attempt.deadline)

    def revoke(self) -> None:
        """Hand the queued attempts that it has not started back to the owner.

        Afterwards nothing is queued: results of those that it has started meanwhile were read.
        Not to be called while its channel is being read.
        """
        if not self.queued:
            return
        serials = self._assignments.take_all()
        revoked = [attempt for attempt in self.queued if attempt.serial in serials]
        self.queued = deque(attempt for attempt in self.queued if attempt.serial not in serials)
        if self.attempt is not None and self.attempt.serial in serials:
            self._revoke_present(self.attempt, revoked)
        self._read_results()
        for attempt in reversed(revoked):
            self._attempts.on_revoked(attempt)

    def void_unstarted(self) -> None:
        """Let it begin nothing that it was assigned so far: the node has lost its lease."""
        self.flags.set_first_serial(self._last_serial + 1)
        for attempt in (self.attempt, *self.queued):
            if attempt is not None:
                attempt.is_void = True

    def _revoke_present(self, attempt: AssignedAttempt, revoked: list[AssignedAttempt]) -> None:
        """The present attempt was taken out too: the worker started a later one, or gets it once more."""
        if self.queued:
            revoked.insert(0, attempt)
            self._run_next()
        else:
            self._assignments.put(
                Assignment(attempt.serial, attempt.claim, attempt.deadline, self._max_payload)
            )

    def _run_next(self) -> None:
        attempt = self.queued.popleft()
        attempt.start(time.monotonic_ns())
        if self._dying or self.state not in BUSY:
            self.attempt = attempt
            self.output.begin(attempt)
            return
        self.flags.begin(attempt.serial, attempt.soft_deadline_ns)
        self._run(attempt)

    def _read_results(self) -> None:
        """Learn which of its attempts it is running."""
        if self.queued:
            self.channel.drain()

    def _is_running(self, attempt: AssignedAttempt) -> bool:
        """Revoke what is queued; true if a signal now can only hit `attempt`."""
        self.revoke()
        return self.attempt is attempt

    @property
    def usable(self) -> bool:
        """Whether it may be assigned another job after a result."""
        return not self._dying and self.state in (WorkerState.IDLE, WorkerState.RUNNING)

    # -- interrupting and killing

    def cancel(self) -> None:
        """End the present attempt as cancelled: by signal, then by force when its grace is over."""
        attempt = self.attempt
        if attempt is None or attempt.cancelled or not self._is_running(attempt):
            return
        attempt.cancelled = True
        if self.state in (WorkerState.RUNNING, WorkerState.INTERRUPTING):
            self.flags.request_cancel()
            attempt.hard_deadline = min(attempt.hard_deadline, time.monotonic() + attempt.grace)
            self._interrupt(attempt, KillReason.CANCELLED)

    def interrupt(self) -> None:
        """End the present attempt as interrupted: by signal, then by force when its grace is over."""
        attempt = self.attempt
        if attempt is None or self.state is not WorkerState.RUNNING or not self._is_running(attempt):
            return
        if self.state is WorkerState.RUNNING and not attempt.cancelled:
            self.flags.request_interrupt()
            attempt.hard_deadline = min(attempt.hard_deadline, time.monotonic() + attempt.grace)
            self._interrupt(attempt, KillReason.INTERRUPTED)

    def retire(self) -> None:
        """Let an idle worker exit by itself."""
        self.move(WorkerState.RETIRING)
        self.kill_reason = KillReason.RETIRED
        self._assignments.close_writing_end()
        self.channel.close()
        self._alarm.set(time.monotonic() + RETIRE_TIMEOUT_S)

    def kill(self, reason: KillReason) -> None:
        """SIGKILL its process group; descendants outside of it become the pool's children and die there."""
        if self.state in (WorkerState.KILLING, WorkerState.DEAD):
            return
        self.move(WorkerState.KILLING)
        self.kill_reason = reason
        self.killed_at_work = self.attempt is not None and reason is not KillReason.PROTOCOL_ERROR
        self._alarm.clear()
        self._kill_group()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # The worker leads its session and is not reaped yet, so the number can only be its group's.
            os.killpg(self.pid, signal.SIGKILL)
        self.child.kill()
        self.limits.kill()

    def _on_alarm(self) -> None:
        """A deadline of the present state has passed."""
        match self.state:
            case WorkerState.STARTING:
                self.kill(KillReason.LOAD_TIMEOUT)
            case WorkerState.RUNNING:
                assert self.attempt is not None
                if self._is_running(self.attempt):
                    self._interrupt(self.attempt, KillReason.DEADLINE)
            case WorkerState.INTERRUPTING:
                assert self.attempt is not None
                self._interrupt_again(self.attempt)
            case WorkerState.DUMPING:
                self._kill_when_dumped()
            case WorkerState.CUT_OFF:
                self.kill(KillReason.PROTOCOL_ERROR)
            case WorkerState.RETIRING:
                self.kill(KillReason.RETIRED)

    def _interrupt(self, attempt: AssignedAttempt, reason: KillReason) -> None:
        attempt.interrupt_reason = reason
        if self.state is WorkerState.RUNNING:
            self.move(WorkerState.INTERRUPTING)
        self.child.kill(SOFT_SIGNAL)
        self._alarm.set(min(time.monotonic() + SIGNAL_INTERVAL_S, attempt.hard_deadline))

    def _interrupt_again(self, attempt: AssignedAttempt) -> None:
        now = time.monotonic()
        if now < attempt.hard_deadline:
            self.child.kill(SOFT_SIGNAL)
            self._alarm.set(min(now + SIGNAL_INTERVAL_S, attempt.hard_deadline))
            return
        self.move(WorkerState.DUMPING)
        self._dump.begin()
        self.child.kill(DUMP_SIGNAL)
        self._alarm.set(now + _DUMP_POLL_S)

    def _kill_when_dumped(self) -> None:
        assert self.attempt is not None
        if not self._dump.has_ended():
            self._alarm.set(time.monotonic() + _DUMP_POLL_S)
            return
        text = self._dump.text()
        self.attempt.stack = handler_frames(text) if text else kernel_view(self.pid)
        self.kill(self.attempt.interrupt_reason)

    # -- messages

    def _on_message(self, message: FromWorker) -> None:
        if isinstance(message, RunResult):
            self._on_result(message)
        elif isinstance(message, Progressed):
            self._on_progress(message)
        elif isinstance(message, Unstarted):
            self._on_unstarted(message)
        elif isinstance(message, Traced):
            self._attempts.on_traced(message)
        elif isinstance(message, Saved):
            if self.attempt is not None and message.serial == self.attempt.serial:
                self._attempts.on_saved(self, self.attempt, message)
        elif self.state is WorkerState.STARTING:
            self._alarm.clear()
            self._owner.on_ready(self, message)

    def _on_result(self, result: RunResult) -> None:
        attempt = self._attempt_of(result.serial)
        if attempt is None:
            return
        if self._progress_turn == self._loop.turns and not self.queued:
            # Progress and result came in one read, so its last output may not have been read in this turn.
            self.output.reader.drain()
        if self.output.reader.touched:
            self.output.end_period()
        self.jobs += 1
        self._end(attempt)
        self._attempts.on_result(self, attempt, result)

    def _on_unstarted(self, message: Unstarted) -> None:
        attempt = self._attempt_of(message.serial)
        if attempt is not None:
            self._end(attempt)
            self._attempts.on_unstarted(self, attempt)

    def _attempt_of(self, serial: int) -> AssignedAttempt | None:
        """The present attempt, of which alone a worker may say that it is over."""
        if self.attempt is None or serial != self.attempt.serial:
            self.kill(KillReason.PROTOCOL_ERROR)
            return None
        return self.attempt

    def _end(self, attempt: AssignedAttempt) -> None:
        """Go on to the next attempt that is queued, or be idle."""
        self._last_ended = attempt.serial
        self.output.ended = attempt
        self._alarm.clear()
        if self.queued:
            self._run_next()
        else:
            self.attempt = None
            self.output.running = self.output.reader.keeper = None
            if not self._dying and self.state in BUSY:
                self.state = WorkerState.IDLE
                self.since = time.monotonic()

    def _on_progress(self, message: Progressed) -> None:
        attempt = self.attempt
        if attempt is not None and message.serial == attempt.serial:
            attempt.progress, attempt.note = message.progress, message.note
            attempt.progress_changed = True
            self._progress_turn = self._loop.turns

    def _on_eof(self) -> None:
        # Its death closes the channel a moment before its pidfd is readable; a kill now would look like the
        # cause. A worker that lives on without a channel broke the protocol and must die (law 3).
        if WorkerState.CUT_OFF in TRANSITIONS[self.state]:
            self.move(WorkerState.CUT_OFF)
            self._alarm.set(time.monotonic() + CUT_OFF_TIMEOUT_S)

    # -- death

    def _on_death(self) -> None:
        self._dying = True
        self._read_results()
        self.output.reader.drain()
        self._kill_group()
        status = self.child.reap()
        if status is None:
            return
        printing = self.attempt
        self.output.end_period()
        if self.attempt is not None and self.attempt.stack is None and status < 0 and self._dump.size():
            # Written by faulthandler during the crash.
            self.attempt.stack = handler_frames(self._dump.text())
        if self.kill_reason is KillReason.NONE:
            self.kill_reason = self.limits.ran_out_of_memory(status)
            if self.kill_reason is not KillReason.NONE and self.attempt is not None:
                self.attempt.peak_kib = self.limits.peak_kib
        self.move(WorkerState.DEAD)
        unstarted, cpu_us_before = self._take_unstarted(status), self.flags.cpu_us
        self._close()
        attempt, self.attempt = self.attempt, None
        if attempt is not printing and attempt is not None and printing is not None:
            attempt.log, printing.log = printing.log, None
        if attempt is not None:
            attempt.measure(self.child.usage, cpu_us_before)
        for other in reversed(unstarted):
            self._attempts.on_revoked(other)
        self._owner.on_death(self, attempt, status)

    def _take_unstarted(self, status: int) -> list[AssignedAttempt]:
        """The attempts that its death does not blame; `attempt` is then the one that it was running."""
        attempts = [self.attempt, *self.queued] if self.attempt is not None else []
        self.queued.clear()
        untouched = self._assignments.take_all()
        unmarked = status < 0 and self.flags.started == self._last_ended
        self.attempt = self._blame.attempt_blamed(attempts, untouched, self.kill_reason, unmarked=unmarked)
        return [attempt for attempt in attempts if attempt is not self.attempt]

    def _close(self) -> None:
        self._alarm.close()
        self.output.reader.close()
        self._forked.close()
