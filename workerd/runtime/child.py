"""Forked children: made, known by pidfd, killed, reaped, and when they are started again."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from workerd.config.model import RestartConfig

_ENV_START = 47
"""Where the block begins: field 50 of /proc/PID/stat, counted from behind the name."""
_LARGEST = 4 << 20
"""Bytes; the kernel gives no process more."""


def hide(prefix: str) -> int:
    """Take all variables whose names begin so out of this process, into a descriptor for `hidden`.

    The kernel shows the block that a process was started with as /proc/PID/environ, of it and of all that
    it forks, whatever became of `os.environ`. They are overwritten there, and where Python had them.
    """
    fd = os.memfd_create("workerd-environment", os.MFD_CLOEXEC)
    start = prefix.encode()
    for name in [name for name in os.environb if name.startswith(start)]:
        value = os.environb.pop(name)
        os.writev(fd, [name, b"=", value, b"\0"])
        if len(value) > 1:  # the shorter ones are shared by the whole interpreter
            ctypes.memset(id(value) + bytes.__basicsize__ - 1, 0, len(value))
    _overwrite(start)
    return fd


def hidden(fd: int) -> dict[str, str]:
    """What `hide` has taken out."""
    lines = os.pread(fd, _LARGEST, 0).split(b"\0")[:-1]
    pairs = (line.partition(b"=") for line in lines)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def _overwrite(prefix: bytes) -> None:
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start = int(stat[_ENV_START])  # 0 where it may not be known, and then environ is hidden too
    block = bytearray(_LARGEST)
    with Path("/proc/self/environ").open("rb", buffering=0) as file:
        length = file.readinto(block) or 0
    at = 0
    while start and at < length:
        end = block.find(0, at, length)
        end = length if end < 0 else end
        if block.startswith(prefix, at):
            # Nobody reads it any more: pop() has taken it out of the C library's list.
            ctypes.memset(start + at, 0, end - at)
        at = end + 1
    block[:length] = bytes(length)


# Forked children: made, known by pidfd, killed and reaped.
#
# `os.fork` and not `multiprocessing.Process`: a sub-reaper must wait for strangers too, and Process
# keeps a second book of who was reaped; its sentinel pipe also stays open in grandchildren, which
# makes it no authority on a death.
#

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


QUICK = 2.0
"""Seconds; who dies sooner after its start died at once and waits before the next start."""
FIRST_PAUSE = 0.1
ROLE_PAUSE = 5.0
"""Seconds; the longest pause of a role, which is never given up."""
KILLED_IN_A_ROW = 2
"""Quick deaths in a row that count at the most for who worked and was killed by somebody else."""
QUARANTINE_PAUSE = 300.0
"""Seconds; the longest pause of a quarantined pool."""


@dataclass
class RestartPolicy:
    """The book of one process's deaths. `restart` is None for a role."""

    restart: RestartConfig | None = None
    quarantined: bool = False
    _in_a_row: int = 0
    _deaths: deque[float] = field(default_factory=deque)

    def died(self, started: float, now: float, crash_loop: bool = False, blameless: bool = False) -> float:
        """Note a death and return the pause in seconds before the next start.

        `crash_loop`: the pool itself said that its workers die without a job as often as `restart` allows.
        `blameless`: it did its work until somebody killed it, so nothing says that the next one will die.
        """
        quick = now - started < QUICK or crash_loop
        self._in_a_row = self._in_a_row + 1 if quick else 0
        if blameless:
            self._in_a_row = min(self._in_a_row, KILLED_IN_A_ROW)
        if self.restart is not None:
            self._deaths.append(now)
            while self._deaths and now - self._deaths[0] > self.restart.period:
                self._deaths.popleft()
            if crash_loop or len(self._deaths) > self.restart.intensity:
                self.quarantined = True
        if not quick and not self.quarantined:
            return 0.0
        longest = QUARANTINE_PAUSE if self.quarantined else ROLE_PAUSE
        return float(min(longest, FIRST_PAUSE * 2 ** max(0, self._in_a_row - 1)))

    def proved_itself(self) -> None:
        """It has lived and worked long enough: the past is forgotten."""
        self.quarantined = False
        self._in_a_row = 0
        self._deaths.clear()
