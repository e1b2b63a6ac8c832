"""Children that this process did not fork itself: adopted orphans killed, zombies of user code reaped."""

from __future__ import annotations

import contextlib
import os
import signal
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


ZOMBIE_CHECK_INTERVAL_S = 60.0
"""Whatever waits for a child of its own has done so long before."""


class ZombieReaper:
    """Reaps children that were zombies at two checks in a row.

    A handler that leaves something running in the background leaves the worker a zombie each time, until
    no process can be started any more. A zombie may also be the child of a library that keeps it for later
    jobs and will wait for it: if it were reaped at once, that could wait for ever.
    """

    def __init__(self) -> None:
        self._next_check = time.monotonic() + ZOMBIE_CHECK_INTERVAL_S
        self._dead: set[int] = set()

    def after_job(self) -> None:
        """Check, if it is time to."""
        if time.monotonic() >= self._next_check:
            self.check()

    def check(self) -> None:
        """Reap those that were zombies at the last check too."""
        self._next_check = time.monotonic() + ZOMBIE_CHECK_INTERVAL_S
        dead = {pid for pid in children_of(os.getpid()) if _is_dead(pid)}
        for pid in dead & self._dead:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        self._dead = dead - self._dead


def _is_dead(pid: int) -> bool:
    """Whether this child is a zombie; its status can still be waited for."""
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    with contextlib.suppress(ChildProcessError):
        return os.waitid(os.P_PID, pid, options) is not None
    return False
