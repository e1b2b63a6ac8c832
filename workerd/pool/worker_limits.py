"""Limits and usage of a worker: control groups where delegated, else rlimits."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time

from workerd.config.model import PoolConfig
from workerd.log import get_logger
from workerd.outcome import Usage
from workerd.pool.isolation import move_up
from workerd.runtime.cgroup import Delegation, PoolGroup, WorkerGroup
from workerd.runtime.limits import limit_data, limit_processes

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


log = get_logger("pool")


class WorkerLimits:
    """One worker's bounds, and the surest way to end what is within them."""

    def __init__(self, pool: PoolConfig, group: WorkerGroup | None = None) -> None:
        self._pool = pool
        self._group = group

    def enter(self) -> None:
        """Called in the forked worker, before anything else."""
        if self._group is not None:
            with contextlib.suppress(OSError):
                self._group.enter()
                return
        if self._pool.memory_max:
            limit_data(self._pool.memory_max)
        if self._pool.pids_max:
            limit_processes(self._pool.pids_max)

    def kill(self) -> None:
        """SIGKILL everything in it, however it has detached itself; nothing without a group."""
        if self._group is not None:
            self._group.kill()

    def ran_out_of_memory(self, status: int) -> bool:
        """Whether a worker that ended with this wait status was killed for its own limit."""
        return status == -signal.SIGKILL and self._group is not None and self._group.oom_kills() > 0

    @property
    def peak_kib(self) -> int | None:
        """The most memory that was used in it; None where nobody knows."""
        peak = self._group.peak() if self._group is not None else None
        return None if peak is None else peak // 1024

    def remove(self) -> bool:
        """Give its group back; False while processes are dying in it."""
        return self._group is None or self._group.remove()


class PoolLimits:
    """The pool's own group, and a cell for each worker.

    `hard`: whether the kernel keeps `memory_max`, so that nobody needs to watch it.
    """

    def __init__(self, pool: PoolConfig) -> None:
        self._pool = pool
        self._number = 0
        self._leaving: list[WorkerLimits] = []
        self._group = _group(pool)
        self.hard = self._group is not None and self._group.has("memory")

    def cell(self) -> WorkerLimits:
        """Fresh bounds for one worker, by its life: what an earlier one used must not count for it."""
        self._sweep()
        self._number += 1
        if self._group is not None:
            with contextlib.suppress(OSError):
                return WorkerLimits(self._pool, self._group.worker_group(self._number, self._pool.memory_max))
        return WorkerLimits(self._pool)

    def leave(self, cell: WorkerLimits) -> None:
        """Its worker is dead."""
        self._leaving.append(cell)
        self._sweep()

    def _sweep(self) -> None:
        self._leaving = [cell for cell in self._leaving if not cell.remove()]


def _group(pool: PoolConfig) -> PoolGroup | None:
    delegation = Delegation.find()
    if delegation is None:
        return None
    try:
        return delegation.pool_group(pool.name, pool.cpu_weight, pool.pids_max)
    except OSError as error:
        log.warning("no control group for this pool", pool=pool.name, error=str(error))
        return None
