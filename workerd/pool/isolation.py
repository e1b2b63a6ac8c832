"""The state of a worker's process, reset before each job."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import fcntl
import importlib
import io
import logging
import os
import resource
import signal
import sys
import termios
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, TextIO

from workerd.pool.noted_calls import signal_changes, timer_changes
from workerd.pool.shared import DUMP_SIGNAL, FIRST_PRIVATE_FD, WorkerFds

Disposition = Callable[[int, Any], Any] | int | None

# `signal.getsignal` converts to an enum: 0.5 µs a signal; the C function takes 0.05.
_atexit: Any = atexit
_signal: Any = importlib.import_module("_signal")
_getsignal: Callable[[int], Disposition] = _signal.getsignal
# `signal.pthread_sigmask` converts what it returns, which nobody reads here.
_pthread_sigmask: Callable[[int, tuple[int, ...]], object] = _signal.pthread_sigmask

OUTPUT_TIMEOUT_S = 0.5
"""How long a result waits for the pool to read the output before it: else that is another attempt's, and on a
busy machine the pool may not run for 100 ms."""
_OUTPUT_POLL_S = 0.0002
_PIPE_EMPTY = bytes(4)
_ioctl, _FIONREAD = fcntl.ioctl, termios.FIONREAD
_setitimer, _TIMERS = signal.setitimer, (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_SIG_SETMASK = int(signal.SIG_SETMASK)

_SIGNALS = sorted(map(int, signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))


def move_up(fd: int) -> int:
    """Move the descriptor to FIRST_PRIVATE_FD or above; returns its number there."""
    moved = copy_up(fd)
    os.close(fd)
    return moved


def copy_up(fd: int) -> int:
    """Copy the descriptor to FIRST_PRIVATE_FD or above, lower where RLIMIT_NOFILE is lower."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    first = FIRST_PRIVATE_FD if limit == resource.RLIM_INFINITY else max(3, min(FIRST_PRIVATE_FD, limit - 32))
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, first)


class IgnoredSignals:
    """Ignores SIGINT, SIGTERM and SIGHUP in the worker, not in programs that a handler starts.

    They are meant for the daemon: a service manager that signals the whole group must not end a running
    job. A handler function and not SIG_IGN, which programs would inherit and could then not be terminated;
    an exec resets a function to the default.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self._masks = threading.local()

    def __call__(self, signum: int, frame: object) -> None:
        """Do nothing."""

    def install(self) -> None:
        """Ignore the signals in this process."""
        for signum in self.SIGNALS:
            signal.signal(signum, self)

    def restore_in_children(self, clean_up: Callable[[], None]) -> None:
        """Restore the defaults in processes that user code forks, as multiprocessing's `terminate` needs.

        `clean_up` is called there too. The signals are blocked over the fork: one that arrived before the
        defaults are restored would be ignored.
        """
        os.register_at_fork(
            before=self.before_fork,
            after_in_parent=self.after_fork,
            after_in_child=self.after_fork_in_child,
        )
        os.register_at_fork(after_in_child=clean_up)

    def before_fork(self) -> None:
        """Block the signals."""
        self._masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, self.SIGNALS)

    def after_fork(self) -> None:
        """Restore the mask."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._masks.before)

    def after_fork_in_child(self) -> None:
        """Restore the default dispositions and the mask."""
        for signum in self.SIGNALS:
            if _getsignal(signum) is self:
                default = signal.default_int_handler if signum is signal.SIGINT else signal.SIG_DFL
                signal.signal(signum, default)
        self.after_fork()


def forget_exit_functions() -> None:
    """Drop what this process has registered to run at exit, before user code registers its own.

    Without it, a worker that runs the functions of user code would remove the daemon's files.
    """
    finalize: Any = weakref.finalize
    for finalizer in list(getattr(finalize, "_registry", ())):
        finalizer.atexit = False
    finalize._registered_with_atexit = False
    _atexit._clear()
    atexit.register(logging.shutdown)


def run_exit_functions() -> None:
    """Run what user code has registered with `atexit`; errors are printed."""
    with contextlib.suppress(BaseException):
        _atexit._run_exitfuncs()


class ProcessState:
    """Descriptors 0-2, standard streams, working directory, signal dispositions, mask and timers.

    `capture` saves the state after the pool's `init` has run; `reset` restores it. `output_fd`: a copy of
    the output pipe that is out of a handler's way.
    """

    def __init__(self, fds: WorkerFds) -> None:
        self._null = copy_up(fds.null)
        self.output_fd = copy_up(fds.output)
        self._dump = copy_up(fds.dump)
        self._folder = -1
        self._dispositions: list[Disposition] = []
        self._stdin: TextIO = sys.stdin
        self._stdout: TextIO = sys.stdout
        self._stderr: TextIO = sys.stderr
        self._redirect()
        self._open_streams()

    def _redirect(self) -> None:
        os.dup2(self._null, 0)
        os.dup2(self.output_fd, 1)
        os.dup2(self.output_fd, 2)

    def _open_streams(self) -> None:
        # Line buffered, so that lines printed before a crash are not lost; invalid UTF-8 must not raise.
        self._stdin = sys.stdin = io.TextIOWrapper(
            io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8", errors="replace"
        )
        self._stdout = sys.stdout = _line_buffered(1)
        self._stderr = sys.stderr = _line_buffered(2)

    def capture(self) -> None:
        """Save the present state as the one to restore."""
        self._enable_dump()
        with contextlib.suppress(OSError):
            folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._folder = move_up(folder)
        self._dispositions = list(map(_getsignal, _SIGNALS))
        signal_changes.noted = False

    def _enable_dump(self) -> None:
        """Dump the stacks of all threads on DUMP_SIGNAL and on a crash."""
        # faulthandler does not notice that user code changed the dispositions: it must be disabled first.
        faulthandler.unregister(DUMP_SIGNAL)
        faulthandler.disable()
        faulthandler.register(DUMP_SIGNAL, file=self._dump, all_threads=True, chain=False)
        faulthandler.enable(file=self._dump, all_threads=True)

    def reset(self) -> None:
        """Restore the captured state; takes a few microseconds when nothing was changed."""
        self._redirect()
        self._restore_streams()
        if self._folder >= 0:
            with contextlib.suppress(OSError):
                os.fchdir(self._folder)
        if signal_changes.noted:
            self._restore_signals()
        signal.set_wakeup_fd(-1)
        _pthread_sigmask(_SIG_SETMASK, ())
        if timer_changes.noted:
            for timer in _TIMERS:
                _setitimer(timer, 0)
            timer_changes.noted = False

    def _restore_signals(self) -> None:
        for signum, captured in zip(_SIGNALS, self._dispositions, strict=True):
            # None: installed by C code, and cannot be restored from Python.
            if captured is not None and _getsignal(signum) is not captured:
                signal.signal(signum, captured)
        self._enable_dump()
        signal_changes.noted = False

    def _restore_streams(self) -> None:
        try:
            closed = self._stdout.closed or self._stderr.closed or self._stdin.closed
        except ValueError:  # detached from its buffer
            closed = True
        if closed:
            self._open_streams()
        sys.stdin, sys.stdout, sys.stderr = self._stdin, self._stdout, self._stderr

    def flush_output(self) -> None:
        """Flush what user code printed; a stream that it broke is left alone."""
        try:
            self._stdout.flush()
            self._stderr.flush()
            if sys.stdout is not self._stdout:
                sys.stdout.flush()
        except Exception:  # noqa: S110 -- user code may have replaced or broken it; the result stands
            pass

    def wait_until_output_is_read(self) -> None:
        """Wait, at most OUTPUT_TIMEOUT_S, until the pool has emptied the pipe."""
        until = 0.0
        try:
            while _ioctl(self.output_fd, _FIONREAD, _PIPE_EMPTY) != _PIPE_EMPTY:
                now = time.monotonic()
                until = until or now + OUTPUT_TIMEOUT_S
                if now >= until:
                    return
                time.sleep(_OUTPUT_POLL_S)
        except OSError:  # user code has closed it; the result stands
            pass


def _line_buffered(fd: int) -> TextIO:
    raw = io.FileIO(fd, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True
    )
