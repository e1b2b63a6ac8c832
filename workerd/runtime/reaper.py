"""Processes that nobody here forked: reaped, or killed with what left them behind."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable

from workerd.runtime.child import children_of
from workerd.runtime.loop import Loop, Timer

FIRST_PAUSE = 0.001
LONGEST_PAUSE = 0.5


class Strangers:
    """Ends every child of this process that `known` does not name, and reaps it.

    A stranger's own children come here when it is dead, so one look is not enough: it looks again until
    none are left, at growing pauses, because one that hangs in the kernel may take long to die.
    """

    def __init__(self, loop: Loop, known: Callable[[], set[int]]) -> None:
        self._loop = loop
        self._known = known
        self._timer: Timer | None = None
        self._pause = FIRST_PAUSE
        self.killed = 0

    @property
    def busy(self) -> bool:
        """Some were there at the last look."""
        return self._timer is not None

    def look(self) -> None:
        """Kill and reap what is there now; look again until nothing is left."""
        if self._timer is not None:
            self._timer.cancel()
        self._pause = FIRST_PAUSE
        self._again()

    def _again(self) -> None:
        self._timer = None
        if self.end_all():
            self._timer = self._loop.call_later(self._pause, self._again)
            self._pause = min(self._pause * 2, LONGEST_PAUSE)

    def end_all(self) -> bool:
        """One pass; true if any stranger was there."""
        strangers = set(children_of(os.getpid())) - self._known()
        for pid in strangers:
            # Not reaped yet, so the pid is certainly still theirs.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    self.killed += 1
        return bool(strangers)


EVERY = 60.0
"""Seconds between two looks. Who waits for a child of its own has done so long before."""


class Orphans:
    """Reaps children that are dead at two looks in a row.

    A handler that leaves something running in the background leaves a dead child to the worker each time,
    until no process can be started any more. A dead child may also be one that a library keeps for later
    jobs and will wait for: to take that away from it could make it wait for ever.
    """

    def __init__(self) -> None:
        self._next = time.monotonic() + EVERY
        self._dead: set[int] = set()

    def after_job(self) -> None:
        """Look, if it is time to."""
        if time.monotonic() >= self._next:
            self.look()

    def look(self) -> None:
        """Reap those that were dead at the last look too."""
        self._next = time.monotonic() + EVERY
        dead = {pid for pid in children_of(os.getpid()) if _is_dead(pid)}
        for pid in dead & self._dead:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        self._dead = dead - self._dead


def _is_dead(pid: int) -> bool:
    """Whether this child is a zombie; the status is left for whoever waits for it."""
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    with contextlib.suppress(ChildProcessError):
        return os.waitid(os.P_PID, pid, options) is not None
    return False
