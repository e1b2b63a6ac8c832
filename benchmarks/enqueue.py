"""How many jobs a second can be enqueued, by every way in?

    python -m benchmarks.enqueue
    python -m benchmarks.enqueue --store sqlite --seconds 5

One caller; every call is durable when it returns. One by one and in bulk (1,000 a call) by the client, inside
transactions of the caller's own, by HTTP (one connection that is kept), and by plain SQL. No pool takes the
jobs meanwhile.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import time
import uuid
from collections.abc import Callable, Iterator

import pymysql

from benchmarks.harness import HANDLERS, STORES, Figure, Node, Server, config, mail, main, parser
from tests.support.servers import free_port
from workerd.client import JobSpec
from workerd.client import enqueue as enqueue_inside

BULK = 1000
Way = tuple[str, int, Callable[[], object], str]


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Every way for a while, several times."""
    repeats = options.repeats or 3
    seconds = options.seconds or (2.0 if options.quick else 5.0)
    for kind in [options.store] if options.store else ["mariadb"]:
        port = free_port()
        with Server(kind) as server:
            text = config({"noop": f'call = "{HANDLERS}:noop"'}, more="[pickup]\nenabled = false")
            with Node(server.url(), text, gateway=f"127.0.0.1:{port}") as node:
                settings = server.settings | {"seconds": seconds, "callers": 1, "bulk": BULK}
                for name, count, call, goal in ways(node, port):
                    rate(call, count, min(seconds, 1.0))
                    rates = [rate(call, count, seconds) for _ in range(repeats)]
                    node.forget()
                    yield Figure("enqueue", f"{kind}: {name}", "jobs/s", rates, settings=settings, goal=goal)


def rate(call: Callable[[], object], count: int, seconds: float) -> float:
    """Jobs a second, `count` a call."""
    calls, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        call()
        calls += 1
    return calls * count / (time.perf_counter() - began)


def ways(node: Node, port: int) -> Iterator[Way]:
    """Name, jobs a call, the call, the goal."""
    numbers = itertools.count()
    client = node.client
    yield "client, one by one", 1, lambda: client.enqueue("noop", mail(next(numbers))), "3,000"
    yield (
        "client, in bulk",
        BULK,
        lambda: client.enqueue_many([JobSpec(handler="noop", vars=mail(next(numbers))) for _ in range(BULK)]),
        "20,000",
    )
    post = posting(port)
    yield "HTTP, one by one", 1, lambda: post("/jobs", {"handler": "noop", "vars": mail(next(numbers))}), ""
    yield (
        "HTTP, in bulk",
        BULK,
        lambda: post("/jobs/bulk", {"jobs": [{"handler": "noop", "vars": mail(next(numbers))}] * BULK}),
        "",
    )
    with node.rows.connection() as link:
        cursor = link.cursor()
        mark = "?" if node.rows.sqlite else "%s"
        sql = f"INSERT INTO workerd_jobs (id, handler, vars) VALUES ({mark}, {mark}, {mark})"
        row = lambda: (uuid.uuid4().bytes, "noop", json.dumps(mail(next(numbers))))  # noqa: E731
        yield "plain SQL, one by one", 1, lambda: cursor.execute(sql, row()), ""
        if not isinstance(link, pymysql.Connection):
            return
        link.autocommit(False)

        def inside() -> None:
            enqueue_inside(link, "noop", mail(next(numbers)))
            link.commit()

        yield "inside the caller's transaction", 1, inside, ""


def posting(port: int) -> Callable[[str, object], None]:
    """POSTs JSON on one connection."""
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
    made.add_argument("--store", choices=STORES)
    made.add_argument("--seconds", type=float, default=0.0, help="of each repeat")
    return made


if __name__ == "__main__":
    raise SystemExit(main(arguments(), measure))
