"""The kill matrix: any process or pair, any signal, any moment; afterwards every job is settled.

The whole matrix uses one daemon on MariaDB, restarted by the tests as a service manager would. The handler
records its runs in a file, independent of the store.
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
[handlers.other]
call = "tests.support.handlers:record"
"""
TARGETS = ("supervisor", "dispatcher", "ingester", "pool", "worker", "store")
PAIRS = (("dispatcher", "pool"), ("dispatcher", "ingester"), ("pool", "ingester"))
SIGNAL_NAMES = ("KILL", "STOP", "TERM")
MOMENTS = ("idle", "running", "reporting")

CELLS = [
    pytest.param(
        (target,),
        signal_name,
        moment,
        id=f"{target}-{signal_name}-{moment}",
        marks=[] if signal_name == "KILL" and moment == "running" else pytest.mark.slow,
    )
    for target, signal_name, moment in itertools.product(TARGETS, SIGNAL_NAMES, MOMENTS)
] + [
    pytest.param(
        pair,
        signal_name,
        moment,
        id=f"{'+'.join(pair)}-{signal_name}-{moment}",
        marks=[] if signal_name == "KILL" and moment == "running" else pytest.mark.slow,
    )
    for pair, signal_name, moment in itertools.product(PAIRS, SIGNAL_NAMES, MOMENTS)
]


class KillMatrixHarness:
    """A server, a daemon on it, and the file in which the handler records its runs."""

    def __init__(self, folder: Path, server: DatabaseServer) -> None:
        self.server = server
        self.url = server.url(server.new_database())
        self.rows = Rows(self.url)
        self.runs = folder / "runs"
        self.runs.touch()
        self.daemon = Daemon(folder / "node", self.url, CONFIG)
        self.daemon.cli("migrate")
        self.jobs: list[bytes] = []

    # -- restarts, as a service manager does them

    def restart_if_dead(self) -> bool:
        """Start the daemon again if it has ended; true when the node is ready."""
        if self.daemon.process is None or self.daemon.process.poll() is not None:
            self.daemon.spawn()
            return False
        return bool(self.daemon.status().get("ready"))

    def wait_until_ready(self) -> None:
        eventually(self.restart_if_dead, within=40, every=0.05, state=self.daemon.tail)

    # -- load

    def enqueue(self, count: int, wait: float) -> list[bytes]:
        half = count // 2
        vars = {"path": str(self.runs), "wait": wait}
        fresh = self.rows.insert_many("record", [vars] * half)
        fresh += self.rows.insert_many("other", [vars] * (count - half))
        self.jobs += fresh
        return fresh

    def run_lines(self) -> int:
        return self.runs.read_bytes().count(b"\n")

    def reach(self, moment: str) -> None:
        """Put the node under the load at which the signal is sent."""
        if moment == "idle":
            return
        before = self.run_lines()
        fresh = self.enqueue(6, 0.3) if moment == "running" else self.enqueue(400, 0.0)
        if moment == "running":
            eventually(lambda: self.run_lines() > before)
        else:
            eventually(lambda: any(self.rows.last(job)["status"] == "completed" for job in fresh[:20]))

    # -- faults

    def pids(self, target: str) -> list[int]:
        if target == "store":
            return [self.server.pid]
        assert self.daemon.process is not None
        if target == "supervisor":
            return [self.daemon.process.pid]
        prefix = {"pool": "workerd: pool record", "worker": "workerd: worker record/"}.get(target)
        found = []
        for process in self.daemon.tree():
            with contextlib.suppress(psutil.Error):
                if prefix and " ".join(process.cmdline()).startswith(prefix):
                    found.append(process.pid)
        return found[:1] if prefix else [pid for pid in [self.daemon.pid(target)] if pid]

    def send_signal(self, targets: tuple[str, ...], signal_name: str) -> None:
        pids = [pid for target in targets for pid in self.pids(target)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, getattr(signal, f"SIG{signal_name}"))
        if signal_name == "STOP":
            self.resume(targets, pids)
        if "store" in targets and signal_name != "STOP":
            self.server._end(signal.SIGKILL if signal_name == "KILL" else signal.SIGTERM)
            self.server.start()

    def resume(self, targets: tuple[str, ...], pids: list[int]) -> None:
        """Keep them stopped until the watchdog has killed them or is overdue, then continue them."""
        alive = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
        with contextlib.suppress(AssertionError):
            eventually(lambda: not any(map(is_alive, alive)), within=WATCHDOG * 2)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    # -- the assertion

    def assert_settled(self) -> None:
        """Every job ran and ended once, no claim is left, and the node accepts work."""
        self.wait_until_ready()
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
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KillMatrixHarness]:
    server = DatabaseServer(DURABLE).start()
    harness = KillMatrixHarness(tmp_path_factory.mktemp("matrix"), server)
    try:
        yield harness
    finally:
        harness.daemon.end()
        server.remove()


@pytest.mark.slow
@pytest.mark.parametrize(("targets", "signal_name", "moment"), CELLS)
def test_kill_matrix(
    harness: KillMatrixHarness, targets: tuple[str, ...], signal_name: str, moment: str
) -> None:
    """Whichever process is hit: no job is lost and none ends twice."""
    harness.wait_until_ready()
    harness.reach(moment)
    harness.send_signal(targets, signal_name)
    harness.assert_settled()
