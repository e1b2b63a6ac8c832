"""Generations of the daemon: a new one takes over beside the former one, and no run is interrupted."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows, assert_settled
from tests.support.servers import free_port
from workerd.store.base import Store

CODE = """
import time
from pathlib import Path
from workerd import handler


def answer():
    return {answer}


@handler(resumable=True)
def waits(ctx, path):
    while not Path(path).exists():
        time.sleep(0.01)
    return [{answer}, ctx.stopping]
"""


class Host:
    """The generations of one daemon, each started with the code of then."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.rows = Rows(url)
        self.url = url
        self.port = free_port()
        self.daemons: dict[int, Daemon] = {}

    def config(self) -> str:
        return f"""
[gateway]
listen = "127.0.0.1:{self.port}"
[dispatcher]
poll = "50ms"
lease = "10s"
[supervisor]
watchdog = "4s"
[shutdown]
drain = "200ms"
[defaults]
path = ["{ROOT}", "{self.folder}"]
[handlers]
answer = {{ call = "handed_over:answer", pool = "work" }}
waits = {{ call = "handed_over:waits", pool = "work" }}
tick = {{ call = "tests.support.handlers:noop", cron = "* * * * * *", misfire = "all" }}
[pools.work]
workers = 2
"""

    def start(self, generation: int) -> Daemon:
        (self.folder / "handed_over.py").write_text(CODE.replace("{answer}", str(generation)))
        daemon = Daemon(self.folder / "node", self.url, self.config(), generation=generation)
        self.daemons[generation] = daemon
        return daemon.start()

    def begin(self, generation: int, name: str) -> bytes:
        """Start a run in this generation that waits for the file `name`."""
        job = self.rows.insert("waits", {"path": str(self.folder / name)})
        eventually(lambda: self.daemons[generation].runs(job), state=self.daemons[generation].tail)
        return job

    def end(self, name: str, job: bytes) -> list[Any]:
        (self.folder / name).touch()
        eventually(lambda: self.rows.ended(job), state=self.daemons[min(self.daemons)].tail)
        return [(row["reason"], row["payload"]) for row in self.rows.attempts(job)]

    def kill(self, generation: int) -> None:
        """SIGKILL a daemon and all its processes."""
        daemon = self.daemons[generation]
        assert daemon.process is not None
        daemon.kill_tree()
        daemon.process.wait()

    def draining(self, generation: int) -> bool:
        return self.daemons[generation].status().get("state") == "draining"

    def exited(self, generation: int) -> int:
        """The exit status of a generation that ends by itself."""
        process = self.daemons[generation].process
        assert process is not None
        eventually(lambda: process.poll() is not None, state=self.daemons[generation].tail)
        return process.wait()

    def answers(self) -> set[bytes]:
        """What jobs that are enqueued now return."""
        jobs = [self.rows.insert("answer") for _ in range(5)]
        eventually(lambda: self.rows.ended(*jobs))
        return {bytes(self.rows.last(job)["payload"]) for job in jobs}

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.daemons[1].cli("status", "--json").stdout)
        return found

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=10)


@pytest.fixture
def host(tmp_path: Path, store: Store, store_url: str) -> Iterator[Host]:
    made = Host(tmp_path, store_url)
    try:
        yield made
    finally:
        for daemon in reversed(made.daemons.values()):
            daemon.end()
    assert_settled(made.rows)
    assert not (tmp_path / "node/run/live").is_symlink()


def once(rows: Rows) -> None:
    """Every tick has one job, and none between the first and the last is missing."""
    ticks = Counter(
        str(row["run_at"]) for row in rows.sql("SELECT run_at FROM workerd_jobs WHERE handler = 'tick'")
    )
    assert set(ticks.values()) == {1}, ticks


@pytest.mark.slow
def test_a_run_goes_on_while_new_jobs_run_the_new_code(host: Host) -> None:
    """Also over a second hand-over; commands, HTTP and metrics show all that live, and follow the newest."""
    host.start(1)
    first = host.begin(1, "one")
    host.start(2)
    eventually(lambda: host.draining(1))
    assert host.answers() == {b"2"}
    status = host.status()
    assert [(one["generation"], one["state"]) for one in status["former"]] == [(1, "draining")]
    assert status["generation"] == 2
    assert status["node"] == "node·2"
    assert {worker["job"] for worker in status["pools"]["work@1"]["workers"] if worker.get("job")}
    assert "work@1" in host.daemons[2].cli("status").stdout
    assert host.get("/ready").status_code == 200
    metrics = host.get("/metrics").text
    assert 'workerd_workers{pool="work@1",state="running"} 1.0' in metrics
    assert 'process="pool:work@1"' in metrics
    second = host.begin(2, "two")
    host.start(3)
    eventually(lambda: host.draining(2))
    assert host.answers() == {b"3"}
    assert {one["generation"] for one in host.status()["former"]} == {1, 2}
    nodes = {node["name"]: node["state"] for node in host.get("/nodes").json()["nodes"]}
    assert set(nodes) == {"node", "node·2", "node·3"}
    assert host.end("one", first) == [("ok", b"[1,false]")]
    assert host.exited(1) == 0
    assert host.end("two", second) == [("ok", b"[2,false]")]
    assert host.exited(2) == 0
    assert host.status()["former"] == []
    assert host.answers() == {b"3"}
    once(host.rows)


@pytest.mark.slow
def test_either_may_be_killed(host: Host) -> None:
    """The former one only settles when it is started again; the new one serves again."""
    host.start(1)
    lost = host.begin(1, "one")
    host.start(2)
    eventually(lambda: host.draining(1))
    host.kill(1)
    host.daemons[1].spawn()
    assert host.exited(1) == 0
    eventually(lambda: host.daemons[2].runs(lost), state=host.daemons[2].tail)
    kept = host.begin(2, "two")
    host.start(3)
    eventually(lambda: host.draining(2))
    host.kill(3)
    assert host.daemons[2].runs(kept)
    host.daemons[3].start()
    assert host.answers() == {b"3"}
    assert host.end("one", lost) == [("lost", None), ("ok", b"[2,false]")]
    assert host.end("two", kept) == [("ok", b"[2,false]")]
    assert host.exited(2) == 0
    once(host.rows)


@pytest.mark.slow
def test_the_first_generation_takes_over_again(host: Host) -> None:
    """After a start by hand; a stop of a superseded one asks its runs to end within `shutdown.drain`."""
    host.start(1)
    host.begin(1, "one")
    host.start(2)
    eventually(lambda: host.draining(1))
    process = host.daemons[1].process
    assert process is not None
    process.send_signal(signal.SIGTERM)
    assert host.exited(1) == 0
    (host.folder / "one").touch()
    host.start(1)
    assert host.exited(2) == 0
    assert host.status()["generation"] == 1
    assert host.answers() == {b"1"}
