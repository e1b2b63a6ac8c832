"""RQ: a pool of SimpleWorkers, which is faster than a fork for each job."""

from __future__ import annotations

import os
import sys
from typing import Any

from redis import Redis
from rq import Queue

from benchmarks.peers.jobs import JOBS, LIMITED

LIBRARY = "rq"
SETTINGS = {"worker": "SimpleWorker", "result_ttl": 500}
_queue = Queue(connection=Redis.from_url(os.environ["PEER_REDIS"]))


def command(workers: int) -> list[str]:
    """The command that starts the workers."""
    words = ["worker-pool", "-n", str(workers), "-u", os.environ["PEER_REDIS"], "-w", "rq.SimpleWorker", "-q"]
    return [os.path.join(os.path.dirname(sys.executable), "rq"), *words]


def send(name: str, **vars: object) -> Any:
    """Enqueue one."""
    return _queue.enqueue(JOBS[name], kwargs=vars, job_timeout=1 if name in LIMITED else 180)


def became(job: Any) -> str:
    """The recorded state of the job."""
    status = job.get_status()
    return str(getattr(status, "value", status))


def stored() -> int:
    """The number of stored results."""
    return int(_queue.finished_job_registry.count)
