"""Start and stop: leftovers of a killed daemon, refused starts, drains, and stuck processes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
import uuid
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


class LifecycleHarness:
    """A daemon on SQLite and its runtime folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"sqlite:///{folder}/store.db"
        self.rows = Rows(self.url)
        self.daemon = Daemon(folder / "node", self.url, CONFIG)

    @property
    def run(self) -> Path:
        return self.daemon.folder / "run"

    def running(self, handler: str, **vars: object) -> bytes:
        """Enqueue a job and wait until a worker runs it."""
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

    def jobs_in_progress(self) -> list[bytes]:
        return [row["id"] for row in self.rows.sql("SELECT id FROM workerd_jobs WHERE status = 'inprogress'")]

    def sockets_and_pid_files(self) -> list[str]:
        return [str(path) for path in self.run.rglob("*") if path.is_socket() or path.suffix == ".pid"]


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[LifecycleHarness]:
    harness = LifecycleHarness(tmp_path)
    with harness.daemon:
        yield harness


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def wait_until_dead(processes: list[psutil.Process], seconds: float) -> None:
    eventually(
        lambda: not any(map(is_alive, processes)),
        within=seconds,
        state=lambda: list(filter(is_alive, processes)),
    )


def tree_with_descendants(harness: LifecycleHarness) -> list[psutil.Process]:
    """The daemon's processes and those of a job: a child, one in its own session, a double-forked one."""
    pids = harness.folder / "pids"
    harness.running("leaves", path=str(pids))
    eventually(pids.exists)
    started = [psutil.Process(int(pid)) for pid in pids.read_text().split()]
    assert len(started) == 4
    return [*harness.daemon.tree(), *started]


# -- killed daemons


def test_a_killed_supervisor_takes_the_whole_tree_with_it(harness: LifecycleHarness) -> None:
    """Within 2 s, including all descendants of jobs; the next start retries the job at once."""
    tree = tree_with_descendants(harness)
    harness.kill_supervisor()
    wait_until_dead(tree, 2.0)
    (job,) = harness.jobs_in_progress()
    (harness.folder / "pids").unlink()
    harness.daemon.start()
    eventually(lambda: harness.rows.last(job)["attempt"] == 2, within=20, state=harness.daemon.tail)
    first, second = harness.rows.attempts(job)
    assert (first["status"], first["reason"]) == ("retry", "lost")
    assert second["losses"] == 1
    # The dead incarnation's row is deleted long before its lease expires.
    eventually(lambda: len(harness.rows.sql("SELECT id FROM workerd_nodes")) == 1, state=harness.daemon.tail)
    harness.rows.sql("DELETE FROM workerd_jobs")


@pytest.mark.slow
def test_a_start_right_after_the_kill_waits_for_the_rest_of_the_tree(harness: LifecycleHarness) -> None:
    """No leftover process, socket or pid file blocks it."""
    tree = tree_with_descendants(harness)
    harness.kill_supervisor()
    harness.daemon.start()
    wait_until_dead(tree, 0.1)
    beside = harness.rows.insert("record", {"path": str(harness.folder / "runs")})
    eventually(lambda: harness.rows.ended(beside), state=harness.daemon.tail)


@pytest.mark.slow
def test_the_next_start_kills_a_stopped_leftover(harness: LifecycleHarness) -> None:
    """A stopped pool does not notice that its supervisor died; it is killed with its job's descendants."""
    tree = tree_with_descendants(harness)
    harness.daemon.kill("pool:leaves", signal.SIGSTOP)
    harness.kill_supervisor()
    harness.daemon.start()
    wait_until_dead(tree, 2.0)


# -- refused starts and stale files


def test_a_second_start_is_refused_with_the_pid_of_the_first(harness: LifecycleHarness) -> None:
    """It exits with status 1 at once, and the first daemon is unaffected."""
    pid = harness.supervisor().pid
    done = harness.daemon.cli("run", check=False, within=20)
    assert done.returncode == 1
    assert f"process id {pid}" in done.stderr
    assert harness.supervisor().pid == pid
    assert harness.daemon.ready()


def test_stale_files_do_not_block_a_start(tmp_path: Path) -> None:
    """A pid file with a foreign pid, files in place of sockets, a half-written list of incarnations."""
    harness = LifecycleHarness(tmp_path)
    private = harness.run / "private"
    private.mkdir(parents=True)
    for name in ("supervisor", "dispatcher", "ingester"):
        (private / name).write_text("not a socket")
    (harness.run / "workerd.pid").write_text("1\n")
    state = harness.daemon.folder / "state"
    state.mkdir()
    (state / "lock").write_text("1\n")
    (state / "incarnations").write_text("0123\nnonsense")
    (state / "incarnations.new").write_text("half")
    with harness.daemon:
        assert int((harness.run / "workerd.pid").read_text()) == harness.supervisor().pid
        assert int((state / "lock").read_text()) == harness.supervisor().pid
        assert harness.daemon.stop() == 0
    assert harness.sockets_and_pid_files() == []


# -- drains


@pytest.mark.slow
def test_a_drain_ends_all_jobs_and_processes(tmp_path: Path) -> None:
    """Jobs that finish in time finish, longer ones are interrupted, waiting ones are released."""
    harness = LifecycleHarness(tmp_path)
    harness.daemon.write(CONFIG.replace('drain = "1s"', 'drain = "5s"'))
    harness.daemon.start()
    go = harness.folder / "go"
    finishing = harness.running("waits", path=str(go))
    too_long = harness.running("waits", path=str(harness.folder / "never"))
    waiting = [harness.rows.insert("waits", {"path": str(go)}) for _ in range(3)]
    tree = [*tree_with_descendants(harness), *harness.daemon.tree()]
    (leaves,) = [
        row["id"] for row in harness.rows.sql("SELECT id FROM workerd_jobs WHERE handler = 'leaves'")
    ]
    process = harness.daemon.process
    assert process is not None
    process.send_signal(signal.SIGTERM)
    eventually(lambda: harness.daemon.status().get("state") == "draining")
    go.touch()
    assert process.wait(20) == 0
    assert [row["reason"] for row in harness.rows.attempts(finishing)] == ["ok"]
    for job in (too_long, leaves):
        first, second = harness.rows.attempts(job)
        assert (first["status"], first["reason"]) == ("retry", "interrupted")
        assert (second["status"], second["failures"], second["losses"]) == ("new", 0, 0)
    for job in waiting:
        assert [(row["attempt"], row["status"]) for row in harness.rows.attempts(job)] == [(1, "new")]
    assert not any(map(is_alive, tree))
    assert harness.sockets_and_pid_files() == []
    assert_settled(harness.rows)
    assert harness.rows.sql("SELECT * FROM workerd_nodes") == []


def test_a_second_signal_skips_the_wait(tmp_path: Path) -> None:
    """Running jobs are interrupted at once."""
    harness = LifecycleHarness(tmp_path)
    harness.daemon.write(CONFIG.replace('drain = "1s"', 'drain = "600s"'))
    with harness.daemon:
        job = harness.running("waits", path=str(tmp_path / "never"))
        process = harness.daemon.process
        assert process is not None
        process.send_signal(signal.SIGTERM)
        eventually(lambda: harness.daemon.status().get("state") == "draining")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert [row["reason"] for row in harness.rows.attempts(job)] == ["interrupted", None]
    assert_settled(harness.rows)


@pytest.mark.parametrize(
    "name", ["ingester", *(pytest.param(n, marks=pytest.mark.slow) for n in ("dispatcher", "pool:waits"))]
)
def test_a_drain_survives_the_death_of_a_child(harness: LifecycleHarness, name: str) -> None:
    """Whichever child dies during the drain: it completes, and no claim is left."""
    process = harness.daemon.process
    assert process is not None
    harness.daemon.write(CONFIG)
    job = harness.running("waits", path=str(harness.folder / "go"))
    process.send_signal(signal.SIGTERM)
    eventually(lambda: harness.daemon.status().get("state") == "draining")
    harness.daemon.kill(name)
    assert process.wait(30) == 0
    assert_settled(harness.rows)
    reasons = [row["reason"] for row in harness.rows.attempts(job)]
    assert reasons == (["lost", None] if name == "pool:waits" else ["interrupted", None])


# -- stopped processes and deleted sockets


@pytest.mark.parametrize(
    "name",
    ["dispatcher", *(pytest.param(n, marks=pytest.mark.slow) for n in ("ingester", "pool:waits", "gateway"))],
)
def test_a_stopped_child_is_replaced(tmp_path: Path, name: str) -> None:
    """A child that makes no progress within the watchdog's time is killed, restarted and works again."""
    harness = LifecycleHarness(tmp_path)
    harness.daemon.gateway = f"unix:{tmp_path}/gateway.sock"
    harness.daemon.write(CONFIG)
    with harness.daemon:
        pid = harness.daemon.kill(name, signal.SIGSTOP)
        eventually(lambda: harness.daemon.pid(name) not in (0, pid), within=10, state=harness.daemon.tail)
        eventually(harness.daemon.ready, state=harness.daemon.tail)
        assert "made no progress for 2 s" in harness.daemon.logged()
        job = harness.rows.insert("waits", {"path": str(tmp_path)})
        eventually(lambda: harness.rows.ended(job), state=harness.daemon.tail)
        assert harness.daemon.stop() == 0
    assert_settled(harness.rows)


@pytest.mark.slow
def test_the_status_tells_of_a_role_that_makes_no_progress(tmp_path: Path) -> None:
    """Before the watchdog ends it; what it last said of the lease runs out meanwhile."""
    config = CONFIG.replace('watchdog = "2s"', 'watchdog = "60s"')
    with Daemon(tmp_path / "node", f"sqlite:///{tmp_path}/store.db", config) as daemon:
        dispatcher = psutil.Process(daemon.status()["roles"]["dispatcher"]["pid"])
        dispatcher.suspend()
        eventually(lambda: "makes no progress" in daemon.status()["roles"]["dispatcher"]["trouble"])
        first = daemon.status()["roles"]["dispatcher"]["lease_left"]
        eventually(lambda: daemon.status()["roles"]["dispatcher"]["lease_left"] < first)
        assert "is killed after 60 s" in daemon.cli("status", check=False).stdout
        dispatcher.resume()
        eventually(lambda: not daemon.status()["roles"]["dispatcher"]["trouble"])


@pytest.mark.slow
def test_a_stopped_supervisor_kills_no_child_when_it_resumes(harness: LifecycleHarness) -> None:
    """Jobs run meanwhile; on resume it does not mistake its own pause for stuck children."""
    supervisor = harness.supervisor()
    before = {process.pid for process in harness.daemon.tree()}
    supervisor.suspend()
    began = time.monotonic()
    jobs = [harness.rows.insert("record", {"path": str(harness.folder / "runs")}) for _ in range(20)]
    eventually(lambda: harness.rows.ended(*jobs), state=harness.daemon.tail)
    eventually(lambda: time.monotonic() - began > 3.0)
    supervisor.resume()
    eventually(harness.daemon.ready)
    assert {process.pid for process in harness.daemon.tree()} == before
    assert "made no progress" not in harness.daemon.logged()


@pytest.mark.slow
def test_a_deleted_runtime_folder_is_created_again(harness: LifecycleHarness) -> None:
    """After a cleaner of temporary files: the loss is logged, the sockets are created again, jobs run."""
    shutil.rmtree(harness.run)
    eventually(lambda: "runtime_dir" in harness.daemon.logged(), state=harness.daemon.tail)
    eventually(harness.daemon.ready, state=harness.daemon.tail)
    harness.daemon.kill("pool:waits")
    eventually(harness.daemon.ready, state=harness.daemon.tail)
    job = harness.rows.insert("waits", {"path": str(harness.folder)})
    eventually(lambda: harness.rows.ended(job), state=harness.daemon.tail)
    assert harness.daemon.cli("status").returncode == 0
    assert harness.daemon.stop() == 0
    assert harness.sockets_and_pid_files() == []


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_it_starts_with_closed_standard_streams(tmp_path: Path, closed: str) -> None:
    """As some supervisors and scripts start it; no file of the daemon's gets their numbers."""
    url = f"sqlite:///{tmp_path}/store.db"
    daemon = Daemon(tmp_path / "node", url, CONFIG, prefix=("sh", "-c", f'exec "$@" {closed}', "sh"))
    rows = Rows(url)
    with daemon:
        job = rows.insert("record", {"path": str(tmp_path / "record")})
        eventually(lambda: rows.ended(job), state=daemon.tail)
        for process in daemon.tree():
            for fd in ("0", "1", "2"):
                target = os.readlink(f"/proc/{process.pid}/fd/{fd}")
                assert target == "/dev/null" or target.endswith("/log") or target.startswith("pipe:")
        assert daemon.stop() == 0
    assert_settled(rows)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_full_disk_at_start_is_one_sentence(tmp_path: Path) -> None:
    """And the exit status 1: no traceback, and nothing that is tried again for ever."""
    state = tmp_path / "node" / "state"
    script = f'mount -t tmpfs -o mode=0755,size=64k tmpfs {state} && cat /dev/zero > {state}/fill; exec "$@"'
    prefix = ("unshare", "--mount", "sh", "-c", script, "sh")
    daemon = Daemon(tmp_path / "node", f"sqlite:///{tmp_path}/store.db", CONFIG, prefix=prefix)
    state.mkdir()
    daemon.spawn()
    assert daemon.process is not None
    if daemon.process.wait(30) != 1:
        daemon.end()
        pytest.skip(f"cannot mount here: {daemon.logged()}")
    assert "Traceback" not in daemon.logged()
    assert "No space left on device; free space there" in daemon.logged().splitlines()[-1]
    daemon.end()


@pytest.mark.parametrize("level", ["debug", "info"])
def test_each_job_has_lines_at_the_debug_level_only(tmp_path: Path, level: str) -> None:
    """Claimed, started and ended, with what finds them."""
    url = f"sqlite:///{tmp_path}/store.db"
    daemon = Daemon(tmp_path / "node", url, f'[log]\nlevel = "{level}"\n{CONFIG}')
    rows = Rows(url)
    with daemon:
        job = rows.insert("record", {"path": str(tmp_path / "record")})
        eventually(lambda: rows.ended(job), state=daemon.tail)
        assert daemon.stop() == 0
    events = [json.loads(line) for line in daemon.logged().splitlines() if str(uuid.UUID(bytes=job)) in line]
    expected = ["job.claimed", "job.started", "job.ended"] if level == "debug" else []
    assert [event["event"] for event in events] == expected
    assert all((event["handler"], event["attempt"]) == ("record", 1) for event in events)
    assert_settled(rows)
