"""Huey: worker processes, results in Redis."""

from __future__ import annotations

import os
import sys
from typing import Any

from huey import RedisHuey

from benchmarks.peers.jobs import JOBS

LIBRARY = "huey"
SETTINGS = {"workers": "process", "results": True}
huey = RedisHuey("peer", url=os.environ["PEER_REDIS"], results=True)


def _task(name: str) -> Any:
    limit: dict[str, Any] = {"timeout": 1} if name in ("spin", "c_code") else {}
    return huey.task(name=name, **limit)(JOBS[name])


_tasks = {name: _task(name) for name in JOBS}


def command(workers: int) -> list[str]:
    """The line that starts the workers."""
    where = os.path.join(os.path.dirname(sys.executable), "huey_consumer")
    return [where, f"{__name__}.huey", "-k", "process", "-w", str(workers), "-q"]


def send(name: str, **vars: object) -> None:
    """Enqueue one."""
    _tasks[name](**vars)
