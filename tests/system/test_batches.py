"""Batches in a running daemon whose processes are killed: `finally` runs exactly once, whatever dies."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.daemon import HANDLERS, ROOT, Daemon
from tests.support.eventually import eventually
from workerd.client import Client
from workerd.errors import Conflict
from workerd.store import columns
from workerd.store.base import Store

CONFIG = f"""
[defaults]
path = ["{ROOT}"]
max_attempts = 1
backoff = {{ first = "10ms", factor = 1.0, max = "10ms", jitter = 0.0 }}
[dispatcher]
poll = "50ms"
lease = "2s"
[pools.work]
workers = 2
restart = {{ intensity = 1000, period = "1m" }}
[handlers.noop]
call = "{HANDLERS}:noop"
pool = "work"
[handlers.behave]
call = "{HANDLERS}:behave"
pool = "work"
[handlers.last]
call = "{HANDLERS}:noop"
pool = "work"
"""
KILLED = ("ingester", "dispatcher", "pool:work")


def batch(n: int) -> tuple[list[dict[str, Any]], int | None]:
    """Jobs that succeed, or one of which fails, and how many may: each kind in turn."""
    jobs: list[dict[str, Any]] = [{"name": f"m{i}", "handler": "noop"} for i in range(3)]
    if n % 3:
        jobs.append({"name": "bad", "handler": "behave", "vars": {"kind": "failure"}})
    return jobs, 5 if n % 3 == 1 else None


@pytest.mark.parametrize(
    "count", [30, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_finally_runs_exactly_once_whatever_is_killed(
    start_daemon: Callable[..., Daemon], store: Store, count: int
) -> None:
    """Each batch ends as its jobs did, and has one job of `finally`, which succeeded."""
    daemon = start_daemon(CONFIG)
    expected: dict[bytes, str] = {}
    with Client(daemon.path) as client:
        victims = itertools.cycle(KILLED)
        for n in range(count):
            jobs, most = batch(n)
            made = client.batch(jobs, finally_={"name": "end", "handler": "last"}, max_failures=most)
            expected[bytes.fromhex(made.id.replace("-", ""))] = "failed" if n % 3 == 2 else "completed"
            if n % 10 == 9:
                victim = next(victims)
                eventually(lambda victim=victim: daemon.pid(victim))
                daemon.kill(victim)

    def ended() -> dict[bytes, str]:
        rows = store.read(lambda tx: tx.query("SELECT id, status FROM workerd_requests"))
        return {row[0]: columns.text(row[1]) for row in rows}

    eventually(
        lambda: set(ended().values()) <= {"completed", "failed"},
        within=600,
        state=lambda: Counter(ended().values()),
    )
    rows = store.read(
        lambda tx: tx.query(
            "SELECT request_id, status FROM workerd_jobs WHERE handler = 'last' AND status <> 'retry'"
        )
    )
    assert Counter(row[0] for row in rows) == dict.fromkeys(expected, 1)
    assert ended().keys() == expected.keys()
    # A run that was lost with its pool may fail a batch, but none ends better than its jobs.
    assert all(status == "failed" for key, status in ended().items() if expected[key] == "failed")
    counts = store.read(lambda tx: tx.query("SELECT total, done, failed FROM workerd_requests"))
    assert all(total == done + failed for total, done, failed in counts)


def test_a_large_graph_runs_in_order_whatever_is_killed(
    start_daemon: Callable[..., Daemon], store: Store
) -> None:
    """Each job runs after all that it needs, and the last one gets what they returned."""
    daemon = start_daemon(CONFIG)
    width, depth = 25, 10
    jobs: list[dict[str, Any]] = []
    for level in range(depth):
        for n in range(width):
            above = [f"{level - 1}.{m % width}" for m in (n, n + 1)] if level else []
            jobs.append({"name": f"{level}.{n}", "handler": "noop", "needs": above})
    jobs.append({"name": "all", "handler": "noop", "needs": [f"{depth - 1}.{n}" for n in range(width)]})
    with Client(daemon.path) as client:
        made = client.batch(jobs, finally_={"name": "end", "handler": "last"})
        for victim in KILLED:
            eventually(lambda victim=victim: daemon.pid(victim))
            daemon.kill(victim)
        done = client.wait_request(made.id, timeout=120)
    assert (done.status, done.done, done.failed) == ("completed", len(jobs), 0), daemon.tail()
    rows = store.read(
        lambda tx: tx.query(
            "SELECT name, started_at, finished_at, status FROM workerd_jobs WHERE name IS NOT NULL"
        )
    )
    ran = {
        columns.text(name): (begun, ended) for name, begun, ended, status in rows if status == b"completed"
    }
    for job in jobs:
        assert all(ran[need][1] <= ran[job["name"]][0] for need in job.get("needs", ())), job


def test_each_signal_counts_once_whatever_is_killed(
    start_daemon: Callable[..., Daemon], store: Store
) -> None:
    """Given before its wait has begun, while it waits, and twice; what follows runs once."""
    daemon = start_daemon(CONFIG)
    count = 24
    jobs = [
        {"name": "first", "handler": "noop"},
        {"name": "approve", "signal": "approved", "needs": ["first"], "timeout": "1h"},
        {"name": "after", "handler": "last", "needs": ["approve"]},
    ]
    refused = 0
    with Client(daemon.path) as client:
        made = [client.batch(jobs).id for _ in range(count)]
        for n, request_id in enumerate(made):
            if n % 8 == 3:
                victim = KILLED[n // 8]
                eventually(lambda victim=victim: daemon.pid(victim))
                daemon.kill(victim)
            for by in ("one", "two"):
                try:
                    client.signal(request_id, "approved", {"by": by})
                except Conflict:
                    refused += 1
        for request_id in made:
            done = client.wait_request(request_id, timeout=120)
            assert (done.status, done.done) == ("completed", 3), daemon.tail()
            with pytest.raises(Conflict, match="already ended"):
                client.signal(request_id, "approved", {})
    assert refused == count
    rows = store.read(lambda tx: tx.query("SELECT payload FROM workerd_jobs WHERE name = 'approve'"))
    assert [bytes(payload) for (payload,) in rows] == [b'{"by":"one"}'] * count
    ran = store.read(
        lambda tx: tx.query(
            "SELECT request_id FROM workerd_jobs WHERE name = 'after' AND status = 'completed'"
        )
    )
    assert len({row[0] for row in ran}) == len(ran) == count
