"""Taskiq: a Redis stream, results in Redis."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from redis import Redis
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.peers.jobs import JOBS, LIMITED

LIBRARY = "taskiq"
SETTINGS = {"broker": "RedisStreamBroker", "max_async_tasks": 100}
_url = os.environ["PEER_REDIS"]
_backend = RedisAsyncResultBackend(redis_url=_url, prefix_str="result")
broker = RedisStreamBroker(url=_url).with_result_backend(_backend)
_tasks = {
    name: broker.task(task_name=name, **({"timeout": 1} if name in LIMITED else {}))(job)
    for name, job in JOBS.items()
}
_loop: asyncio.AbstractEventLoop | None = None


def command(workers: int) -> list[str]:
    """The command that starts the workers."""
    where = os.path.join(os.path.dirname(sys.executable), "taskiq")
    return [where, "worker", f"{__name__}:broker", "--workers", str(workers), "--log-level", "ERROR"]


def _wait(coroutine: Any) -> Any:
    global _loop
    if _loop is None:
        _loop = asyncio.new_event_loop()
        _loop.run_until_complete(broker.startup())
    return _loop.run_until_complete(coroutine)


def send(name: str, **vars: object) -> Any:
    """Enqueue one."""
    return _wait(_tasks[name].kiq(**vars))


def forget() -> None:
    """Make the stream's group anew at the next word: it hands out only what comes after it."""
    global _loop
    if _loop is not None:
        _loop.run_until_complete(broker.shutdown())
        _loop.close()
    _loop = None


def became(job: Any) -> str:
    """The recorded state of the job."""
    if not _wait(job.is_ready()):
        return "no result"
    result = _wait(job.get_result())
    return f"failed: {type(result.error).__name__}" if result.is_err else f"returned {result.return_value!r}"


def stored() -> int:
    """The number of stored results."""
    return sum(1 for _ in Redis.from_url(_url).scan_iter("result:*", count=1000))
