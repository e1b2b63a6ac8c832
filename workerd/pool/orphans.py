"""Dead children that came to the worker from a job's own children, and that nobody waits for."""

from __future__ import annotations

import contextlib
import os
import time

from workerd.process.child import children_of

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
