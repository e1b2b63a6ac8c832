"""Dramatiq: processes of 8 threads (its own default), results in Redis."""

from __future__ import annotations

import os
import sys
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from dramatiq.results.errors import ResultFailure, ResultMissing
from redis import Redis

from benchmarks.peers.jobs import JOBS, LIMITED

LIBRARY = "dramatiq"
SETTINGS = {"threads": 8, "max_retries": 0}
_url = os.environ["PEER_REDIS"]
_broker = RedisBroker(url=_url)
_broker.add_middleware(Results(backend=RedisBackend(url=_url), store_results=True))
dramatiq.set_broker(_broker)
_actors = {
    name: dramatiq.actor(job, actor_name=name, max_retries=0, time_limit=1000 if name in LIMITED else 600_000)
    for name, job in JOBS.items()
}


def command(workers: int) -> list[str]:
    """The command that starts the workers."""
    return [sys.executable, "-m", "dramatiq", __name__, "-p", str(workers), "-t", "8"]


def send(name: str, **vars: object) -> Any:
    """Enqueue one."""
    return _actors[name].send(**vars)


def became(job: Any) -> str:
    """The recorded state of the job."""
    try:
        return f"returned {job.get_result()!r}"
    except ResultMissing:
        return "no result"
    except ResultFailure as failure:
        return f"failed: {failure.orig_exc_type}"


def stored() -> int:
    """The number of stored results."""
    keys = Redis.from_url(_url).scan_iter(count=1000)
    return sum(1 for key in keys if b":" not in key)  # a hash; all others have its namespace before them
