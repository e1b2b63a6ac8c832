"""Celery: prefork, Redis as broker and result backend, acknowledged when the job has ended."""

from __future__ import annotations

import os
import sys
from typing import Any

from celery import Celery
from redis import Redis

from benchmarks.peers.jobs import JOBS, LIMITED

LIBRARY = "celery"
SETTINGS = {
    "pool": "prefork", "acks_late": True, "reject_on_worker_lost": True, "prefetch": 64,
    "gossip": False, "mingle": False, "heartbeat": False,
}  # fmt: skip
_url = os.environ["PEER_REDIS"]
app = Celery("peer", broker=_url, backend=_url)
app.conf.worker_prefetch_multiplier = 64
app.conf.worker_hijack_root_logger = False
app.conf.task_acks_late = True
app.conf.task_reject_on_worker_lost = True
_tasks = {
    name: app.task(name=name, **({"time_limit": 1} if name in LIMITED else {}))(job)
    for name, job in JOBS.items()
}


def command(workers: int) -> list[str]:
    """The command that starts the workers."""
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "ERROR"]
    return [sys.executable, "-m", "celery", "-A", __name__, "worker", "-c", str(workers), *quiet]


def send(name: str, **vars: object) -> Any:
    """Enqueue one."""
    return _tasks[name].apply_async(kwargs=vars).id


def became(job: Any) -> str:
    """The recorded state of the job."""
    result = app.AsyncResult(job)
    return f"{result.state} {type(result.result).__name__}" if result.ready() else result.state


def stored() -> int:
    """The number of stored results."""
    return sum(1 for _ in Redis.from_url(_url).scan_iter("celery-task-meta-*", count=1000))
