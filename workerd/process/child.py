"""Forked children: made, known by pidfd, killed and reaped.

`os.fork` and not `multiprocessing.Process`: a sub-reaper must wait for strangers too, and Process
keeps a second book of who was reaped; its sentinel pipe also stays open in grandchildren, which
makes it no authority on a death.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)

# What `signal` makes enums of would be touched by every child, and with it copied.
_signal: Any = importlib.import_module("_signal")
_DEFAULT = int(signal.SIG_DFL)
_RESET = sorted(map(int, signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE}))


class Child:
    """A forked process of ours: its pid and a descriptor that names it beyond doubt."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.status: int | None = None

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Signal it; nothing happens if it is dead."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signum)

    def reap(self) -> int | None:
        """Its wait status if it is dead (0…255 exit code, negative signal), else None."""
        if self.status is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                self.status = 255  # reaped by a stranger's wait; there is nothing more to learn
            else:
                if pid == 0:
                    return None
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def close(self) -> None:
        """Give the descriptor back; the child must have been reaped."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def fork(main: Callable[[], int], keep: Iterable[int] = ()) -> Child:
    """Fork a child that runs `main` and exits with what it returns.

    The child inherits only descriptors 0-2 and `keep`, default signal dispositions, and dies with its
    parent. An exception that leaves `main` ends it with status 70 and a traceback on standard error.
    """
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _be_child(parent, main, keep)
    return Child(pid)


def _be_child(parent: int, main: Callable[[], int], keep: Iterable[int]) -> NoReturn:
    status = 70
    try:
        die_with_parent(parent)
        signal.set_wakeup_fd(-1)
        reset_signals()
        close_inherited(keep)
        gc.enable()
        status = main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 70
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        with contextlib.suppress(BaseException):
            sys.stderr.flush()
        # Nothing of the parent's (atexit, buffers, finalizers) may run in the child.
        os._exit(status)


def die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent dies; exit if it is dead already."""
    _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(70)


def outlive_parent() -> None:
    """Take `die_with_parent` back, for a process that has something to end before it ends itself."""
    _libc.prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)


def become_subreaper() -> None:
    """Orphaned descendants come to this process instead of to init."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reset_signals() -> None:
    """Default dispositions and an empty mask, as a fresh process has them (SIGPIPE stays ignored)."""
    for signum in _RESET:
        _signal.signal(signum, _DEFAULT)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)


def ignore_terminal_signals() -> None:
    """Roles and pools are told what to do by the supervisor, not by the terminal or the manager."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)


def close_inherited(keep: Iterable[int]) -> None:
    """Close every descriptor above 2 that is not in `keep`."""
    kept = set(keep)
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd not in kept:
            with contextlib.suppress(OSError):
                os.close(fd)


def children_of(pid: int) -> list[int]:
    """Pids of the living and dead children of all threads of `pid`; empty if it is gone."""
    found: list[int] = []
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for task in tasks:
        with contextlib.suppress(OSError):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def descendants_of(pid: int) -> list[int]:
    """All processes below `pid`, nearest first."""
    found: list[int] = []
    queue = [pid]
    while queue:
        children = children_of(queue.pop(0))
        found += children
        queue += children
    return found
