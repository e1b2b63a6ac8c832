"""Taskiq: a Redis stream, async handlers, results in Redis."""

from __future__ import annotations

import asyncio
import os
import sys

from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.peers.jobs import JOBS

LIBRARY = "taskiq"
SETTINGS = {"broker": "RedisStreamBroker", "max_async_tasks": 100}
_backend = RedisAsyncResultBackend(redis_url=os.environ["PEER_REDIS"])
broker = RedisStreamBroker(url=os.environ["PEER_REDIS"]).with_result_backend(_backend)
_tasks = {
    name: broker.task(task_name=name, **({"timeout": 1} if name in ("spin", "c_code") else {}))(job)
    for name, job in JOBS.items()
}
_loop: asyncio.AbstractEventLoop | None = None


def command(workers: int) -> list[str]:
    """The line that starts the workers."""
    where = os.path.join(os.path.dirname(sys.executable), "taskiq")
    return [where, "worker", f"{__name__}:broker", "--workers", str(workers), "--log-level", "ERROR"]


def send(name: str, **vars: object) -> None:
    """Enqueue one."""
    global _loop
    if _loop is None:
        _loop = asyncio.new_event_loop()
        _loop.run_until_complete(broker.startup())
    _loop.run_until_complete(_tasks[name].kiq(**vars))
