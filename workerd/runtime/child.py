"""Forked children: fork, pidfd, channel, reaping, and the pauses before a dead one is started again.

`os.fork` and not `multiprocessing.Process`: a sub-reaper must wait for processes it did not fork, and
Process keeps a second record of what was reaped; its sentinel pipe also stays open in grandchildren,
so that it proves no death.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import resource
import signal
import socket
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, NoReturn, TextIO, TypeVar

import msgspec

from workerd.config.handler_config import RestartConfig
from workerd.runtime.channel import Channel
from workerd.runtime.loop import Loop

UNCAUGHT_EXIT_STATUS = 70
"""An exception left the child's main function."""
ORPHANED_EXIT_STATUS = 71
"""The supervisor has gone: an orphan has no right to its claims."""
CRASH_LOOP_EXIT_STATUS = 75
"""A pool whose workers die without a job more often than its `restart` allows."""
CANNOT_LOAD_EXIT_STATUS = 78
"""A pool whose handlers do not load."""

In = TypeVar("In")

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)

# The enums of `signal` would be touched, and so copied, by every child.
_signal: Any = importlib.import_module("_signal")
_DEFAULT = int(signal.SIG_DFL)
_RESET = sorted(map(int, signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE}))


class Child:
    """A forked child: its pid, and a descriptor that can never name another process.

    `usage`: what it and the children that it waited for used in all; None until it is reaped.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.status: int | None = None
        self.usage: resource.struct_rusage | None = None

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send a signal; nothing happens when the child is dead."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signum)

    def reap(self) -> int | None:
        """Its status if it is dead: 0…255 is an exit code, negative a signal; None while it lives."""
        if self.status is None:
            try:
                pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            except ChildProcessError:
                self.status = 255  # some other wait has reaped it: its status is lost
            else:
                if pid == 0:
                    return None
                self.status = os.waitstatus_to_exitcode(status)
                self.usage = usage
        return self.status

    def close(self) -> None:
        """Release the descriptor; the child must have been reaped."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def fork(main: Callable[[], int], keep: Iterable[int] = ()) -> Child:
    """Fork a child that runs `main` and exits with what it returns.

    The child inherits only descriptors 0-2 and `keep`, has default signal dispositions, and dies with its
    parent. An exception that leaves `main` ends it with UNCAUGHT_EXIT_STATUS and a traceback on standard
    error. Raises OSError.
    """
    parent = os.getpid()
    unwritten = [stream for stream in (sys.stdout, sys.stderr) if not _flush(stream)]
    pid = os.fork()
    if pid == 0:
        _be_child(parent, main, keep, unwritten)
    try:
        return Child(pid)
    except OSError:  # no descriptor is left for its pidfd
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def _flush(stream: TextIO | None) -> bool:
    """Whether the stream's buffer is empty; a full disk or a pipe without reader is no reason not to fork."""
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        return False
    return True


def _discard(stream: TextIO) -> None:
    """Empty the buffer without writing it: it is the parent's, and each child would try to write it."""
    with contextlib.suppress(OSError, ValueError):
        output = stream.fileno()
        kept, nowhere = os.dup(output), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, output)
        _flush(stream)
        os.dup2(kept, output)
        os.close(kept)
        os.close(nowhere)


def _be_child(
    parent: int, main: Callable[[], int], keep: Iterable[int], unwritten: Iterable[TextIO]
) -> NoReturn:
    status = UNCAUGHT_EXIT_STATUS
    try:
        die_with_parent(parent)
        signal.set_wakeup_fd(-1)
        reset_signals()
        close_inherited(keep)
        for stream in unwritten:
            _discard(stream)
        gc.enable()
        status = main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else UNCAUGHT_EXIT_STATUS
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        with contextlib.suppress(BaseException):
            sys.stderr.flush()
        # Nothing of the parent's (atexit, buffers, finalizers) may run in the child.
        os._exit(status)


def share_memory() -> None:
    """Let processes that are forked from now on share the memory of what exists, until either side writes."""
    gc.collect()
    gc.freeze()  # a collection writes to whatever it looks at
    # Each entry of this cache counts as a reference to a name, and entries come and go all the time.
    # 1.4 MiB of a node with 2 workers, 2 MiB with 8.
    clear: Callable[[], None] | None = getattr(sys, "_clear_type_cache", None)
    if clear is not None:
        clear()


def die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent dies; exit if it is dead already."""
    _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(UNCAUGHT_EXIT_STATUS)


def outlive_parent() -> None:
    """Undo `die_with_parent`, for a process that must end its own children first."""
    _libc.prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)


def become_subreaper() -> None:
    """Let orphaned descendants become children of this process instead of init."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def forbid_inspection() -> None:
    """Let no process of this user read this one's memory, environment or descriptors; forked ones inherit it.

    /proc/self belongs to root then: what is opened there by its owner alone must be open before.
    """
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def allow_inspection() -> None:
    """Undo `forbid_inspection`, for processes with user code: debuggers and core files of its crashes."""
    _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


def is_alive(pid: int) -> bool:
    """Whether there is such a process, seen in /proc or not; true for a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def reset_signals() -> None:
    """Set default dispositions and an empty mask, as in a fresh process (SIGPIPE stays ignored)."""
    for signum in _RESET:
        _signal.signal(signum, _DEFAULT)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)


def ignore_terminal_signals() -> None:
    """Ignore what a terminal or service manager sends: only the supervisor ends roles and pools."""
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
    """Pids of all children of `pid`, zombies included; empty when `pid` is gone."""
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
    """Pids of all processes below `pid`, nearest first."""
    found: list[int] = []
    queue = [pid]
    while queue:
        children = children_of(queue.pop(0))
        found += children
        queue += children
    return found


class ManagedChild(Generic[In]):
    """A forked child with a channel to it, watched by its pidfd from the loop.

    `main` gets the child's end of the channel. `keep`: descriptors that it inherits besides. `incoming`:
    the union of its messages. `on_eof`: the channel ended; the child is dying, or at fault. `on_death` is
    called when it is dead and not reaped yet, so its pid is still its own; call `reap` there.
    Raises OSError when it cannot be forked.
    """

    def __init__(
        self,
        loop: Loop,
        main: Callable[[socket.socket], int],
        *,
        keep: Iterable[int],
        incoming: Any,
        on_message: Callable[[In], None],
        on_eof: Callable[[], None],
        on_death: Callable[[], None],
    ) -> None:
        self._loop = loop
        ours, theirs = socket.socketpair()
        try:
            self._child = fork(lambda: main(theirs), keep=(theirs.fileno(), *keep))
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self.pid = self._child.pid
        self.channel: Channel[In] = Channel(loop, ours, incoming, on_message, on_eof, rank=1)
        loop.on_readable(self._child.pidfd, on_death, rank=2)

    def send(self, message: msgspec.Struct) -> None:
        """Queue a message; nothing happens when the child has gone."""
        self.channel.send(message)

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send a signal; nothing happens when the child is dead."""
        self._child.kill(signum)

    @property
    def usage(self) -> resource.struct_rusage | None:
        """As in Child."""
        return self._child.usage

    def reap(self) -> int | None:
        """Read what the dead child had still written, reap it and release all descriptors (law 3).

        Its wait status as in `Child.reap`; None while it lives.
        """
        self.channel.drain()
        status = self._child.reap()
        if status is not None:
            self._loop.forget(self._child.pidfd)
            self.channel.close()
            self._child.close()
        return status


QUICK_DEATH_S = 2.0
"""A child that dies sooner after its start waits before it is started again."""
FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 5.0
"""The longest pause before a start, as long as deaths have not exceeded what `restart` allows."""
QUARANTINE_PAUSE_S = 300.0
"""The longest pause afterwards."""
MAX_BLAMELESS_QUICK_DEATHS = 2
"""Quick deaths that count at most for a child that was at work when something else killed it."""


class CrashLoopPolicy:
    """The pause before each restart, and when a child, or a group of them, has died too often.

    `restart`: more than `intensity` deaths within `period` seconds are too many; None: never too many.
    `exceeded`: they were. `quick_deaths`: in a row; set it to 0 when a child did its work.
    """

    def __init__(self, restart: RestartConfig | None = None) -> None:
        self.restart = restart
        self.exceeded = False
        self.quick_deaths = 0
        self._deaths: deque[float] = deque()

    def record_death(
        self, started: float, now: float, *, crash_loop: bool = False, blameless: bool = False
    ) -> float:
        """Count a death (monotonic seconds); returns the pause in seconds before the next start.

        `crash_loop`: the child ended because its own children die too often. `blameless`: it was at work
        until something else killed it, so nothing says that the next one will die.
        """
        quick = now - started < QUICK_DEATH_S or crash_loop
        self.quick_deaths = self.quick_deaths + 1 if quick else 0
        if blameless:
            self.quick_deaths = min(self.quick_deaths, MAX_BLAMELESS_QUICK_DEATHS)
        if self.restart is not None:
            self._deaths.append(now)
            while now - self._deaths[0] > self.restart.period:
                self._deaths.popleft()
            if crash_loop or len(self._deaths) > self.restart.intensity:
                self.exceeded = True
        if not quick and not self.exceeded:
            return 0.0
        longest = QUARANTINE_PAUSE_S if self.exceeded else MAX_PAUSE_S
        return float(min(longest, FIRST_PAUSE_S * 2 ** max(0, self.quick_deaths - 1)))

    def reset(self) -> None:
        """Forget all deaths: the child has worked long enough."""
        self.exceeded = False
        self.quick_deaths = 0
        self._deaths.clear()
