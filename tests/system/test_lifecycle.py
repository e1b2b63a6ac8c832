"""Beginning and end: what a killed daemon leaves behind, who may start, how a stop ends everything."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows, assert_settled

CONFIG = f"""
[supervisor]
watchdog = "2s"
[shutdown]
drain = "1s"
[dispatcher]
lease = "120s"
[defaults]
path = ["{ROOT}"]
[handlers.record]
call = "tests.support.handlers:record"
[handlers.waits]
call = "tests.support.handlers:wait_for_file"
workers = 2
[handlers.leaves]
call = "tests.support.handlers:leaves_children"
"""


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"sqlite:///{folder}/store.db"
        self.rows = Rows(self.url)
        self.daemon = Daemon(folder / "node", self.url, CONFIG)

    @property
    def run(self) -> Path:
        return self.daemon.folder / "run"

    def running(self, handler: str, **vars: object) -> bytes:
        """A job that runs now."""
        job = self.rows.insert(handler, vars)
        eventually(lambda: self.daemon.runs(job), state=self.daemon.tail)
        return job

    def supervisor(self) -> psutil.Process:
        assert self.daemon.process is not None
        return psutil.Process(self.daemon.process.pid)

    def kill_supervisor(self) -> None:
        process = self.daemon.process
        assert process is not None
        process.kill()
        process.wait()

    def left(self) -> list[bytes]:
        return [row["id"] for row in self.rows.sql("SELECT id FROM workerd_jobs WHERE status = 'inprogress'")]

    def sockets(self) -> list[str]:
        return [str(path) for path in self.run.rglob("*") if path.is_socket() or path.suffix == ".pid"]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    with world.daemon:
        yield world


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def gone_within(processes: list[psutil.Process], seconds: float) -> None:
    eventually(
        lambda: not any(map(is_alive, processes)),
        within=seconds,
        state=lambda: list(filter(is_alive, processes)),
    )


def family(world: World) -> list[psutil.Process]:
    """The tree, with what a job has started: a child, one in its own session, one forked twice."""
    pids = world.folder / "pids"
    world.running("leaves", path=str(pids))
    eventually(pids.exists)
    started = [psutil.Process(int(pid)) for pid in pids.read_text().split()]
    assert len(started) == 4
    return [*world.daemon.tree(), *started]


# -- killed


def test_a_killed_supervisor_takes_the_whole_tree_with_it(world: World) -> None:
    """Within 2 s, with everything that jobs have started; the next start tries the job again at once."""
    tree = family(world)
    world.kill_supervisor()
    gone_within(tree, 2.0)
    (job,) = world.left()
    (world.folder / "pids").unlink()
    world.daemon.start()
    eventually(lambda: world.rows.last(job)["attempt"] == 2, within=20, state=world.daemon.tail)
    first, second = world.rows.attempts(job)
    assert (first["status"], first["reason"]) == ("retry", "lost")
    assert second["losses"] == 1
    # The dead incarnation's row goes long before its lease is over.
    eventually(lambda: len(world.rows.sql("SELECT id FROM workerd_nodes")) == 1, state=world.daemon.tail)
    world.rows.sql("DELETE FROM workerd_jobs")


@pytest.mark.slow
def test_a_start_right_after_the_kill_waits_for_the_rest_of_the_tree(world: World) -> None:
    """No left-over process, socket or pid file is in its way, though nobody waited."""
    tree = family(world)
    world.kill_supervisor()
    world.daemon.start()
    gone_within(tree, 0.1)
    beside = world.rows.insert("record", {"path": str(world.folder / "runs")})
    eventually(lambda: world.rows.ended(beside), state=world.daemon.tail)


@pytest.mark.slow
def test_a_left_over_that_is_stopped_is_ended_by_the_next_start(world: World) -> None:
    """A stopped pool does not notice that its supervisor died; with it goes what its job has started."""
    tree = family(world)
    os.kill(world.daemon.pid("pool:leaves"), signal.SIGSTOP)
    world.kill_supervisor()
    world.daemon.start()
    gone_within(tree, 2.0)


# -- refused


def test_a_second_start_is_refused_with_the_pid_of_the_first(world: World) -> None:
    """Exit status 1, at once, and the first is not disturbed."""
    pid = world.supervisor().pid
    done = world.daemon.cli("run", check=False, within=20)
    assert done.returncode == 1
    assert f"process id {pid}" in done.stderr
    assert world.supervisor().pid == pid
    assert world.daemon.ready()


def test_stale_files_are_in_nobody_s_way(tmp_path: Path) -> None:
    """A pid file with the pid of a stranger, sockets of nobody, a half-written list of incarnations."""
    world = World(tmp_path)
    private = world.run / "private"
    private.mkdir(parents=True)
    for name in ("supervisor", "dispatcher", "ingester"):
        (private / name).write_text("not a socket")
    (world.run / "workerd.pid").write_text("1\n")
    state = world.daemon.folder / "state"
    state.mkdir()
    (state / "lock").write_text("1\n")
    (state / "incarnations").write_text("0123\nnonsense")
    (state / "incarnations.new").write_text("half")
    with world.daemon:
        assert int((world.run / "workerd.pid").read_text()) == world.supervisor().pid
        assert int((state / "lock").read_text()) == world.supervisor().pid
        assert world.daemon.stop() == 0
    assert world.sockets() == []


# -- stopped in order


def test_a_drain_ends_everything(world: World) -> None:
    """What can end ends, what outlasts the drain is interrupted, what waits is given back."""
    go = world.folder / "go"
    finishing = world.running("waits", path=str(go))
    overlong = world.running("waits", path=str(world.folder / "never"))
    waiting = [world.rows.insert("waits", {"path": str(go)}) for _ in range(3)]
    tree = [*family(world), *world.daemon.tree()]
    (leaves,) = [row["id"] for row in world.rows.sql("SELECT id FROM workerd_jobs WHERE handler = 'leaves'")]
    process = world.daemon.process
    assert process is not None
    process.send_signal(signal.SIGTERM)
    eventually(lambda: world.daemon.status().get("state") == "draining")
    go.touch()
    assert process.wait(20) == 0
    assert [row["reason"] for row in world.rows.attempts(finishing)] == ["ok"]
    for job in (overlong, leaves):
        first, second = world.rows.attempts(job)
        assert (first["status"], first["reason"]) == ("retry", "interrupted")
        assert (second["status"], second["failures"], second["losses"]) == ("new", 0, 0)
    for job in waiting:
        assert [(row["attempt"], row["status"]) for row in world.rows.attempts(job)] == [(1, "new")]
    assert not any(map(is_alive, tree))
    assert world.sockets() == []
    assert_settled(world.rows)
    assert world.rows.sql("SELECT * FROM workerd_nodes") == []


def test_a_second_signal_skips_the_wait(tmp_path: Path) -> None:
    """What runs is interrupted at once."""
    world = World(tmp_path)
    world.daemon.write(CONFIG.replace('drain = "1s"', 'drain = "600s"'))
    with world.daemon:
        job = world.running("waits", path=str(tmp_path / "never"))
        process = world.daemon.process
        assert process is not None
        process.send_signal(signal.SIGTERM)
        eventually(lambda: world.daemon.status().get("state") == "draining")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert [row["reason"] for row in world.rows.attempts(job)] == ["interrupted", None]
    assert_settled(world.rows)


@pytest.mark.parametrize(
    "name", ["ingester", *(pytest.param(n, marks=pytest.mark.slow) for n in ("dispatcher", "pool:waits"))]
)
def test_a_drain_survives_the_death_of(world: World, name: str) -> None:
    """Whoever dies in the middle of it: it comes to its end, and nothing is left."""
    process = world.daemon.process
    assert process is not None
    world.daemon.write(CONFIG)
    job = world.running("waits", path=str(world.folder / "go"))
    process.send_signal(signal.SIGTERM)
    eventually(lambda: world.daemon.status().get("state") == "draining")
    world.daemon.kill(name)
    assert process.wait(30) == 0
    assert_settled(world.rows)
    reasons = [row["reason"] for row in world.rows.attempts(job)]
    assert reasons == (["lost", None] if name == "pool:waits" else ["interrupted", None])


# -- standing still


@pytest.mark.parametrize(
    "name",
    ["dispatcher", *(pytest.param(n, marks=pytest.mark.slow) for n in ("ingester", "pool:waits", "gateway"))],
)
def test_a_child_that_stands_still_is_replaced(tmp_path: Path, name: str) -> None:
    """No progress for as long as the watchdog allows: killed, restarted, back at work."""
    world = World(tmp_path)
    world.daemon.gateway = f"unix:{tmp_path}/gateway.sock"
    world.daemon.write(CONFIG)
    with world.daemon:
        pid = world.daemon.kill(name, signal.SIGSTOP)
        eventually(lambda: world.daemon.pid(name) not in (0, pid), within=10, state=world.daemon.tail)
        eventually(world.daemon.ready, state=world.daemon.tail)
        assert "made no progress for 2 s" in world.daemon.logged()
        job = world.rows.insert("waits", {"path": str(tmp_path)})
        eventually(lambda: world.rows.ended(job), state=world.daemon.tail)
        assert world.daemon.stop() == 0
    assert_settled(world.rows)


def test_a_supervisor_that_stood_still_harms_nobody(world: World) -> None:
    """Jobs go on meanwhile, and when it goes on itself it takes nobody's silence for death."""
    supervisor = world.supervisor()
    before = {process.pid for process in world.daemon.tree()}
    supervisor.suspend()
    began = time.monotonic()
    jobs = [world.rows.insert("record", {"path": str(world.folder / "runs")}) for _ in range(20)]
    eventually(lambda: world.rows.ended(*jobs), state=world.daemon.tail)
    eventually(lambda: time.monotonic() - began > 3.0)
    supervisor.resume()
    eventually(world.daemon.ready)
    assert {process.pid for process in world.daemon.tree()} == before
    assert "made no progress" not in world.daemon.logged()


def test_a_folder_of_sockets_that_somebody_emptied(world: World) -> None:
    """A cleaner of temporary files: it is said, made anew, and work goes on."""
    shutil.rmtree(world.run)
    eventually(lambda: "runtime_dir" in world.daemon.logged(), state=world.daemon.tail)
    eventually(world.daemon.ready, state=world.daemon.tail)
    world.daemon.kill("pool:waits")
    eventually(world.daemon.ready, state=world.daemon.tail)
    job = world.rows.insert("waits", {"path": str(world.folder)})
    eventually(lambda: world.rows.ended(job), state=world.daemon.tail)
    assert world.daemon.cli("status").returncode == 0
    assert world.daemon.stop() == 0
    assert world.sockets() == []
