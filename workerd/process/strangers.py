"""Strangers: processes that nobody here forked and that came to this sub-reaper when their parent died."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable

from workerd.process.child import children_of
from workerd.process.loop import Loop, Timer

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
