"""Processes that user code left: adopted orphans, and what a run started; killed and reaped."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time
from collections.abc import Callable

from workerd.runtime.child import children_of
from workerd.runtime.loop import Loop, Timer

FIRST_SWEEP_PAUSE_S = 0.001
MAX_SWEEP_PAUSE_S = 0.5


class OrphanReaper:
    """Kills and reaps every child of this process that is not among the pids of `known`.

    The children of a dead orphan are adopted in turn, so sweeps go on until none are left, at growing
    pauses: one that hangs in the kernel may take long to die. `killed`: how many were reaped.
    """

    def __init__(self, loop: Loop, known: Callable[[], set[int]]) -> None:
        self._loop = loop
        self._known = known
        self._timer: Timer | None = None
        self._pause = FIRST_SWEEP_PAUSE_S
        self.killed = 0

    @property
    def busy(self) -> bool:
        """Whether the last sweep found any."""
        return self._timer is not None

    def sweep(self) -> None:
        """Kill and reap those that are there now, and go on until none is left."""
        if self._timer is not None:
            self._timer.cancel()
        self._pause = FIRST_SWEEP_PAUSE_S
        self._sweep_again()

    def _sweep_again(self) -> None:
        self._timer = None
        if self.sweep_once():
            self._timer = self._loop.call_later(self._pause, self._sweep_again)
            self._pause = min(self._pause * 2, MAX_SWEEP_PAUSE_S)

    def sweep_once(self) -> bool:
        """Kill and reap those that are there now; whether there were any."""
        orphans = set(children_of(os.getpid())) - self._known()
        for pid in orphans:
            # It is not reaped yet, so its pid is still its own.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    self.killed += 1
        return bool(orphans)


END_TIMEOUT_S = 1.0
"""For killed processes to be gone: one that hangs in the kernel must not delay the next job for longer."""
_END_POLL_S = 0.0005
_waitid, _P_ALL = os.waitid, os.P_ALL
_ANY_DEAD = os.WEXITED | os.WNOHANG | os.WNOWAIT


class RunProcesses:
    """The processes that user code of a worker started: ended with the run, reaped when they are dead.

    The worker is a subreaper, so what a run detached is its child too. Children that exist at `capture`
    were started by `init` and stay.
    """

    def __init__(self) -> None:
        self._kept: set[int] = set()
        self._dead: set[int] = set()

    def capture(self) -> None:
        """Let the children that exist now live on."""
        self._kept = set(children_of(os.getpid()))

    def end_run(self) -> None:
        """Kill and reap what the run left; takes 2 µs if the worker has no child at all."""
        if not _has_child():
            return
        deadline = time.monotonic() + END_TIMEOUT_S
        while strays := self._strays():
            for pid in strays:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            dead = {pid for pid in strays if _is_dead(pid)}
            _reap(dead)
            if time.monotonic() >= deadline:
                self._kept |= strays - dead
                return
            if not dead:
                time.sleep(_END_POLL_S)

    def while_idle(self) -> None:
        """Reap those that were dead at the last check too: what waits for a child of its own has done so."""
        dead = {pid for pid in children_of(os.getpid()) if _is_dead(pid)} if _has_child() else set()
        _reap(dead & self._dead)
        self._dead = dead

    def _strays(self) -> set[int]:
        children = set(children_of(os.getpid()))
        self._kept &= children
        return children - self._kept - _resource_tracker()


def _has_child() -> bool:
    try:
        _waitid(_P_ALL, 0, _ANY_DEAD)
    except ChildProcessError:
        return False
    return True


def _is_dead(pid: int) -> bool:
    """Whether this child is a zombie; its status can still be waited for."""
    with contextlib.suppress(ChildProcessError):
        return os.waitid(os.P_PID, pid, _ANY_DEAD) is not None
    return False


def _reap(dead: set[int]) -> None:
    """Reap these zombies; an object of user code that stands for one of them learns its status."""
    if not dead:
        return
    for waiting in _waiting_for(dead):
        with contextlib.suppress(Exception):  # a subclass of user code
            waiting()
    for pid in dead:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _waiting_for(dead: set[int]) -> list[Callable[[], object]]:
    """The `poll` of each Popen of these pids, and what makes multiprocessing poll its processes."""
    found: list[Callable[[], object]] = []
    if multiprocessing := sys.modules.get("multiprocessing.process"):
        found.append(multiprocessing.active_children)
    if subprocess := sys.modules.get("subprocess"):
        # There is no list of them. What existed before the fork is frozen, and not looked through.
        found += [
            item.poll
            for item in gc.get_objects()
            if issubclass(type(item), subprocess.Popen) and getattr(item, "pid", None) in dead
        ]
    return found


def _resource_tracker() -> set[int]:
    """The helper of multiprocessing that removes shared memory when this process ends: it serves all runs."""
    module = sys.modules.get("multiprocessing.resource_tracker")
    pid = getattr(getattr(module, "_resource_tracker", None), "_pid", None)
    return {pid} if pid is not None else set()
