"""How long is it from the enqueue call to the handler's first line, on an idle node?

    python -m benchmarks.latency
    python -m benchmarks.latency --jobs 1000 --rate 100

Jobs one by one at 100/s by a client on the same node (which wakes the dispatcher), by HTTP, and by a plain
INSERT (found by the dispatcher's poll). Both ends read the same monotonic clock. And how long a bare INSERT
takes at the same pace: after 10 ms without work caches are cold and processors asleep, so it takes longer
than one right after another.
"""

from __future__ import annotations

import argparse
import http.client
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymysql

from benchmarks.harness import HANDLERS, Figure, Node, Server, config, main, parser, spread
from tests.support.eventually import eventually
from tests.support.servers import free_port
from workerd.job import new_id

GOAL = "p50 2 / p99 5"
PACED = "bare INSERT at the same pace"


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """A bare INSERT, and three ways to enqueue, one after the other, on one node."""
    count = options.jobs or (300 if options.quick else 1000)
    port = free_port()
    with Server(options.store) as server:
        text = config({"stamp": f'call = "{HANDLERS}:stamp"\nworkers = 2'})
        with Node(server.url(), text, gateway=f"127.0.0.1:{port}") as node, node.rows.connection() as link:
            settings = server.settings | {"rate": options.rate, "jobs": count, "workers": 2, "poll": "500ms"}
            ways: list[tuple[str, Callable[[str], None], str]] = [
                ("client on the same node", by_client(node), GOAL),
                ("HTTP", by_http(port), ""),
                ("foreign INSERT (poll)", by_insert(link), ""),
            ]
            waits = paced_inserts(link, count, options.rate)
            yield Figure("latency", PACED, "ms", parts=spread(waits), settings=settings, better="less")
            for name, send, goal in ways:
                path = node.path / f"stamps{len(name)}"
                feed(send, path, 100, options.rate)
                path.unlink()
                times = feed(send, path, count, options.rate)
                yield Figure(
                    "latency", name, "ms", parts=spread(times), settings=settings, goal=goal, better="less"
                )


def feed(send: Callable[[str], None], path: Path, count: int, rate: float) -> list[float]:
    """Enqueue jobs at this rate; returns the milliseconds until each started."""
    path.touch()
    for _ in paced(count, rate):
        send(str(path))
    eventually(lambda: path.read_bytes().count(b"\n") >= count, within=60)
    pairs = [tuple(map(int, line.split())) for line in path.read_text().splitlines()]
    return [(began - sent) / 1e6 for sent, began in pairs]


def paced(count: int, rate: float) -> Iterator[int]:
    """So many turns a second."""
    begin = time.monotonic()
    for n in range(count):
        wait = begin + n / rate - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        yield n


def paced_inserts(link: Any, count: int, rate: float) -> list[float]:
    """Milliseconds that each INSERT takes, of jobs that no node runs."""
    cursor, insert = link.cursor(), insert_of(link)
    times: list[float] = []
    for _ in paced(count, rate):
        row = (new_id(), "nobody", "{}")
        began = time.monotonic()
        cursor.execute(insert, row)
        times.append((time.monotonic() - began) * 1000)
    return times


def insert_of(link: Any) -> str:
    """The INSERT of a job, for its id, handler and vars."""
    mark = "%s" if isinstance(link, pymysql.Connection) else "?"
    return f"INSERT INTO workerd_jobs (id, handler, vars) VALUES ({mark}, {mark}, {mark})"


def by_client(node: Node) -> Callable[[str], None]:
    """The Python client, with the node's configuration."""

    def send(path: str) -> None:
        node.client.enqueue("stamp", {"path": path, "sent": time.monotonic_ns()})

    return send


def by_http(port: int) -> Callable[[str], None]:
    """One persistent connection."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=10)

    def send(path: str) -> None:
        body = {"handler": "stamp", "vars": {"path": path, "sent": time.monotonic_ns()}}
        link.request("POST", "/jobs", json.dumps(body), {"Content-Type": "application/json"})
        answer = link.getresponse()
        answer.read()
        assert answer.status == 201, answer.status

    return send


def by_insert(link: Any) -> Callable[[str], None]:
    """Plain SQL on one persistent connection."""
    cursor, sql = link.cursor(), insert_of(link)

    def send(path: str) -> None:
        cursor.execute(sql, (new_id(), "stamp", json.dumps({"path": path, "sent": time.monotonic_ns()})))

    return send


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--store", choices=("mariadb", "sqlite"), default="mariadb")
    made.add_argument("--jobs", type=int, default=0)
    made.add_argument("--rate", type=float, default=100.0)
    return made


if __name__ == "__main__":
    raise SystemExit(main(arguments(), measure))
