"""The peers in the same run: throughput, latency, footprint, deadline and kill, each with 2 processes.

    python -m benchmarks.peers.run                      # all that are installed: pip install '.[peers]'
    python -m benchmarks.peers.run --only huey rq

A private Redis (append-only file, fsync each second). Throughput: jobs wait first, then the workers start;
jobs a second between the first and the last start. Deadline: a limit of 1 s by the peer's own means, on a
loop and on C code that holds the interpreter's lock. Kill: a job that kills its process, and whether the pool
goes on. Every job notes its start with one write.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

from benchmarks.harness import ROOT, SUBJECT, Figure, folder, main, parser, spread, versions
from tests.support.eventually import eventually
from tests.support.servers import free_port

PEERS = ("celery", "rq", "dramatiq", "huey", "taskiq", "pebble")
WORKERS = 2
PATIENCE = 10.0
"""Seconds past a limit after which a job is said to be never stopped."""


class Redis:
    """A private server."""

    def __init__(self, path: Path) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise SystemExit("The peers need Redis: apt-get install redis-server, then run this again.")
        self.port = free_port()
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(path), "--save", ""]
        self._process = subprocess.Popen(
            [program, *options, "--appendonly", "yes", "--appendfsync", "everysec"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        eventually(self._answers, within=20)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def forget(self, database: int) -> None:
        """Take everything out of one database."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as link:
            link.sendall(f"SELECT {database}\r\nFLUSHDB\r\n".encode())
            assert link.recv(100).startswith(b"+OK")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


class Peer:
    """One peer's worker processes, and the file in which its jobs note their starts."""

    def __init__(self, name: str, path: Path, redis: Redis) -> None:
        self.path = path / f"{name}.log"
        self.path.touch()
        self.errors = path / f"{name}.errors"
        self.errors.touch()
        os.environ |= {
            "PEER_REDIS": f"redis://127.0.0.1:{redis.port}/{PEERS.index(name)}",
            "PEER_LOG": str(self.path),
            "PEER_PORT": str(free_port()),
        }
        self.module: ModuleType = importlib.import_module(f"benchmarks.peers.with_{name}")
        self.name = name
        self._redis = redis
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the workers."""
        self.process = subprocess.Popen(
            self.module.command(WORKERS), cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL, stderr=self.errors.open("ab"), start_new_session=True,
        )  # fmt: skip
        if self.name == "pebble":
            eventually(self._listens, within=20)

    def restart(self) -> None:
        """Begin anew, with nothing left to do from before."""
        self.stop()
        self._redis.forget(PEERS.index(self.name))
        if self.name == "pebble":
            os.environ["PEER_PORT"] = str(free_port())
            self.module.forget()
        self.start()
        done = len(self.notes("stamp"))
        self.module.send("stamp", sent=time.monotonic_ns())
        assert self.wait_for("stamp", done + 1, 60), f"{self.name} does not run"

    def tail(self) -> str:
        """The end of what its processes complained about."""
        return self.errors.read_text(errors="replace")[-1000:]

    def _listens(self) -> bool:
        with contextlib.suppress(OSError):
            self.module.send("go")
            return True
        return False

    def stop(self) -> None:
        """Kill whatever is left of it."""
        if self.process is None:
            return
        tree = self.tree()
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

    def tree(self) -> list[psutil.Process]:
        """Its processes."""
        assert self.process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        return []

    def notes(self, job: str) -> list[tuple[int, int, int]]:
        """First word, start in nanoseconds and process of each run of a job."""
        lines = [line.split() for line in self.path.read_text().splitlines()]
        return [(int(w[1]), int(w[2]), int(w[3])) for w in lines if len(w) == 4 and w[0] == job]

    def wait_for(self, job: str, count: int, within: float = 120.0) -> bool:
        """Whether so many runs of a job have begun in time."""
        with contextlib.suppress(AssertionError):
            eventually(lambda: len(self.notes(job)) >= count, within=within, every=0.05)
            return True
        return False


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Peer by peer."""
    jobs = options.jobs or (4000 if options.quick else 10_000)
    with folder() as path:
        redis = Redis(path)
        try:
            for name in options.only or PEERS:
                try:
                    peer = Peer(name, path, redis)
                except ImportError as error:
                    print(f"{name} is left out ({error}); pip install '.[peers]' brings it")
                    continue
                try:
                    yield from questions(peer, jobs)
                except (OSError, AssertionError) as error:
                    print(f"{name} did not go through all of it: {error}\n{peer.tail()}")
                finally:
                    peer.stop()
        finally:
            redis.close()


def questions(peer: Peer, jobs: int) -> Iterator[Figure]:
    """Everything that is asked of one peer."""
    library = peer.module.LIBRARY
    settings: dict[str, Any] = peer.module.SETTINGS | {
        "workers": WORKERS,
        "jobs": jobs,
        "redis": "aof everysec",
    }
    settings |= {"version": versions(library).get(library, "")}
    yield Figure("peers", f"{peer.name}: throughput", "jobs/s", [throughput(peer, jobs)], settings=settings)
    yield Figure(
        "peers", f"{peer.name}: latency", "ms", parts=latency(peer), settings=settings, better="less"
    )
    used = sum(p.memory_full_info().pss for p in peer.tree()) / 2**20
    yield Figure("peers", f"{peer.name}: PSS", "MiB", [used], settings=settings, better="less")
    for job in ("spin", "c_code"):
        parts = deadline(peer, job)
        yield Figure(
            "peers", f"{peer.name}: limit on {job}", "ms", parts=parts, settings=settings, better="less"
        )
        peer.stop()
        peer.start()
    yield Figure("peers", f"{peer.name}: kill -9 of its process", "", parts=killed(peer), settings=settings)


def throughput(peer: Peer, jobs: int) -> float:
    """Jobs a second between the first and the last start."""
    if peer.name == "pebble":
        peer.start()
    for n in range(jobs):
        peer.module.send("noop", n=n, email=f"user{n}@example.org", subject=SUBJECT)
    if peer.name == "pebble":
        peer.module.send("go")
    else:
        peer.start()
    assert peer.wait_for("noop", jobs, 300), f"{peer.name} did not run {jobs} jobs in 300 s"
    starts = sorted(start for _, start, _ in peer.notes("noop"))
    return (jobs - 1) / ((starts[-1] - starts[0]) / 1e9)


def latency(peer: Peer, count: int = 300) -> dict[str, float]:
    """Enqueue to start, at 100/s on idle workers."""
    time.sleep(1)
    for n in range(count):
        peer.module.send("stamp", sent=time.monotonic_ns())
        time.sleep(0.01)
        assert n < count
    peer.wait_for("stamp", count, 60)
    return spread([(start - sent) / 1e6 for sent, start, _ in peer.notes("stamp")])


def deadline(peer: Peer, job: str) -> dict[str, float]:
    """Milliseconds past the limit of 1 s until its process is free again; -1: not within PATIENCE.

    Free is: dead, or running another job. As many probes follow as there are workers, and one more.
    """
    before = len(peer.notes("stamp"))
    peer.module.send(job)
    if not peer.wait_for(job, 1, 20):
        return {"stopped": -1}
    _, began, pid = peer.notes(job)[-1]
    limit = began / 1e9 + 1.0
    while time.monotonic() < limit + PATIENCE:
        time.sleep(0.002)
        if not alive(pid):
            return {"stopped": (time.monotonic() - limit) * 1000}
        if time.monotonic() > limit + 0.05 and len(peer.notes("stamp")) < before + 400:
            peer.module.send("stamp", sent=time.monotonic_ns())
            time.sleep(0.02)
            if any(who == pid and start > began for _, start, who in peer.notes("stamp")[before:]):
                return {"stopped": (time.monotonic() - limit) * 1000}
    return {"stopped": -1}


def alive(pid: int) -> bool:
    """Whether the process runs."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def killed(peer: Peer) -> dict[str, float]:
    """After a job that kills its process: runs of it in 10 s, and whether others still begin."""
    done = len(peer.notes("stamp"))
    peer.module.send("die")
    peer.wait_for("die", 1, 20)
    time.sleep(PATIENCE)
    for _ in range(10):
        peer.module.send("stamp", sent=time.monotonic_ns())
    peer.wait_for("stamp", done + 10, 10)
    return {"runs": len(peer.notes("die")), "of 10 others begun": min(10, len(peer.notes("stamp")) - done)}


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--only", nargs="*", choices=PEERS)
    made.add_argument("--jobs", type=int, default=0)
    return made


if __name__ == "__main__":
    raise SystemExit(main(arguments(), measure))
