"""Celery: prefork, Redis as broker and result backend."""

from __future__ import annotations

import os
import sys

from celery import Celery

from benchmarks.peers.jobs import JOBS

LIBRARY = "celery"
SETTINGS = {"pool": "prefork", "prefetch": 64, "gossip": False, "mingle": False, "heartbeat": False}
app = Celery("peer", broker=os.environ["PEER_REDIS"], backend=os.environ["PEER_REDIS"])
app.conf.worker_prefetch_multiplier = 64
app.conf.worker_hijack_root_logger = False
_tasks = {
    name: app.task(name=name, **({"time_limit": 1} if name in ("spin", "c_code") else {}))(job)
    for name, job in JOBS.items()
}


def command(workers: int) -> list[str]:
    """The line that starts the workers."""
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "ERROR"]
    return [sys.executable, "-m", "celery", "-A", __name__, "worker", "-c", str(workers), *quiet]


def send(name: str, **vars: object) -> None:
    """Enqueue one."""
    _tasks[name].apply_async(kwargs=vars)
