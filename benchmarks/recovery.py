"""What does a `kill -9` of each kind of process cost, under load?

    python -m benchmarks.recovery
    python -m benchmarks.recovery --times 20

A steady stream of short jobs, and long ones that are interrupted. For each kind: the longest time in which no
job began after the kill, and how long until the job that was interrupted ran again (worker, pool, whole
tree). `store`: the server is killed, kept away for 3 s, and the pause is counted from when it is back. Jobs
that were lost or recorded twice are counted in the store; there must be none.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.harness import HANDLERS, Figure, Node, Server, config, main, parser, spread
from tests.support.eventually import eventually
from workerd.client import JobSpec

KINDS = ("worker", "pool", "dispatcher", "ingester", "tree", "store")
GOALS = {"worker": "20", "tree": "2,000", "store": "500"}
AWAY = 3.0


class Stream:
    """Enqueues short jobs all the time, and reads from their file when each began."""

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
            with contextlib.suppress(Exception):  # the store is away: what was refused is not counted
                self.node.client.enqueue_many([JobSpec(handler="short", vars={"path": str(self.path)})] * 10)
                self.sent += 10

    def starts(self) -> list[float]:
        """The monotonic seconds in which jobs began, in order."""
        lines = self.path.read_text().splitlines()
        return sorted(int(line.split()[2]) / 1e9 for line in lines if len(line.split()) == 3)

    def pause_after(self, moment: float, until: float) -> float:
        """The longest time without a start in this span."""
        inside = [moment, *(s for s in self.starts() if moment < s < until), until]
        return max(b - a for a, b in itertools.pairwise(inside))


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Kind by kind, each on a node of its own."""
    times = options.times or (5 if options.quick else 20)
    for kind in KINDS:
        with Server("mariadb") as server:
            limits = 'workers = 2\nmax_crashes = 1000\nrestart = { intensity = 1000, period = "1s" }\n'
            limits += 'backoff = { first = "0s", jitter = 0.0 }\n'
            tables = {name: f'call = "{HANDLERS}:trace"\n{limits}' for name in ("short", "long")}
            with Node(server.url(), config(tables)) as node:
                yield from killed(
                    node, server, kind, times if kind not in ("tree", "store") else min(times, 5)
                )


def killed(node: Node, server: Server, kind: str, times: int) -> Iterator[Figure]:
    """So many kills of one kind."""
    pauses, again = [], []
    path, runs = node.path / "short", node.path / "long"
    runs.touch()
    with Stream(node, path) as stream:
        for _ in range(times):
            time.sleep(0.3)
            pause, rerun = strike(node, server, kind, stream, runs)
            pauses.append(pause * 1000)
            if rerun is not None:
                again.append(rerun * 1000)
    node.wait_for("short", within=120)
    settings = server.settings | {"kills": times} | damage(node, stream.sent)
    yield Figure(
        "recovery", f"{kind} killed: pause", "ms", parts=spread(pauses), settings=settings,
        goal=GOALS.get(kind, "") if kind in ("worker", "store") else "", better="less",
    )  # fmt: skip
    if again:
        yield Figure(
            "recovery", f"{kind} killed: runs again", "ms", parts=spread(again), settings=settings,
            goal=GOALS.get(kind, "") if kind == "tree" else "", better="less",
        )  # fmt: skip


def damage(node: Node, sent: int) -> dict[str, int]:
    """What is missing from the store, and what is there twice."""
    ended = node.rows.sql(
        "SELECT id, SUM(CASE WHEN status = 'retry' THEN 0 ELSE 1 END) AS ends FROM workerd_jobs"
        " WHERE handler = 'short' GROUP BY id"
    )
    return {
        "jobs": sent,
        "lost": max(0, sent - len(ended)),
        "recorded_twice": sum(1 for row in ended if row["ends"] > 1),
    }


def strike(node: Node, server: Server, kind: str, stream: Stream, runs: Path) -> tuple[float, float | None]:
    """One kill: the pause that followed, and when the interrupted job ran again, in seconds."""
    if kind == "store":
        return strike_store(server, stream), None
    interrupts = kind in ("worker", "pool", "tree")
    before = len(runs.read_text().splitlines())
    if interrupts:
        node.client.enqueue("long", {"path": str(runs), "seconds": 1.0})
        eventually(lambda: len(runs.read_text().splitlines()) > before, within=20, every=0.002)
    began = time.monotonic()
    if kind == "tree":
        for process in node.daemon.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        assert node.daemon.process is not None
        node.daemon.process.wait()
        began = time.monotonic()
        node.daemon.spawn()
    elif kind == "worker":
        worker(node, "long").kill()
    else:
        node.daemon.kill("pool:long" if kind == "pool" else kind, signal.SIGKILL)
    rerun = None
    if interrupts:
        eventually(lambda: len(runs.read_text().splitlines()) > before + 1, within=90, every=0.002)
        rerun = int(runs.read_text().splitlines()[before + 1].split()[2]) / 1e9 - began
        node.wait_for("long", within=60)
    else:
        time.sleep(1.0)
    return stream.pause_after(began, time.monotonic()), rerun


def worker(node: Node, pool: str) -> psutil.Process:
    """The worker of the pool that is at a job."""
    for process in node.daemon.tree():
        words = " ".join(process.cmdline()).split()
        if words[:2] == ["workerd:", "worker"] and words[2].startswith(pool) and len(words) > 3:
            return process
    raise AssertionError("no worker is at a job")


def strike_store(server: Server, stream: Stream) -> float:
    """Kill the server, start it again after a while; the pause from when it is back."""
    assert server.database is not None
    server.database.kill9()
    time.sleep(AWAY)
    server.database.launch()
    server.database.wait()
    back = time.monotonic()
    eventually(lambda: any(s > back for s in stream.starts()), within=60, every=0.005)
    return next(s for s in stream.starts() if s > back) - back


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--times", type=int, default=0, help="of each kind (tree and store: at most 5)")
    return made


if __name__ == "__main__":
    raise SystemExit(main(arguments(), measure))
