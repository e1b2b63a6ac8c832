"""RQ: a pool of SimpleWorkers, which is faster than a fork for each job."""

from __future__ import annotations

import os
import sys

from redis import Redis
from rq import Queue

from benchmarks.peers.jobs import JOBS

LIBRARY = "rq"
SETTINGS = {"worker": "SimpleWorker", "result_ttl": 500}
_queue = Queue(connection=Redis.from_url(os.environ["PEER_REDIS"]))


def command(workers: int) -> list[str]:
    """The line that starts the workers."""
    words = ["worker-pool", "-n", str(workers), "-u", os.environ["PEER_REDIS"], "-w", "rq.SimpleWorker", "-q"]
    return [os.path.join(os.path.dirname(sys.executable), "rq"), *words]


def send(name: str, **vars: object) -> None:
    """Enqueue one."""
    limit = 1 if name in ("spin", "c_code") else 180
    _queue.enqueue(JOBS[name], kwargs=vars, job_timeout=limit)
