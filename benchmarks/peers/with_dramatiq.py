"""Dramatiq: processes of 8 threads (its own default), results in Redis."""

from __future__ import annotations

import os
import sys

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks.peers.jobs import JOBS

LIBRARY = "dramatiq"
SETTINGS = {"threads": 8, "max_retries": 0}
_broker = RedisBroker(url=os.environ["PEER_REDIS"])
_broker.add_middleware(Results(backend=RedisBackend(url=os.environ["PEER_REDIS"]), store_results=True))
dramatiq.set_broker(_broker)
_actors = {
    name: dramatiq.actor(
        job, actor_name=name, max_retries=0, time_limit=1000 if name in ("spin", "c_code") else 600_000
    )
    for name, job in JOBS.items()
}


def command(workers: int) -> list[str]:
    """The line that starts the workers."""
    return [sys.executable, "-m", "dramatiq", __name__, "-p", str(workers), "-t", "8"]


def send(name: str, **vars: object) -> None:
    """Enqueue one."""
    _actors[name].send(**vars)
