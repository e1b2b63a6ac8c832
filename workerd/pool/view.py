"""What `workerd status`, `top` and the metrics show of a pool."""

from __future__ import annotations

from typing import Any

from workerd.job import id_text
from workerd.pool.member import Member


def worker_info(member: Member) -> dict[str, Any]:
    """One worker; `since` and `deadline` (soft) are monotonic seconds."""
    info: dict[str, Any] = {
        "name": member.name,
        "pid": member.pid,
        "state": member.state.value,
        "since": round(member.since, 3),
        "jobs": member.jobs,
    }
    run = member.run
    if run is not None:
        info |= {
            "job": id_text(run.claim.id),
            "attempt": run.claim.attempt,
            "handler": run.claim.handler,
            "since": round(run.start_ns / 1e9, 3),
            "deadline": round(run.soft_ns / 1e9, 3) if run.deadline > 0 else None,
            "progress": run.progress,
            "note": run.note,
        }
    return info
