"""The job that a worker runs: what its Context asks of, and what interrupted it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from workerd import text
from workerd.handler import Cancelled, Context, DeadlineExceeded, Interrupted
from workerd.messages import Traced
from workerd.outcome import RunResult
from workerd.pool.handler_log import HandlerLog
from workerd.pool.scrubbing import Scrub, keep, scrubber_of_claim
from workerd.pool.worker_channel import SAVED_TOO_LATE
from workerd.pool.worker_messages import Assignment, Progressed
from workerd.redaction import NOTHING, Redaction
from workerd.saved_state import SavedState

if TYPE_CHECKING:
    from workerd.tracing.runs import TracedRun

PROGRESS_INTERVAL_S = 0.1
"""Between two messages about progress; the last value is also part of the result."""


class Flags(Protocol):
    """What the pool signals to the run: SharedFlags in a worker, fixed values in a test."""

    @property
    def serial(self) -> int: ...
    @property
    def soft_deadline_ns(self) -> int: ...
    @property
    def cancel(self) -> bool: ...
    @property
    def interrupt(self) -> bool: ...
    @property
    def stopping(self) -> bool: ...


class PoolLink(Protocol):
    """The way to the pool: WorkerChannel in a worker, nothing behind it in a test."""

    def send(self, message: Progressed | Traced) -> None:
        """Send it; called from any thread of the handler's."""

    def keep(self, serial: int, state: bytes, wait: bool) -> None:
        """Return when the saved state of this run is safe, or committed; called from any thread."""


class RunningJob:
    """The job being run: the RunHandle of its Context, and what the soft signal raised in it."""

    __slots__ = (
        "_deadline", "_ended", "_flags", "_handler_log", "_link", "_pid", "_sent_at", "_state", "claim",
        "fraction", "in_signal_handler", "interrupt_in_place", "interrupted_ns", "interruption",
        "max_payload", "note", "replay", "scrub", "serial", "traced",
    )  # fmt: skip

    def __init__(
        self,
        assignment: Assignment,
        flags: Flags,
        link: PoolLink,
        handler_log: HandlerLog,
        pid: int,
        redaction: Redaction = NOTHING,
        replay: bool = False,
    ) -> None:
        """`pid`: of the worker; a process that the handler forked has another one."""
        self.serial = assignment.serial
        self.claim = assignment.claim
        self.max_payload = assignment.max_payload
        self.interruption: BaseException | None = None
        self.interrupted_ns = 0
        self.traced: TracedRun | None = None
        self.fraction: float | None = None
        self.note: str | None = None
        self.interrupt_in_place: Callable[[FrameType | None, BaseException], bool] | None = None
        self.in_signal_handler = False
        self._deadline = assignment.deadline
        self._flags = flags
        self._link = link
        self._handler_log = handler_log
        self._state: SavedState | None = None
        self._sent_at = 0.0
        self._ended = False
        self._pid = pid
        self.replay = replay
        self.scrub: Scrub = scrubber_of_claim(redaction, self.claim) if redaction else keep

    @property
    def cancelled(self) -> bool:
        """Whether a cancel was requested."""
        return self._flags.serial == self.serial and self._flags.cancel

    def context(self) -> Context:
        """What the handler gets as `ctx`."""
        return Context(self.claim, self, self._deadline, self._soft_deadline_ns())

    def _soft_deadline_ns(self) -> int:
        if self._deadline <= 0:
            return 0
        if self._flags.serial == self.serial:
            return self._flags.soft_deadline_ns
        # It was prefetched and started before the pool has set the flags for it.
        return time.monotonic_ns() + int(self._deadline * 1e9)

    def interrupt(self, frame: FrameType | None) -> None:
        """Raise Cancelled, Interrupted or DeadlineExceeded at this frame; nothing if none applies."""
        if self.cancelled:
            self.interruption = Cancelled("a cancel was requested")
        elif self._flags.serial == self.serial and self._flags.interrupt:
            self.interruption = Interrupted("its pool stops; the job goes on in the next attempt")
        elif self._flags.serial == self.serial and 0 < self._flags.soft_deadline_ns <= time.monotonic_ns():
            self.interruption = DeadlineExceeded(f"the deadline of {self._deadline:g} s has passed")
        else:
            return
        self.interrupted_ns = time.time_ns()
        if self.interrupt_in_place is None or not self.interrupt_in_place(frame, self.interruption):
            raise self.interruption

    def finish(self, result: RunResult) -> RunResult:
        """The result with progress and interruption; later progress, of threads it left, is ignored."""
        self._ended = True
        if self.traced is not None:
            result = self.traced.end(result, self.interruption, self.interrupted_ns, self.scrub)
        if self.interruption is None and self.fraction is None and self.note is None:
            return result
        return msgspec.structs.replace(
            result, tainted=self.interruption is not None, progress=self.fraction, note=self.note
        )

    # -- RunHandle

    def stopping(self) -> bool:
        """The node stops, or a cancel was requested."""
        return self._flags.stopping or self.cancelled

    def progress(self, fraction: float | None, note: str | None) -> None:
        """Keep it, and send it now and then; ignored in a child that the handler forked."""
        if self._ended or os.getpid() != self._pid:
            return
        self.fraction = fraction
        self.note = None if note is None else text.one_line(self.scrub(note), text.NOTE_LIMIT)
        now = time.monotonic()
        if now - self._sent_at >= PROGRESS_INTERVAL_S:
            self._sent_at = now
            self._link.send(Progressed(self.serial, fraction, self.note))

    def state(self) -> SavedState:
        """What the job has saved. Raises InvalidValue if that cannot be read."""
        if self._state is None:
            around_step = SavedState.alone if self.traced is None else self.traced.step
            self._state = SavedState(self.claim.state, self._keep_state, around_step)
        return self._state

    def _keep_state(self, state: bytes, wait: bool) -> None:
        if self._ended or os.getpid() != self._pid:
            raise RuntimeError(SAVED_TOO_LATE)
        self._link.keep(self.serial, state, wait)

    def log(self) -> Any:
        """A structlog logger whose events belong to this job."""
        return self._handler_log.logger(self.serial)
