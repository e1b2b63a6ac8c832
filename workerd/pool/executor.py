"""Running one job: Assignment -> Ending, through named steps; nothing raises through it.

User code is called in one function, `_call`, and fenced in one, `_invoke`. The soft signal raises only
while `_call` is on the stack, so that an exception never lands in code of ours.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import time
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import msgspec

from workerd import text
from workerd.config.validators import duration
from workerd.errors import LoadError
from workerd.handler import Cancelled, Context, DeadlineExceeded
from workerd.messages import Assignment, Progressed
from workerd.outcome import RunResult
from workerd.pool import results
from workerd.pool.isolation import IgnoredSignals
from workerd.pool.loading import LoadedHandler
from workerd.pool.results import run_logger
from workerd.signature import BadVars

if TYPE_CHECKING:
    from workerd.pool.async_handlers import Interruptible


PROGRESS_EVERY = 0.1
"""Seconds between two messages about progress; the last word goes with the ending."""
_DEEPEST = 100
"""Contexts of an exception that are looked at for the soft one."""


Returned = tuple[Any, BaseException | None]
"""A value, or what was raised instead."""


class Flags(Protocol):
    """What the pool's page tells."""

    @property
    def serial(self) -> int: ...
    @property
    def soft_deadline_ns(self) -> int: ...
    @property
    def cancel(self) -> bool: ...
    @property
    def stopping(self) -> bool: ...


class RunningJob:
    """The run at hand: what its Context asks for, and what the soft signal did to it."""

    def __init__(self, assignment: Assignment, flags: Flags, tell: Callable[[Progressed], None]) -> None:
        self.serial = assignment.serial
        self.in_request = assignment.claim.request_id is not None
        self.interruption: BaseException | None = None
        self.fraction: float | None = None
        self.note: str | None = None
        self.coroutine: Interruptible | None = None
        self.looking = False
        self._deadline = assignment.deadline
        self._flags = flags
        self._tell = tell
        self._told = 0.0
        self._over = False
        self._pid = os.getpid()

    @property
    def cancelled(self) -> bool:
        """Whether a cancel is asked for."""
        return self._flags.serial == self.serial and self._flags.cancel

    def be_interrupted(self, frame: FrameType | None) -> None:
        """Raise Cancelled or DeadlineExceeded at this frame, unless this run has time left."""
        if self.cancelled:
            self.interruption = Cancelled("a cancel was asked for")
        elif self._flags.serial == self.serial and 0 < self._flags.soft_deadline_ns <= time.monotonic_ns():
            self.interruption = DeadlineExceeded(f"the deadline of {self._deadline:g} s is over")
        else:
            return
        if self.coroutine is None or not self.coroutine.interrupt(frame, self.interruption):
            raise self.interruption

    def end(self, ending: RunResult) -> RunResult:
        """The ending with what the run said and suffered; a thread that outlives it is not heard any more."""
        self._over = True
        if self.interruption is None and self.fraction is None and self.note is None:
            return ending
        return msgspec.structs.replace(
            ending, tainted=self.interruption is not None, progress=self.fraction, note=self.note
        )

    # -- the Context's line

    def stopping(self) -> bool:
        """The node stops, or this run was cancelled."""
        return self._flags.stopping or self.cancelled

    def progress(self, fraction: float | None, note: str | None) -> None:
        """Note it, and tell the pool now and then; a forked child's words are its own."""
        if self._over or os.getpid() != self._pid:
            return
        self.fraction = fraction
        self.note = None if note is None else text.one_line(note, text.NOTE_LIMIT)
        now = time.monotonic()
        if now - self._told >= PROGRESS_EVERY:
            self._told = now
            self._tell(Progressed(self.serial, fraction, self.note))

    def log(self) -> Any:
        """A logger that writes lines to standard error, which the pool marks with job and attempt."""
        return run_logger(sys.stderr)


class Executor:
    """Runs assignments, one at a time, in the main thread.

    `tell` passes a Progressed on; it may be called from threads of the handler's.
    """

    def __init__(
        self, handlers: dict[str, LoadedHandler], flags: Flags, tell: Callable[[Progressed], None]
    ) -> None:
        self._handlers = handlers
        self._instances: dict[str, Any] = {}
        self._flags = flags
        self._tell = tell
        self._run: RunningJob | None = None
        self._pid = os.getpid()

    def prepare(self, init: Callable[[], object] | None) -> None:
        """Call the pool's `init`, then make the one instance of every class. Raises LoadError."""
        if init is not None:
            _, error = _invoke(init, [], {})
            if error is not None:
                raise LoadError(f"init failed: {results.line_of(error)}\n{results.stack_of(error)}")
        for name, handler in self._handlers.items():
            if handler.is_class:
                instance, error = _invoke(handler.target, [], {})
                if error is not None:
                    raise LoadError(
                        f'making the instance of handler "{name}" failed: {results.line_of(error)}\n'
                        f"{results.stack_of(error)}"
                    )
                self._instances[name] = instance

    def run(self, assignment: Assignment) -> RunResult:
        """Decode, call, and say how it ended. Returns in the process that it was called in, or not at all."""
        run = self._run = RunningJob(assignment, self._flags, self._tell)
        try:
            ending = self._through(assignment, run)
        except BaseException as error:  # a fault of ours must end one attempt, not the worker
            ending = results.raised(run.serial, error, None, False)
        self._run = None
        if os.getpid() != self._pid:
            _leave(ending)
        return run.end(ending)

    def _through(self, assignment: Assignment, run: RunningJob) -> RunResult:
        handler = self._handlers.get(assignment.claim.handler)
        if handler is None:
            return results.unfit_vars(run.serial, LookupError("This pool has no such handler."))
        ends_ns = self._soft_deadline(assignment)
        ctx = Context(assignment.claim, run, assignment.deadline, ends_ns)
        try:
            args, kwargs = handler.arguments.bind(assignment.claim.vars, ctx)
        except BadVars as error:
            return results.unfit_vars(run.serial, error)
        limit = assignment.max_payload
        instance = self._instances.get(handler.name)
        if instance is None:
            return _finish(run, _invoke(handler.target, args, kwargs, run), limit)
        ending = _ensure(run, instance, args, kwargs, limit)
        return msgspec.structs.replace(ending, pause=_pause(instance))

    def _soft_deadline(self, assignment: Assignment) -> int:
        """As the page says it; a run that lay ahead may begin before the pool has written it there."""
        if assignment.deadline <= 0:
            return 0
        if self._flags.serial == assignment.serial:
            return self._flags.soft_deadline_ns
        return time.monotonic_ns() + int(assignment.deadline * 1e9)

    def on_soft_signal(self, signum: int, frame: FrameType | None) -> None:
        """Raise DeadlineExceeded or Cancelled in user code, if the page says so; else nothing.

        The signal comes again every now and then: what user code swallowed is raised once more, but not
        while it cleans up after the last one.
        """
        run = self._run
        if run is None or run.looking:  # a signal may come upon the heels of another one
            return
        run.looking = True
        try:
            if _in_user_code(frame) and not _is_handling(run.interruption):
                run.be_interrupted(frame)
        finally:
            run.looking = False


# -- the fence ---------------------------------------------------------------------------------


def _invoke(
    target: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], run: RunningJob | None = None
) -> Returned:
    """What the call returned, or what it raised, whatever that is."""
    try:
        return _call(target, args, kwargs, run), None
    except BaseException as error:
        return None, error


def _call(target: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], run: RunningJob | None) -> Any:
    value = target(*args, **kwargs)
    return _await(value, run) if inspect.iscoroutine(value) else value


def _await(coroutine: Coroutine[Any, Any, Any], run: RunningJob | None) -> Any:
    from workerd.pool.async_handlers import Interruptible

    interruptible = Interruptible(coroutine)
    if run is not None:
        run.coroutine = interruptible
    return interruptible.run()


_USER_CODE = _call.__code__
_GUARDED = frozenset(
    function.__code__
    for function in (
        RunningJob.progress,
        RunningJob.log,
        IgnoredSignals.hold,
        IgnoredSignals.release,
        IgnoredSignals.in_child,
    )
)


def _in_user_code(frame: FrameType | None) -> bool:
    """Whether an exception that is raised at this frame ends in the fence, and tears nothing of ours."""
    while frame is not None:
        if frame.f_code is _USER_CODE:
            return True
        if frame.f_code in _GUARDED:
            return False
        frame = frame.f_back
    return False


def _is_handling(interruption: BaseException | None) -> bool:
    """Whether the interrupted code is in an `except` or `finally` that the interruption led to."""
    error = sys.exc_info()[1] if interruption is not None else None
    for _ in range(_DEEPEST):
        if error is None:
            return False
        if error is interruption:
            return True
        error = error.__context__
    return False


# -- from what the call gave to an ending ------------------------------------------------------


def _finish(run: RunningJob, given: Returned, limit: int) -> RunResult:
    value, error = given
    if error is None:
        return results.returned(run.serial, value, limit, in_request=run.in_request)
    return results.raised(run.serial, error, run.interruption, run.cancelled)


def _ensure(run: RunningJob, instance: Any, args: list[Any], kwargs: dict[str, Any], limit: int) -> RunResult:
    """One run of a class: skipped if it says that it is not active."""
    active = getattr(instance, "active", None)
    if active is not None:
        answer, error = _invoke(lambda: bool(active()), [], {}, run)
        if error is not None:
            return _finish(run, (None, error), limit)
        if not answer:
            return RunResult(serial=run.serial, kind="skipped")
    return _finish(run, _invoke(instance.ensure, args, kwargs, run), limit)


def _pause(instance: Any) -> float | None:
    """Seconds that the class's `cooler` asks for; None, so that the configuration's holds, if it fails."""
    cooler = getattr(instance, "cooler", None)
    if cooler is None:
        return None
    seconds, error = _invoke(lambda: duration(cooler()), [], {})
    if error is not None:
        # Told where a handler's output goes; the run itself has ended as it ended.
        print(f"cooler() failed, the configured pause is used: {results.line_of(error)}", file=sys.stderr)
    return seconds if error is None else None


def _leave(ending: RunResult) -> NoReturn:
    """End a process that the handler forked and that came back from the handler: the job is not its own."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os._exit(0 if ending.kind == "returned" else 1)
