"""How many jobs per second can be enqueued, by each way?

    python -m benchmarks.enqueue
    python -m benchmarks.enqueue --store sqlite --seconds 5

One caller, where nothing else is said; every call is durable when it returns. One by one and in bulk (1,000 a
call) by the client and by the client of asyncio, inside
the caller's own transactions, by HTTP (one persistent connection), and by plain SQL: a bare INSERT with
autocommit, which bounds what one by one can reach. The ways take turns, so that a machine whose speed drifts
affects all alike. No pool runs the jobs meanwhile.

The client of HTTP writes to its socket itself, as load generators do: http.client takes 190 µs more for a
request, which would be measured in place of the gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import socket
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
HTTP_CONNECTIONS = 64
MAX_IDLE_S = 2.0
"""Connections that were idle for longer are opened anew: the gateway closes them in the turns of others."""
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
        costs: dict[str, list[dict[str, float]]] = {}
        with ways(node, port) as every:
            for _, count, call, _ in every:
                rate(call, count, seconds / 2)
            for _ in range(repeats):
                node.forget()
                for name, count, call, _ in every:
                    before = node.cpu().get("gateway", 0.0)
                    rates.setdefault(name, []).append(rate(call, count, seconds))
                    used = node.cpu().get("gateway", 0.0) - before
                    cost = {"gateway": round(used / (rates[name][-1] * seconds) * 1e6, 1)}
                    costs.setdefault(name, []).append(cost)
            goals = {name: goal for name, _, _, goal in every}
    for name, values in rates.items():
        told = settings | ({"cpu_us_per_job": costs[name]} if name.startswith("HTTP") else {})
        yield Figure("enqueue", f"{options.store}: {name}", "jobs/s", values, settings=told, goal=goals[name])
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
        HttpConnections(port, numbers) as connections,
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
            (f"HTTP, {HTTP_CONNECTIONS} connections", HTTP_CONNECTIONS, connections.post_on_each, ""),
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


class HttpConnections:
    """HTTP_CONNECTIONS persistent connections that send at once; cheap, as the client shares the machine."""

    def __init__(self, port: int, numbers: Iterator[int]) -> None:
        self._runner, self._numbers = asyncio.Runner(), numbers
        self._port = port
        self._used_at = 0.0
        self._links: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    def __enter__(self) -> HttpConnections:
        return self

    def __exit__(self, *_: object) -> None:
        for _, writer in self._links:
            writer.close()
        self._runner.close()

    async def _connect(self) -> None:
        for _, writer in self._links:
            writer.close()
        self._links = [
            await asyncio.open_connection("127.0.0.1", self._port) for _ in range(HTTP_CONNECTIONS)
        ]

    def post_on_each(self) -> None:
        """One job on each connection, all at once."""
        before, self._used_at = self._used_at, time.monotonic()
        if self._used_at - before > MAX_IDLE_S:
            self._runner.run(self._connect())
        self._runner.run(self._post_on_each())

    async def _post_on_each(self) -> None:
        head = "POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
        for _, writer in self._links:
            text = json.dumps(body(next(self._numbers)))
            writer.write(f"{head}{len(text)}\r\n\r\n{text}".encode())
        for reader, _ in self._links:
            answer = await reader.readuntil(b"\r\n\r\n")
            assert b" 201 " in answer[:16], answer
            length = answer.lower().partition(b"content-length: ")[2].partition(b"\r")[0]
            await reader.readexactly(int(length))


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
    """POST JSON on one connection, each request whole, each answer read whole and its status checked."""
    link: socket.socket | None = None
    used_at = 0.0

    def connected() -> socket.socket:
        nonlocal link, used_at
        before, used_at = used_at, time.monotonic()
        if link is None or used_at - before > MAX_IDLE_S:
            if link is not None:
                link.close()
            link = socket.create_connection(("127.0.0.1", port), timeout=30)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return link

    def post(path: str, body: object) -> None:
        link = connected()
        text = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        link.sendall(b"%bContent-Length: %d\r\n\r\n%b" % (head.encode(), len(text), text))
        answer, end = b"", -1
        while end < 0:
            answer += received(link)
            end = answer.find(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 201 "), answer
        length = answer[:end].lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r")[0]
        missing = end + 4 + int(length) - len(answer)
        while missing > 0:
            missing -= len(received(link))
        assert missing == 0, answer

    return post


def received(link: socket.socket) -> bytes:
    """What has come, which is not the end of the connection."""
    data = link.recv(1 << 18)
    assert data
    return data


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--store", choices=STORES, default="mariadb")
    made.add_argument("--seconds", type=float, default=0.0, help="of each repeat")
    return made


if __name__ == "__main__":
    raise SystemExit(main(arguments(), measure))
