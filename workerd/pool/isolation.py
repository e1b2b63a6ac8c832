"""The state of a worker's process, restored before each job."""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import importlib
import io
import os
import resource
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

from workerd.pool.shared import DUMP_SIGNAL, LOWEST, WorkerFds

Disposition = Callable[[int, Any], Any] | int | None

# `signal.getsignal` makes an enum of its answer, at 0.5 µs a signal; the function below it takes 0.05.
_getsignal: Callable[[int], Disposition] = importlib.import_module("_signal").getsignal

READ_WAIT = 0.05
"""Seconds that an ending waits at most for the pool to read what was printed before it."""
_READ_EVERY = 0.0002
_NOTHING = bytes(4)

_KEPT = sorted(map(int, signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))


def move_up(fd: int) -> int:
    """The descriptor's number at LOWEST or above, out of a handler's way; `fd` itself is closed."""
    moved = copy_up(fd)
    os.close(fd)
    return moved


def copy_up(fd: int) -> int:
    """A copy of the descriptor at LOWEST or above; lower where the limit of open files is lower."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    lowest = LOWEST if limit == resource.RLIM_INFINITY else max(3, min(LOWEST, limit - 32))
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest)


class IgnoredSignals:
    """Takes SIGINT, SIGTERM and SIGHUP and does nothing.

    They are meant for the daemon: a service manager that signals the whole group must not end a running
    job, the pool says when one ends. A function and not SIG_IGN, because programs that a handler starts
    would inherit that and could not be terminated; an exec resets a function to the default.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self._masks = threading.local()

    def __call__(self, signum: int, frame: object) -> None:
        """Nothing: see above."""

    def install(self) -> None:
        """Take the signals in this process."""
        for signum in self.SIGNALS:
            signal.signal(signum, self)

    def give_back_in_children(self, tidy: Callable[[], None]) -> None:
        """Processes that user code forks get the defaults, as multiprocessing's `terminate` expects them.

        `tidy` is called there too. A signal that comes before the defaults are back waits, as it would
        find this function and be lost.
        """
        os.register_at_fork(before=self.hold, after_in_parent=self.release, after_in_child=self.in_child)
        os.register_at_fork(after_in_child=tidy)

    def hold(self) -> None:
        """Before a fork: none of the signals is taken."""
        self._masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, self.SIGNALS)

    def release(self) -> None:
        """After a fork: they are again."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._masks.before)

    def in_child(self) -> None:
        """After a fork, in the child: the defaults."""
        for signum in self.SIGNALS:
            if _getsignal(signum) is self:
                default = signal.default_int_handler if signum is signal.SIGINT else signal.SIG_DFL
                signal.signal(signum, default)
        self.release()


class ProcessState:
    """Descriptors 0-2, standard streams, working directory, signal dispositions, mask and timers.

    `take` notes what is to be kept, after the pool's `init` has run; `restore` brings it back.
    """

    def __init__(self, fds: WorkerFds) -> None:
        self._null = copy_up(fds.null)
        self._output = copy_up(fds.output)
        self._dump = copy_up(fds.dump)
        self._folder = -1
        self._dispositions: list[Disposition] = []
        self._stdin: TextIO = sys.stdin
        self._stdout: TextIO = sys.stdout
        self._stderr: TextIO = sys.stderr
        self._wire()
        self._open_streams()

    def _wire(self) -> None:
        os.dup2(self._null, 0)
        os.dup2(self._output, 1)
        os.dup2(self._output, 2)

    def _open_streams(self) -> None:
        # Line by line, so that what was printed before a crash is there; what is no UTF-8 raises nothing.
        self._stdin = sys.stdin = io.TextIOWrapper(
            io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8", errors="replace"
        )
        self._stdout = sys.stdout = _line_by_line(1)
        self._stderr = sys.stderr = _line_by_line(2)

    def take(self) -> None:
        """Note the present state as the one to bring back."""
        self._arm_dump()
        with contextlib.suppress(OSError):
            folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._folder = move_up(folder)
        self._dispositions = list(map(_getsignal, _KEPT))

    def _arm_dump(self) -> None:
        """Stacks of all threads into the dump: when the pool asks for it, and on the way to a crash."""
        # Both believe to be in place still, where somebody has changed the signals below them.
        faulthandler.unregister(DUMP_SIGNAL)
        faulthandler.disable()
        faulthandler.register(DUMP_SIGNAL, file=self._dump, all_threads=True, chain=False)
        faulthandler.enable(file=self._dump, all_threads=True)

    def restore(self) -> None:
        """Bring back what `take` noted; a few microseconds when nothing was changed."""
        self._wire()
        self._restore_streams()
        if self._folder >= 0:
            with contextlib.suppress(OSError):
                os.fchdir(self._folder)
        if list(map(_getsignal, _KEPT)) != self._dispositions:
            self._restore_signals()
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _restore_signals(self) -> None:
        for signum, kept in zip(_KEPT, self._dispositions, strict=True):
            # None is what C code installed before us: there is no way to say it again.
            if kept is not None and _getsignal(signum) is not kept:
                signal.signal(signum, kept)
        self._arm_dump()

    def _restore_streams(self) -> None:
        if _is_closed(self._stdout) or _is_closed(self._stderr) or _is_closed(self._stdin):
            self._open_streams()
        sys.stdin, sys.stdout, sys.stderr = self._stdin, self._stdout, self._stderr

    def flush(self) -> None:
        """Write what user code has printed and not yet written; a stream it broke is left alone."""
        try:
            self._stdout.flush()
            self._stderr.flush()
            if sys.stdout is not self._stdout:
                sys.stdout.flush()
        except Exception:  # noqa: S110 -- whatever user code put or did there, it is not the job's ending
            pass

    def wait_until_read(self) -> None:
        """Wait, not for long, until the pool has read all that is in the pipe."""
        until = 0.0
        with contextlib.suppress(OSError):  # user code has closed it: its run has ended all the same
            while fcntl.ioctl(self._output, termios.FIONREAD, _NOTHING) != _NOTHING:
                now = time.monotonic()
                until = until or now + READ_WAIT
                if now >= until:
                    return
                time.sleep(_READ_EVERY)


def _line_by_line(fd: int) -> TextIO:
    raw = io.FileIO(fd, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True
    )


def _is_closed(stream: TextIO) -> bool:
    try:
        return stream.closed
    except ValueError:  # detached from its buffer
        return True
