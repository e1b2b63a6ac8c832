"""What does a `kill -9` of each kind of process cost under load?

    python -m benchmarks.recovery
    python -m benchmarks.recovery --times 20 --only worker tree

A steady stream of short jobs (some every 20 ms, so that no pause is shorter) runs in one pool. In another, of
one worker, a long job runs and a job waits behind it: when that worker or its pool is killed, how long until
the waiting job began in its place, and until the interrupted one ran again. Whole tree: until the interrupted
job ran again, from the new start on. Dispatcher, ingester: the longest time in which no job of the stream
began. `store`: the server is killed, kept away for 3 s, and the pause is counted from when it is back. Jobs
that were lost or recorded twice are counted in the store; there must be none.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.harness import HANDLERS, Figure, Node, Server, config, main, parser, spread
from tests.support.eventually import eventually
from workerd.job_spec import JobSpec

KINDS = ("worker", "pool", "dispatcher", "ingester", "tree", "store")
ROLES = {"pool": "pool:one"}
AWAY, LONG = 3.0, 0.4
CASES = {
    "next": ("{}: next job in its place", {"worker": "p50 20"}),
    "again": ("{}: interrupted job runs again", {"tree": "max 2,000"}),
    "pause": ("{}: pause", {"store": "p50 500"}),
}
"""The figures of a kill, and the goals of some kinds."""
Cost = dict[str, float]


class Stream:
    """Enqueues short jobs continuously, and reads from their file when each started."""

    def __init__(self, node: Node, path: Path) -> None:
        self.node, self.path = node, path
        self.sent = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._feed)
        path.touch()

    def __enter__(self) -> Stream:
        self._thread.start()
        eventually(lambda: self.path.stat().st_size > 0, within=20)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _feed(self) -> None:
        while not self._over.wait(0.02):
            with contextlib.suppress(Exception):  # the store is unavailable: refused jobs do not count
                self.node.client.enqueue_many([JobSpec(handler="short", vars={"path": str(self.path)})] * 10)
                self.sent += 10

    def starts(self) -> list[float]:
        """The monotonic seconds in which jobs began, in order."""
        return starts(self.path)

    def pause_after(self, moment: float, until: float) -> float:
        """The longest time without a start in this span."""
        inside = [moment, *(s for s in self.starts() if moment < s < until), until]
        return max(b - a for a, b in itertools.pairwise(inside))


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Kind by kind, each on a node of its own."""
    times = options.times or (5 if options.quick else 20)
    for kind in options.only or KINDS:
        if kind in ("tree", "store"):
            times = min(times, 3 if options.quick else 5)
        with Server("mariadb") as server, Node(server.url(), configuration()) as node:
            yield from killed(node, server, kind, times)


def configuration() -> str:
    """A pool for the stream, and one of a single worker for what is interrupted."""
    limits = 'max_crashes = 1000\nbackoff = { first = "0s", jitter = 0.0 }\n'
    tables = {"short": "workers = 2\n", "long": 'pool = "one"\n', "next": 'pool = "one"\n'}
    restart = '[pools.one]\nworkers = 1\nrestart = { intensity = 1000, period = "1s" }\n'
    lines = {name: f'call = "{HANDLERS}:trace"\n{more}{limits}' for name, more in tables.items()}
    return config(lines, more=restart)


def killed(node: Node, server: Server, kind: str, times: int) -> Iterator[Figure]:
    """So many kills of one kind."""
    costs: list[Cost] = []
    with Stream(node, node.path / "short") as stream:
        for _ in range(times):
            time.sleep(0.3)
            costs.append(strike_store(server, stream) if kind == "store" else strike(node, kind, stream))
    node.wait_for("short", within=120)
    settings = server.settings | {"kills": times} | damage(node, stream.sent)
    for part, (name, goals) in CASES.items():
        values = [cost[part] * 1000 for cost in costs if part in cost]
        if values:
            yield Figure(
                "recovery", name.format(kind), "ms", parts=spread(values), settings=settings,
                goal=goals.get(kind, ""), better="less",
            )  # fmt: skip


def damage(node: Node, sent: int) -> dict[str, int]:
    """Jobs missing from the store, and recorded twice."""
    ended = node.rows.sql(
        "SELECT id, SUM(CASE WHEN status = 'retry' THEN 0 ELSE 1 END) AS ends FROM workerd_jobs"
        " WHERE handler = 'short' GROUP BY id"
    )
    return {
        "jobs": sent,
        "lost": max(0, sent - len(ended)),
        "recorded_twice": sum(1 for row in ended if row["ends"] > 1),
    }


def strike(node: Node, kind: str, stream: Stream) -> Cost:
    """One kill; what it cost, in seconds."""
    if kind in ("dispatcher", "ingester"):
        began = kill(node, kind)
        time.sleep(1.0)
        return {"pause": stream.pause_after(began, time.monotonic())}
    runs, following = node.path / "long", node.path / "next"
    for path in (runs, following):
        path.unlink(missing_ok=True)
        path.touch()
    node.client.enqueue("long", {"path": str(runs), "seconds": LONG})
    eventually(lambda: starts(runs), within=20, every=0.002)
    node.client.enqueue("next", {"path": str(following)})
    time.sleep(0.05)
    began = kill(node, kind)
    eventually(lambda: len(starts(runs)) > 1 and starts(following), within=90, every=0.005)
    node.wait_for("long", within=60)
    cost = {"again": starts(runs)[1] - began}
    return cost if kind == "tree" else cost | {"next": starts(following)[0] - began}


def starts(path: Path) -> list[float]:
    """The monotonic seconds in which the jobs that note themselves there began, in order."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return sorted(int(words[2]) / 1e9 for words in lines if len(words) == 3)


def kill(node: Node, kind: str) -> float:
    """Kill it, whose process was found before; the monotonic second of the kill, or of the new start."""
    if kind == "tree":
        for process in node.daemon.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        assert node.daemon.process is not None
        node.daemon.process.wait()
        began = time.monotonic()
        node.daemon.spawn()
        return began
    pid = worker(node, "one").pid if kind == "worker" else node.daemon.pid(ROLES.get(kind, kind))
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    return began


def worker(node: Node, pool: str) -> psutil.Process:
    """The worker of the pool that runs a job."""
    for process in node.daemon.tree():
        words = " ".join(process.cmdline()).split()
        if words[:2] == ["workerd:", "worker"] and words[2].startswith(pool) and len(words) > 3:
            return process
    raise AssertionError("no worker is at a job")


def strike_store(server: Server, stream: Stream) -> Cost:
    """Kill the server, start it again after a while; the pause from when it is back."""
    assert server.database is not None
    server.database.kill9()
    time.sleep(AWAY)
    server.database.launch()
    server.database.wait()
    back = time.monotonic()
    eventually(lambda: any(s > back for s in stream.starts()), within=60, every=0.005)
    return {"pause": next(s for s in stream.starts() if s > back) - back}


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--times", type=int, default=0, help="of each kind (tree and store: at most 5)")
    made.add_argument("--only", nargs="*", choices=KINDS)
    return made


if __name__ == "__main__":
    raise SystemExit(main(arguments(), measure))
