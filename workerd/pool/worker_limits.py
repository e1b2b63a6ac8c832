"""Limits and usage of a worker: control groups where delegated, else rlimits."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time

from workerd import host
from workerd.config.handler_config import PoolConfig
from workerd.log import get_logger
from workerd.outcome import Usage
from workerd.pool.attempt import KillReason
from workerd.pool.isolation import move_up
from workerd.pool.shared import SharedFlags
from workerd.runtime.cgroup import Delegation, PoolGroup, WorkerGroup
from workerd.runtime.limits import cpu_us_of, limit_data, limit_processes

_RESET_PEAK = b"5"
"""Written to clear_refs, it resets the peak of resident memory to the present size."""

PEAK_SLACK_KIB = 1024
"""A peak that lies so little above the size before is left: to reset it for each run takes 0.5 µs."""

log = get_logger("pool")


class Meter:
    """Measures what a job uses: `start` before it, `usage` after it. Together they take 3 µs.

    `flags` tell the pool where a run began, which measures it from there when the worker dies.
    """

    def __init__(self, flags: SharedFlags) -> None:
        self._flags = flags
        self._clear_refs = -1
        with contextlib.suppress(OSError):
            self._clear_refs = move_up(os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC))
        self._start_ns = self._cpu_ns = 0
        self._low_peak_kib = -1
        self._peak_is_high = True
        self._children = resource.getrusage(resource.RUSAGE_CHILDREN)
        self._children_cpu_us = cpu_us_of(self._children)

    def start(self) -> None:
        """Start measuring; where the peak cannot be reset, that of the worker's life is reported."""
        if self._peak_is_high and self._clear_refs >= 0:
            self._reset_peak()
        self._cpu_ns = time.clock_gettime_ns(time.CLOCK_PROCESS_CPUTIME_ID)
        self._flags.mark_cpu(self._cpu_ns // 1000 + self._children_cpu_us)
        self._start_ns = time.monotonic_ns()

    def _reset_peak(self) -> None:
        try:
            os.write(self._clear_refs, _RESET_PEAK)
        except OSError:
            self._clear_refs = -1
            return
        self._low_peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + PEAK_SLACK_KIB

    def usage(self) -> Usage:
        """What the process and its waited-for children used since `start`."""
        run_us = (time.monotonic_ns() - self._start_ns) // 1000
        cpu_us = (time.clock_gettime_ns(time.CLOCK_PROCESS_CPUTIME_ID) - self._cpu_ns) // 1000
        before, after = self._children, resource.getrusage(resource.RUSAGE_CHILDREN)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._peak_is_high = peak > self._low_peak_kib
        if after != before:
            self._children = after
            total = cpu_us_of(after)
            cpu_us += total - self._children_cpu_us
            self._children_cpu_us = total
            # The kernel only reports the largest child ever: if that grew, the child belonged to this run.
            if after.ru_maxrss > before.ru_maxrss:
                peak = max(peak, after.ru_maxrss)
        return Usage(run_us, cpu_us, peak)


class HostMemory:
    """Notices that the kernel killed something because the memory of the daemon's own group was full.

    Compares with the count before the last one, since a check may come between the kill and its notice.
    """

    def __init__(self) -> None:
        self._kills = host.OomKills()
        self._before = self._last = self._kills.count()

    def check(self) -> None:
        """Count; to be called now and then while anything runs."""
        self._before, self._last = self._last, self._kills.count()

    def explains_death(self) -> bool:
        """Whether the kernel has killed for memory since the check before the last; a kill counts once."""
        if self._kills.count() <= self._before:
            return False
        self._before += 1
        self._last = max(self._last, self._before)
        return True


class WorkerLimits:
    """The limits of one worker, and with a control group the way to kill everything in it."""

    def __init__(self, pool: PoolConfig, host_memory: HostMemory, group: WorkerGroup | None = None) -> None:
        self._pool = pool
        self._host_memory = host_memory
        self._group = group

    def enter(self) -> None:
        """Apply the limits to this process; called first in the forked worker."""
        if self._group is not None:
            with contextlib.suppress(OSError):
                self._group.enter()
                return
        if self._pool.memory_max:
            limit_data(self._pool.memory_max)
        if self._pool.pids_max:
            limit_processes(self._pool.pids_max)

    def kill(self) -> None:
        """SIGKILL every process in the group, detached ones too; does nothing without a group."""
        if self._group is not None:
            self._group.kill()

    def ran_out_of_memory(self, status: int) -> KillReason:
        """Which memory was full, if a worker with this wait status was killed for that, else NONE."""
        if status != -signal.SIGKILL:
            return KillReason.NONE
        if self._group is not None and self._group.oom_kills() > 0:
            # The kernel counts the kill in the worker's group, whichever group above it was full.
            return KillReason.OOM if self._group.was_full() else KillReason.HOST_OOM
        return KillReason.HOST_OOM if self._host_memory.explains_death() else KillReason.NONE

    @property
    def peak_kib(self) -> int | None:
        """Peak memory of the group; None without a group."""
        peak = self._group.peak() if self._group is not None else None
        return None if peak is None else peak // 1024

    def remove(self) -> bool:
        """Remove the group; false while processes are dying in it."""
        return self._group is None or self._group.remove()


class PoolLimits:
    """The pool's control group, and the limits of each worker.

    `memory_enforced`: whether the kernel enforces `memory_max`.
    """

    def __init__(self, pool: PoolConfig, instance: str) -> None:
        """`instance`: what the control group is named after."""
        self._pool = pool
        self._last_number = 0
        self._released: list[WorkerLimits] = []
        self._group = _create_group(pool, instance)
        self.memory_enforced = self._group is not None and self._group.has("memory")
        self.host_memory = HostMemory()

    def new_worker(self) -> WorkerLimits:
        """Limits for a new worker; its group is new too, as what an earlier worker used must not count."""
        self._remove_released()
        self._last_number += 1
        if self._group is not None:
            with contextlib.suppress(OSError):
                return WorkerLimits(
                    self._pool,
                    self.host_memory,
                    self._group.worker_group(self._last_number, self._pool.memory_max),
                )
        return WorkerLimits(self._pool, self.host_memory)

    def release(self, limits: WorkerLimits) -> None:
        """Remove the limits of a dead worker as soon as its group is empty."""
        self._released.append(limits)
        self._remove_released()

    def _remove_released(self) -> None:
        self._released = [limits for limits in self._released if not limits.remove()]


def _create_group(pool: PoolConfig, instance: str) -> PoolGroup | None:
    delegation = Delegation.find()
    if delegation is None:
        return None
    try:
        return delegation.pool_group(instance, pool.cpu_weight, pool.pids_max)
    except OSError as error:
        log.warning("cgroup.create_failed", pool=pool.name, error=str(error))
        return None
