"""What one run used: time, CPU and peak memory, of the worker and of the children that it waited for."""

from __future__ import annotations

import contextlib
import os
import resource
import time

from workerd.outcome import Usage
from workerd.pool.surroundings import move_up

_PEAK = b"5"
"""Written to clear_refs, it sets the peak of resident memory back to the present size."""


class Meter:
    """`start` before the run, `usage` after it. Measured together: 4 µs."""

    def __init__(self) -> None:
        self._clear_refs = -1
        with contextlib.suppress(OSError):
            self._clear_refs = move_up(os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC))
        self._began = self._cpu = 0
        self._children = resource.getrusage(resource.RUSAGE_CHILDREN)

    def start(self) -> None:
        """Begin to count; where the kernel does not let the peak be set back, it is the worker's own."""
        if self._clear_refs >= 0:
            try:
                os.write(self._clear_refs, _PEAK)
            except OSError:
                self._clear_refs = -1
        self._cpu = time.clock_gettime_ns(time.CLOCK_PROCESS_CPUTIME_ID)
        self._began = time.monotonic_ns()

    def usage(self) -> Usage:
        """What was used since `start`."""
        run_us = (time.monotonic_ns() - self._began) // 1000
        cpu_us = (time.clock_gettime_ns(time.CLOCK_PROCESS_CPUTIME_ID) - self._cpu) // 1000
        before, after = self._children, resource.getrusage(resource.RUSAGE_CHILDREN)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if after != before:
            self._children = after
            cpu_us += round((after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime) * 1e6)
            # The largest child ever is all that the kernel tells: only one that grew it was this run's.
            if after.ru_maxrss > before.ru_maxrss:
                peak = max(peak, after.ru_maxrss)
        return Usage(run_us, cpu_us, peak)
