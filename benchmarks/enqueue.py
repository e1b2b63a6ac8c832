"""How many jobs per second can be enqueued, by each way?

    python -m benchmarks.enqueue
    python -m benchmarks.enqueue --store sqlite --seconds 5

One caller, where nothing else is said; every call is durable when it returns. One by one and in bulk (1,000 a
call) by the client and by the client of asyncio, inside
the caller's own transactions, by HTTP (one persistent connection), and by plain SQL: a bare INSERT with
autocommit, which bounds what one by one can reach. The ways take turns, so that a machine whose speed drifts
affects all alike. No pool runs the jobs meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import itertools
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pymysql

from benchmarks.harness import HANDLERS, STORES, Figure, Node, Server, config, mail, main, parser
from tests.support.servers import free_port
from workerd.async_client import AsyncClient
from workerd.client import Client
from workerd.job import new_id
from workerd.job_spec import JobSpec
from workerd.transaction import enqueue as enqueue_inside

BULK = 1000
CALLERS = 4
"""Connections of a client."""
BOUND, CLIENT = "plain INSERT, one by one", "client, one by one"
Way = tuple[str, int, Callable[[], object], str]


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Each way for some seconds, in turns, several times."""
    repeats = options.repeats or 3
    seconds = options.seconds or (1.0 if options.quick else 5.0)
    port = free_port()
    text = config({"noop": f'call = "{HANDLERS}:noop"'}, more="[pickup]\nenabled = false")
    with Server(options.store) as server, Node(server.url(), text, gateway=f"127.0.0.1:{port}") as node:
        settings = server.settings | {"seconds": seconds, "callers": 1, "bulk": BULK}
        rates: dict[str, list[float]] = {}
        with ways(node, port) as every:
            for _, count, call, _ in every:
                rate(call, count, seconds / 2)
            for _ in range(repeats):
                node.forget()
                for name, count, call, _ in every:
                    rates.setdefault(name, []).append(rate(call, count, seconds))
            goals = {name: goal for name, _, _, goal in every}
    for name, values in rates.items():
        yield Figure(
            "enqueue", f"{options.store}: {name}", "jobs/s", values, settings=settings, goal=goals[name]
        )
    ratios = [ours / bound for ours, bound in zip(rates[CLIENT], rates[BOUND], strict=True)]
    yield Figure("enqueue", f"{options.store}: {CLIENT} / a bare INSERT", "ratio", ratios, settings=settings)


def rate(call: Callable[[], object], count: int, seconds: float) -> float:
    """Jobs a second, `count` a call."""
    calls, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        call()
        calls += 1
    return calls * count / (time.perf_counter() - began)


@contextmanager
def ways(node: Node, port: int) -> Iterator[list[Way]]:
    """Name, jobs a call, the call, the goal."""
    client, numbers = node.client, itertools.count()
    post = posting(port)

    def specs() -> list[JobSpec]:
        return [JobSpec(handler="noop", vars=mail(next(numbers))) for _ in range(BULK)]

    def bodies() -> dict[str, object]:
        return {"jobs": [{"handler": "noop", "vars": mail(next(numbers))} for _ in range(BULK)]}

    with (
        node.rows.connection() as bare,
        node.rows.connection() as own,
        Threads(client, numbers) as threads,
        Asynchronous(node, numbers) as asynchronous,
    ):
        yield [
            (BOUND, 1, inserting(bare, numbers), ""),
            (CLIENT, 1, lambda: client.enqueue("noop", mail(next(numbers))), "3,000"),
            (f"client, {CALLERS} threads", CALLERS, threads.call, ""),
            ("AsyncClient, one by one", 1, lambda: asynchronous.call(1), ""),
            (f"AsyncClient, {CALLERS} at once", CALLERS, lambda: asynchronous.call(CALLERS), ""),
            ("client, in bulk", BULK, lambda: client.enqueue_many(specs()), "20,000"),
            ("inside the caller's transaction", 1, inside(own, numbers), ""),
            ("HTTP, one by one", 1, lambda: post("/jobs", body(next(numbers))), ""),
            ("HTTP, in bulk", BULK, lambda: post("/jobs/bulk", bodies()), ""),
        ]


class Threads:
    """CALLERS threads that share one client."""

    def __init__(self, client: Client, numbers: Iterator[int]) -> None:
        self._client, self._numbers = client, numbers
        self._threads = ThreadPoolExecutor(CALLERS)

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()

    def call(self) -> None:
        """One job by each thread."""
        vars = [mail(next(self._numbers)) for _ in range(CALLERS)]
        list(self._threads.map(lambda given: self._client.enqueue("noop", given), vars))


class Asynchronous:
    """An AsyncClient on an event loop of its own."""

    def __init__(self, node: Node, numbers: Iterator[int]) -> None:
        self._runner, self._numbers = asyncio.Runner(), numbers
        self._client = AsyncClient(node.daemon.path)

    def __enter__(self) -> Asynchronous:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    def call(self, count: int) -> None:
        """So many jobs at once."""
        self._runner.run(self._enqueue(count))

    async def _enqueue(self, count: int) -> None:
        await asyncio.gather(*(self._client.enqueue("noop", mail(next(self._numbers))) for _ in range(count)))


def body(n: int) -> dict[str, object]:
    """A job as JSON."""
    return {"handler": "noop", "vars": mail(n)}


def inserting(link: Any, numbers: Iterator[int]) -> Callable[[], object]:
    """The INSERT of a program in another language, with autocommit."""
    cursor = link.cursor()
    mark = "%s" if isinstance(link, pymysql.Connection) else "?"
    sql = f"INSERT INTO workerd_jobs (id, handler, vars) VALUES ({mark}, {mark}, {mark})"
    return lambda: cursor.execute(sql, (new_id(), "noop", json.dumps(mail(next(numbers)))))


def inside(link: Any, numbers: Iterator[int]) -> Callable[[], object]:
    """A transaction of the caller that only enqueues."""

    def call() -> None:
        link.cursor().execute("BEGIN")
        enqueue_inside(link, "noop", mail(next(numbers)))
        link.commit()

    return call


def posting(port: int) -> Callable[[str, object], None]:
    """POST JSON on one connection."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def post(path: str, body: object) -> None:
        link.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = link.getresponse()
        told = answer.read()
        assert answer.status == 201, told

    return post


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--store", choices=STORES, default="mariadb")
    made.add_argument("--seconds", type=float, default=0.0, help="of each repeat")
    return made


if __name__ == "__main__":
    raise SystemExit(main(arguments(), measure))
