"""Runs one job: Assignment -> RunResult, in named steps; nothing raises out of it.

User code is called in one function, `_call`, and fenced in one, `_invoke`. The soft signal raises only
while `_call` is on the stack, so an exception never lands in code of workerd.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from types import CoroutineType, FrameType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import msgspec

from workerd.config.quantities import duration
from workerd.errors import LoadError
from workerd.handler import Context
from workerd.outcome import RunResult
from workerd.pool import results
from workerd.pool.command import Command
from workerd.pool.handler_log import HandlerLog
from workerd.pool.isolation import IgnoredSignals
from workerd.pool.loading import LoadedHandler
from workerd.pool.program import Program
from workerd.pool.running_job import Flags, PoolLink, RunningJob
from workerd.pool.worker_channel import WorkerChannel
from workerd.pool.worker_messages import Assignment
from workerd.redaction import NOTHING
from workerd.signature import BadVars
from workerd.wrapping import MACHINERY, Around, run_around

if TYPE_CHECKING:
    from workerd.tracing.runs import RunTracing

_MAX_CONTEXTS = 100
"""Contexts of an exception that are searched for the interruption."""


class Runner(Protocol):
    """How the jobs of one handler are run. May raise BadVars before user code is called, nothing else."""

    def run(self, job: RunningJob) -> RunResult:
        """Run one job to its result."""


class Executor:
    """Runs assignments, one at a time, in the main thread; `replay`: beside the daemon, for a person."""

    def __init__(
        self,
        handlers: dict[str, LoadedHandler],
        flags: Flags,
        link: PoolLink,
        handler_log: HandlerLog,
        replay: bool = False,
        tracing: RunTracing | None = None,
    ) -> None:
        self._handlers = handlers
        self._tracing = tracing
        self._redactions = {name: handler.redaction for name, handler in handlers.items()}
        self._runners: dict[str, Runner] = {}
        self._flags = flags
        self._link = link
        self._handler_log = handler_log
        self._replay = replay
        self._job: RunningJob | None = None
        self._pid = os.getpid()

    def prepare(self, init: Callable[[], object] | None) -> None:
        """Call the pool's `init`, then make the one instance of each handler class. Raises LoadError."""
        if init is not None:
            _, error = _invoke(init, [], {})
            if error is not None:
                raise LoadError(f"init failed: {results.line_of(error)}\n{results.stack_of(error)}")
        for name, handler in self._handlers.items():
            self._runners[name] = _runner(handler)
        if self._tracing is not None:
            self._tracing.adopt_program()

    def end(self) -> None:
        """Nothing more is run here."""
        if self._tracing is not None:
            self._tracing.flush_program()

    def run(self, assignment: Assignment) -> RunResult:
        """Run one job. Returns in the process that called it, or not at all."""
        job = self._job = RunningJob(
            assignment, self._flags, self._link, self._handler_log, self._pid,
            self._redactions.get(assignment.claim.handler, NOTHING), self._replay,
        )  # fmt: skip
        self._handler_log.begin(job.serial, job.scrub)
        if self._tracing is not None:
            job.traced = self._tracing.begin(job.claim, self._link, job.scrub)
        try:
            result = self._run(job)
        except BaseException as error:  # a bug of workerd ends one attempt, not the worker
            result = results.raised(job.serial, error, None, False, job.scrub)
        self._job = None
        if os.getpid() != self._pid:
            _exit_forked_child(result)
        return job.finish(result)

    def _run(self, job: RunningJob) -> RunResult:
        runner = self._runners.get(job.claim.handler)
        if runner is None:
            return results.unrunnable(job.serial, "This pool has no such handler.")
        try:
            return runner.run(job)
        except BadVars as error:
            return results.unrunnable(job.serial, job.scrub(str(error)))

    def on_soft_signal(self, signum: int, frame: FrameType | None) -> None:
        """Raise DeadlineExceeded, Cancelled or Interrupted in user code, if the flags say so.

        The pool repeats the signal: what user code swallowed is raised once more, but not while it cleans
        up after the last one.
        """
        job = self._job
        if job is None or job.in_signal_handler:  # one signal may arrive while another is handled
            return
        job.in_signal_handler = True
        try:
            if _in_user_code(frame) and not _is_handling(job.interruption):
                job.interrupt(frame)
        finally:
            job.in_signal_handler = False


# -- runners -----------------------------------------------------------------------------------


def _runner(handler: LoadedHandler) -> Runner:
    if isinstance(handler.target, Command):
        return CommandRunner(handler.target, handler.around)
    if not handler.is_class:
        return FunctionRunner(handler)
    instance, error = _invoke(handler.target, [], {})
    if error is not None:
        raise LoadError(
            f'making the instance of handler "{handler.name}" failed: {results.line_of(error)}\n'
            f"{results.stack_of(error)}"
        )
    return ClassRunner(handler, instance)


class FunctionRunner:
    """Calls a function, or any other callable."""

    def __init__(self, handler: LoadedHandler) -> None:
        self._target = handler.target
        self._around = handler.around
        self._bind = handler.arguments.bind

    def run(self, job: RunningJob) -> RunResult:
        ctx = job.context()
        args, kwargs = self._bind(job.claim.vars, ctx)
        if self._around:
            return _result(job, _invoke_around(self._around, ctx, self._target, args, kwargs, job))
        return _result(job, _invoke(self._target, args, kwargs, job))


class ClassRunner:
    """Calls `ensure` of the worker's one instance, unless its `active` is false."""

    def __init__(self, handler: LoadedHandler, instance: Any) -> None:
        self._instance = instance
        self._around = handler.around
        self._bind = handler.arguments.bind

    def run(self, job: RunningJob) -> RunResult:
        ctx = job.context()
        args, kwargs = self._bind(job.claim.vars, ctx)
        result = self._ensure(job, ctx, args, kwargs)
        return msgspec.structs.replace(result, pause=_cooler_pause(self._instance))

    def _ensure(self, job: RunningJob, ctx: Context, args: list[Any], kwargs: dict[str, Any]) -> RunResult:
        active = getattr(self._instance, "active", None)
        if active is not None:
            is_active, error = _invoke(lambda: bool(active()), [], {}, job)
            if error is not None:
                return _result(job, (None, error))
            if not is_active:
                return RunResult(serial=job.serial, kind="skipped")
        return _result(job, _invoke_around(self._around, ctx, self._instance.ensure, args, kwargs, job))


class CommandRunner:
    """Runs a program, which a soft signal asks to end by SIGTERM instead of raising here."""

    def __init__(self, command: Command, around: tuple[Around, ...]) -> None:
        self._command = command
        self._around = around

    def run(self, job: RunningJob) -> RunResult:
        ctx = job.context()
        [argv], _ = self._command.bind(job.claim.vars, ctx)
        trace = {} if job.traced is None else job.traced.environment()
        program = Program(self._command, job.claim, ctx, argv, job.max_payload, trace)
        job.interrupt_in_place = program.interrupt
        return _result(job, _invoke_around(self._around, ctx, program.run, [], {}, job))


def _cooler_pause(instance: Any) -> float | None:
    """Seconds that `cooler()` returns; None (the configured pause applies) without it or if it fails."""
    cooler = getattr(instance, "cooler", None)
    if cooler is None:
        return None
    seconds, error = _invoke(lambda: duration(cooler()), [], {})
    if error is not None:
        # Logged as the handler's output; the result of the run stands.
        print(f"cooler() failed, the configured pause is used: {results.line_of(error)}", file=sys.stderr)
    return seconds if error is None else None


def _result(job: RunningJob, returned: Returned) -> RunResult:
    value, error = returned
    if error is None:
        in_request = job.claim.request_id is not None
        return results.returned(job.serial, value, job.max_payload, in_request=in_request, scrub=job.scrub)
    return results.raised(job.serial, error, job.interruption, job.cancelled, job.scrub)


# -- the fence around user code ----------------------------------------------------------------

Returned = tuple[Any, BaseException | None]
"""What a call returned, or what it raised instead."""


def _invoke(
    target: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], job: RunningJob | None = None
) -> Returned:
    """Call user code; whatever it raises is returned."""
    try:
        return _call(target, args, kwargs, job), None
    except BaseException as error:
        return None, error


def _invoke_around(
    around: tuple[Around, ...],
    ctx: Context,
    target: Callable[..., Any],
    args: list[Any],
    kwargs: dict[str, Any],
    job: RunningJob,
) -> Returned:
    """Call user code inside the functions around it, all behind one fence."""
    return _invoke(run_around, [around, ctx, partial(_call, target, args, kwargs, job)], {})


def _call(target: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], job: RunningJob | None) -> Any:
    value = target(*args, **kwargs)
    return _await(value, job) if isinstance(value, CoroutineType) else value


def _await(coroutine: Coroutine[Any, Any, Any], job: RunningJob | None) -> Any:
    # Not before a handler needs it: asyncio takes 2 MiB of each pool.
    from workerd.pool.async_handlers import Interruptible

    interruptible = Interruptible(coroutine)
    if job is not None:
        job.interrupt_in_place = interruptible.interrupt
    return interruptible.run()


_USER_CODE = _call.__code__
_GUARDED = frozenset(
    function.__code__
    for function in (
        RunningJob.progress,
        RunningJob.log,
        WorkerChannel.send,
        WorkerChannel.read_kept,
        IgnoredSignals.before_fork,
        IgnoredSignals.after_fork,
        IgnoredSignals.after_fork_in_child,
    )
)


def _in_user_code(frame: FrameType | None) -> bool:
    """Whether an exception raised at this frame reaches the fence without interrupting code of workerd."""
    if frame is not None and frame.f_code in MACHINERY:
        return False
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
    for _ in range(_MAX_CONTEXTS):
        if error is None:
            return False
        if error is interruption:
            return True
        error = error.__context__
    return False


def _exit_forked_child(result: RunResult) -> NoReturn:
    """End a process that the handler forked and that returned from the handler: the job is not its own."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os._exit(0 if result.kind == "returned" else 1)
