"""What `workerd status` and the metrics show of a pool."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from workerd.job import id_text
from workerd.pool.worker_process import WorkerProcess


def workers_info(workers: Mapping[str, WorkerProcess]) -> list[dict[str, Any]]:
    """One entry per worker."""
    return [_worker_info(worker) for worker in workers.values()]


def _worker_info(worker: WorkerProcess) -> dict[str, Any]:
    """`since` and `deadline` (soft) are monotonic seconds."""
    info: dict[str, Any] = {
        "name": worker.name,
        "pid": worker.pid,
        "state": worker.state.value,
        "since": round(worker.since, 3),
        "jobs": worker.jobs,
    }
    attempt = worker.attempt
    if attempt is not None:
        info |= {
            "job": id_text(attempt.claim.id),
            "attempt": attempt.claim.attempt,
            "handler": attempt.claim.handler,
            "since": round(attempt.start_ns / 1e9, 3),
            "deadline": round(attempt.soft_deadline_ns / 1e9, 3) if attempt.deadline > 0 else None,
            "progress": attempt.progress,
            "note": attempt.note,
        }
    return info


def queued_count(workers: Iterable[WorkerProcess]) -> int:
    """Attempts that are assigned to workers and not started."""
    return sum(len(worker.queued) for worker in workers)
