"""Huey: worker processes, results in Redis."""

from __future__ import annotations

import os
import sys
from typing import Any

from huey import RedisHuey
from huey.exceptions import TaskException

from benchmarks.peers.jobs import JOBS, LIMITED

LIBRARY = "huey"
SETTINGS = {"workers": "process", "results": True}
huey = RedisHuey("peer", url=os.environ["PEER_REDIS"], results=True, store_none=True)


def _task(name: str) -> Any:
    limit: dict[str, Any] = {"timeout": 1} if name in LIMITED else {}
    return huey.task(name=name, **limit)(JOBS[name])


_tasks = {name: _task(name) for name in JOBS}


def command(workers: int) -> list[str]:
    """The command that starts the workers."""
    where = os.path.join(os.path.dirname(sys.executable), "huey_consumer")
    return [where, f"{__name__}.huey", "-k", "process", "-w", str(workers), "-q"]


def send(name: str, **vars: object) -> Any:
    """Enqueue one."""
    return _tasks[name](**vars)


def became(job: Any) -> str:
    """The recorded state of the job."""
    if not job.is_ready():
        return "no result"
    try:
        return f"returned {job.get(preserve=True)!r}"
    except TaskException as error:
        return f"failed: {str(error)[:60]}"


def stored() -> int:
    """The number of stored results."""
    return int(huey.result_count())
