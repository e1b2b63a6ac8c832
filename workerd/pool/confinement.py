"""What bounds the workers of a pool: control groups of their own where they are delegated, else rlimits."""

from __future__ import annotations

import contextlib
import signal

from workerd.config.model import Pool
from workerd.log import get_logger
from workerd.process.cgroup import Delegation, PoolGroup, WorkerGroup
from workerd.process.limits import limit_data, limit_processes

log = get_logger("pool")


class Cell:
    """One worker's bounds, and the surest way to end what is within them."""

    def __init__(self, pool: Pool, group: WorkerGroup | None = None) -> None:
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


class Confinement:
    """The pool's own group, and a cell for each worker.

    `hard`: whether the kernel keeps `memory_max`, so that nobody needs to watch it.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._number = 0
        self._leaving: list[Cell] = []
        self._group = _group(pool)
        self.hard = self._group is not None and self._group.has("memory")

    def cell(self) -> Cell:
        """Fresh bounds for one worker, by its life: what an earlier one used must not count for it."""
        self._sweep()
        self._number += 1
        if self._group is not None:
            with contextlib.suppress(OSError):
                return Cell(self._pool, self._group.worker_group(self._number, self._pool.memory_max))
        return Cell(self._pool)

    def leave(self, cell: Cell) -> None:
        """Its worker is dead."""
        self._leaving.append(cell)
        self._sweep()

    def _sweep(self) -> None:
        self._leaving = [cell for cell in self._leaving if not cell.remove()]


def _group(pool: Pool) -> PoolGroup | None:
    delegation = Delegation.find()
    if delegation is None:
        return None
    try:
        return delegation.pool_group(pool.name, pool.cpu_weight, pool.pids_max)
    except OSError as error:
        log.warning("no control group for this pool", pool=pool.name, error=str(error))
        return None
