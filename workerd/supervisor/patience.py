"""How long a child has been silent, without the time in which the machine let it or its watcher not run."""

from __future__ import annotations

import contextlib
import os

_MAX_STAT_BYTES = 128


class Patience:
    """Judges the silence of one child: by the time that it could have had, not by the clock alone.

    On a machine that is out of memory or has hundreds of runnable processes, a healthy child may not run
    for many seconds; killing it then makes the next one load everything again. All times are monotonic
    seconds. `lateness`: how much later than intended the watcher itself ran.
    """

    def __init__(self, now: float) -> None:
        self.heard(now)

    def heard(self, now: float) -> None:
        """It showed progress, or is excused for what was before."""
        self._heard_at = now
        self._late_s = 0.0
        self._waited_before_s: float | None = None
        self._waited_s = 0.0

    def watch(self, lateness: float, pid: int) -> None:
        """Take into account what happened since the last check."""
        self._late_s += lateness
        waited_s = waited_for_processor(pid)
        if self._waited_before_s is None:
            self._waited_before_s = waited_s
        self._waited_s = waited_s - self._waited_before_s

    def silence(self, now: float) -> float:
        """Seconds of silence in which it could have run."""
        # Not the sum: when the watcher is late, so is usually the child, for the same reason.
        return now - self._heard_at - max(self._late_s, self._waited_s, 0.0)


def waited_for_processor(pid: int) -> float:
    """Seconds that the main thread of a process was ready to run and did not; 0 where the kernel hides it."""
    # Without the layers of `open`: for every child, every second, also of a node without work.
    with contextlib.suppress(OSError, IndexError, ValueError):
        fd = os.open(f"/proc/{pid}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return int(os.read(fd, _MAX_STAT_BYTES).split()[1]) / 1e9
        finally:
            os.close(fd)
    return 0.0
