"""A worker's owner without a pool."""

from __future__ import annotations

import sys

from workerd.config.handler_config import PoolConfig
from workerd.outcome import RunResult
from workerd.pool.attempt import AssignedAttempt
from workerd.pool.loading import LoadedHandlers, load
from workerd.pool.worker_messages import Loaded
from workerd.pool.worker_process import WorkerProcess
from workerd.pool.worker_state import WorkerState


def loaded_here(pool: PoolConfig) -> LoadedHandlers:
    """The pool's handlers, loaded in the process of the tests."""
    path = list(sys.path)
    loaded = load(pool)
    sys.path[:] = path
    return loaded


class Recorder:
    """The owner of a worker and of its attempts, which keeps what it is called with."""

    def __init__(self) -> None:
        self.ready: list[WorkerProcess] = []
        self.results: list[tuple[int, str]] = []
        self.revoked: list[int] = []
        self.deaths: list[tuple[int | None, int]] = []

    def on_ready(self, worker: WorkerProcess, loaded: Loaded) -> None:
        worker.move(WorkerState.IDLE)
        self.ready.append(worker)

    def on_result(self, worker: WorkerProcess, attempt: AssignedAttempt, result: RunResult) -> None:
        self.results.append((attempt.serial, result.kind))

    def on_revoked(self, attempt: AssignedAttempt) -> None:
        self.revoked.append(attempt.serial)

    def on_death(self, worker: WorkerProcess, attempt: AssignedAttempt | None, status: int) -> None:
        self.deaths.append((attempt.serial if attempt else None, status))


class SilentLog:
    """An OutputLog for workers that print nothing."""

    def add_lines(self, worker: str, attempt: AssignedAttempt | None, lines: list[str]) -> None:
        raise AssertionError(lines)

    def add_truncation(self, worker: str, attempt: AssignedAttempt | None, count: int) -> None:
        raise AssertionError(count)
