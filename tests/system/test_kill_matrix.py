"""The kill matrix: any process or pair, by any signal, at any moment; in the end everything is settled.

One daemon on MariaDB for the whole matrix, brought back by the tests as a service manager would. How often a
job ran is counted by the handler itself in a file outside of workerd.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows, assert_settled
from tests.support.servers import DURABLE, DatabaseServer

WATCHDOG = 1.0
CONFIG = f"""
[supervisor]
watchdog = "{WATCHDOG:g}s"
[shutdown]
drain = "5s"
[dispatcher]
lease = "6s"
[defaults]
path = ["{ROOT}"]
max_crashes = 100
backoff = {{ first = "10ms", factor = 1.0, max = "10ms" }}
restart = {{ intensity = 1000, period = "1s" }}
[handlers.record]
call = "tests.support.handlers:record"
workers = 2
[handlers.beside]
call = "tests.support.handlers:record"
"""
VICTIMS = ("supervisor", "dispatcher", "ingester", "pool", "worker", "store")
PAIRS = (("dispatcher", "pool"), ("dispatcher", "ingester"), ("pool", "ingester"))
SIGNALS = ("KILL", "STOP", "TERM")
MOMENTS = ("idle", "running", "reporting")

CELLS = [
    pytest.param(
        (victim,),
        how,
        moment,
        id=f"{victim}-{how}-{moment}",
        marks=[] if how == "KILL" and moment == "running" else pytest.mark.slow,
    )
    for victim, how, moment in itertools.product(VICTIMS, SIGNALS, MOMENTS)
] + [
    pytest.param(
        pair,
        how,
        moment,
        id=f"{'+'.join(pair)}-{how}-{moment}",
        marks=[] if how == "KILL" and moment == "running" else pytest.mark.slow,
    )
    for pair, how, moment in itertools.product(PAIRS, SIGNALS, MOMENTS)
]


class World:
    """The store, the daemon, and the book of what really ran."""

    def __init__(self, folder: Path, server: DatabaseServer) -> None:
        self.server = server
        self.url = server.url(server.new_database())
        self.rows = Rows(self.url)
        self.runs = folder / "runs"
        self.runs.touch()
        self.daemon = Daemon(folder / "node", self.url, CONFIG)
        self.daemon.cli("migrate")
        self.jobs: list[bytes] = []

    # -- keeping it alive, as a service manager does

    def tend(self) -> bool:
        """Start what ended by itself or was killed; true when the node is ready."""
        if self.daemon.process is None or self.daemon.process.poll() is not None:
            self.daemon.spawn()
            return False
        return bool(self.daemon.status().get("ready"))

    def ready(self) -> None:
        eventually(self.tend, within=40, every=0.05, state=self.daemon.tail)

    # -- load

    def enqueue(self, count: int, wait: float) -> list[bytes]:
        half = count // 2
        vars = {"path": str(self.runs), "wait": wait}
        fresh = self.rows.insert_many("record", [vars] * half)
        fresh += self.rows.insert_many("beside", [vars] * (count - half))
        self.jobs += fresh
        return fresh

    def run_lines(self) -> int:
        return self.runs.read_bytes().count(b"\n")

    def reach(self, moment: str) -> None:
        """Bring the node to the moment at which the signal falls."""
        if moment == "idle":
            return
        before = self.run_lines()
        fresh = self.enqueue(6, 0.3) if moment == "running" else self.enqueue(400, 0.0)
        if moment == "running":
            eventually(lambda: self.run_lines() > before)
        else:
            eventually(lambda: any(self.rows.last(job)["status"] == "completed" for job in fresh[:20]))

    # -- faults

    def pids(self, victim: str) -> list[int]:
        if victim == "store":
            return [self.server.pid]
        assert self.daemon.process is not None
        if victim == "supervisor":
            return [self.daemon.process.pid]
        prefix = {"pool": "workerd: pool record", "worker": "workerd: worker record/"}.get(victim)
        found = []
        for process in self.daemon.tree():
            with contextlib.suppress(psutil.Error):
                if prefix and " ".join(process.cmdline()).startswith(prefix):
                    found.append(process.pid)
        return found[:1] if prefix else [self.daemon.pid(victim)]

    def strike(self, victims: tuple[str, ...], how: str) -> None:
        pids = [pid for victim in victims for pid in self.pids(victim)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, getattr(signal, f"SIG{how}"))
        if how == "STOP":
            self.thaw(victims, pids)
        if "store" in victims and how != "STOP":
            self.server._end(signal.SIGKILL if how == "KILL" else signal.SIGTERM)
            self.server.start()

    def thaw(self, victims: tuple[str, ...], pids: list[int]) -> None:
        """Leave them stopped for longer than the watchdog, or until it has killed them; then continue."""
        alive = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
        with contextlib.suppress(AssertionError):
            eventually(lambda: not any(map(is_alive, alive)), within=WATCHDOG * 2)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    # -- the one assertion

    def assert_settled(self) -> None:
        """Every job ran and ended once, nothing is claimed, and the node works."""
        self.ready()
        probe = self.enqueue(2, 0.0)
        eventually(lambda: self.rows.ended(*probe), within=40, state=self.daemon.tail)
        eventually(self.all_ended, within=40, every=0.1, state=self.daemon.tail)
        ran = Counter(line.split()[0] for line in self.runs.read_text().splitlines())
        never = [job.hex() for job in self.jobs if uuid_text(job) not in ran]
        assert never == []
        assert_settled(self.rows)
        assert self.rows.counts().keys() <= {"completed", "retry"}

    def all_ended(self) -> bool:
        counts = self.rows.counts()
        return not any(counts.get(status) for status in ("new", "scheduled", "inprogress"))


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def uuid_text(value: bytes) -> str:
    text = value.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    server = DatabaseServer(DURABLE).start()
    world = World(tmp_path_factory.mktemp("matrix"), server)
    try:
        yield world
    finally:
        world.daemon.end()
        server.remove()


@pytest.mark.parametrize(("victims", "how", "moment"), CELLS)
def test_kill_matrix(world: World, victims: tuple[str, ...], how: str, moment: str) -> None:
    """Whoever gets whichever signal at whatever moment: nothing is lost, nothing ends twice."""
    world.ready()
    world.reach(moment)
    world.strike(victims, how)
    world.assert_settled()
