"""The daemon without a service manager: start, stop, restart, reload, and after a crash."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows

CONFIG = f"""
[defaults]
path = ["{ROOT}"]

[handlers.add]
call = "tests.support.handlers:add"

[handlers.waits]
call = "tests.support.handlers:wait_for_file"
grace = "100ms"
"""


class Background:
    """The daemon left running by `workerd start`, found by its pid file."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder}/store.db"
        self.cli = Daemon(folder, self.url, CONFIG).cli
        self.config = folder / "workerd.toml"
        self.log = folder / "state" / "workerd.log"
        self._pid_file = folder / "run" / "workerd.pid"

    @property
    def pid(self) -> int:
        return int(self._pid_file.read_text())

    def process(self) -> psutil.Process:
        return psutil.Process(self.pid)

    def end(self) -> None:
        """Leave nothing behind, whatever state it is in."""
        if not self._pid_file.exists() or not psutil.pid_exists(self.pid):
            return
        tree = [self.process(), *self.process().children(recursive=True)]
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):  # the first takes the others with it
                process.kill()
        psutil.wait_procs(tree, timeout=10)


def lives(process: psutil.Process) -> bool:
    """Whether it has not ended; process 1 may be slow to reap it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def background(tmp_path: Path) -> Iterator[Background]:
    found = Background(tmp_path / "node")
    yield found
    found.end()


def test_start_returns_when_the_daemon_is_ready_and_detached(background: Background) -> None:
    """It has neither terminal nor parent, runs jobs, and logs to its file."""
    assert str(background.log) in background.cli("start").stderr
    process = background.process()
    assert process.terminal() is None
    assert process.ppid() == 1 or process.parent() is None or process.parent().name() != "pytest"
    assert os.getsid(process.pid) != os.getsid(0)
    assert background.cli("enqueue", "add", "a=1", "--wait").stdout == "2\n"
    assert "ready" in background.log.read_text()
    tree = [process, *process.children(recursive=True)]
    background.cli("stop")
    assert not any(map(lives, tree))
    assert background.cli("status", check=False).returncode == 1


def test_a_second_start_is_refused_with_the_first_ones_pid(background: Background) -> None:
    """The first keeps running."""
    background.cli("start")
    pid = background.pid
    done = background.cli("start", check=False)
    assert done.returncode == 1
    assert f"process id {pid}" in done.stderr
    assert background.cli("run", check=False).returncode == 1
    assert lives(background.process())


@pytest.mark.slow
def test_a_pid_file_without_a_lock_is_stale(background: Background) -> None:
    """After kill -9 the next start starts, even if the pid has been reused."""
    background.cli("start")
    process = background.process()
    tree = [process, *process.children(recursive=True)]
    process.kill()
    psutil.wait_procs(tree, timeout=20)
    assert "not run" in background.cli("stop").stderr
    background.cli("start")
    assert background.pid != process.pid


@pytest.mark.slow
def test_restart_applies_the_current_configuration(background: Background) -> None:
    """A wrong one is refused before the running daemon is stopped."""
    background.cli("restart")
    first = background.pid
    text = background.config.read_text()
    background.config.write_text(text + "nonsense = 1\n")
    assert background.cli("restart", check=False).returncode == 2
    assert background.pid == first
    background.config.write_text(text.replace("[handlers.add]", "[handlers.plus]"))
    background.cli("restart")
    assert background.pid != first
    assert background.cli("enqueue", "plus", "a=1", "--wait").stdout == "2\n"


def test_reload_refuses_a_wrong_configuration_and_applies_a_right_one(background: Background) -> None:
    """The daemon stays the same process."""
    background.cli("start")
    first = background.pid
    text = background.config.read_text()
    background.config.write_text(text.replace("grace", "grave"))
    done = background.cli("reload", check=False)
    assert done.returncode == 2
    assert "grave" in done.stderr
    background.config.write_text(text.replace("[handlers.add]", "[handlers.plus]"))
    assert "pool:plus" in background.cli("reload").stderr
    assert background.cli("enqueue", "plus", "a=1", "--wait").stdout == "2\n"
    assert background.pid == first


@pytest.mark.parametrize("command", [("stop",), ("status",), ("reload",), ("restart",), ("start",)])
def test_a_daemon_that_has_its_sockets_elsewhere_is_not_taken_for_one_that_does_not_run(
    background: Background, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """As one that was started with another $XDG_RUNTIME_DIR: it holds the lock of its state folder."""
    background.cli("start")
    text = background.config.read_text()
    assert str(tmp_path / "node" / "run") in text
    background.config.write_text(text.replace(str(tmp_path / "node" / "run"), str(tmp_path / "elsewhere")))
    refused = background.cli(*command, check=False)
    background.config.write_text(text)
    assert refused.returncode == 1
    assert f"workerd runs with process id {background.pid}, but not with its sockets in" in refused.stderr
    assert "XDG_RUNTIME_DIR" in refused.stderr
    background.cli("stop")
    assert "nothing to stop" in background.cli("stop").stderr


def test_a_wrong_edit_keeps_nobody_from_the_daemon_that_runs(background: Background) -> None:
    """Its status is shown, and it can be stopped; without one the error is that of the configuration."""
    background.cli("start")
    with background.config.open("a") as file:
        file.write("\n[handlers.wrong]\nworker = 3\n")
    shown = background.cli("status")
    assert "ready" in shown.stdout
    assert "`workerd check` says where" in shown.stderr
    assert background.cli("reload", check=False).returncode == 2
    assert "workerd has stopped" in background.cli("stop").stderr
    for command in ("status", "stop"):
        refused = background.cli(command, check=False)
        assert (refused.returncode, "handlers.wrong.worker" in refused.stderr) == (2, True)


def test_a_second_stop_does_not_wait_for_running_jobs(background: Background, tmp_path: Path) -> None:
    """The first one waits for them."""
    background.cli("start")
    job_id = background.cli("enqueue", "waits", f"path={tmp_path}/never").stdout.strip()
    eventually(lambda: '"inprogress"' in background.cli("job", "show", job_id, "--json").stdout)
    process = background.process()
    process.send_signal(signal.SIGTERM)
    eventually(lambda: '"draining"' in background.cli("status", "--json", check=False).stdout)
    background.cli("stop")
    assert not lives(process)
    assert '"interrupted"' in background.cli("job", "show", job_id, "--json").stdout


@pytest.mark.slow
def test_ctrl_c_in_a_stop_says_what_becomes_of_the_daemon(background: Background, tmp_path: Path) -> None:
    """It stops all the same, once its jobs have ended."""
    background.cli("start")
    job_id = background.cli("enqueue", "waits", f"path={tmp_path}/file").stdout.strip()
    eventually(lambda: '"inprogress"' in background.cli("job", "show", job_id, "--json").stdout)
    process = background.process()
    stop = subprocess.Popen(
        [sys.executable, "-m", "workerd", "stop", "-c", str(background.config)],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert stop.stderr is not None
    assert stop.stderr.readline().startswith("Waiting at most")
    stop.send_signal(signal.SIGINT)
    _, err = stop.communicate(timeout=30)
    assert stop.returncode == 130
    assert err.startswith("workerd is still stopping; a second `workerd stop`")
    (tmp_path / "file").touch()
    psutil.wait_procs([process], timeout=30)
    assert not lives(process)


@pytest.mark.parametrize("command", [("reload",), ("restart", "waits")])
def test_a_daemon_that_is_stopping_is_no_error_of_the_configuration(
    background: Background, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """What it is asked for then has failed, and the command says why."""
    background.cli("start")
    job_id = background.cli("enqueue", "waits", f"path={tmp_path}/file").stdout.strip()
    eventually(lambda: '"inprogress"' in background.cli("job", "show", job_id, "--json").stdout)
    process = background.process()
    process.send_signal(signal.SIGTERM)
    eventually(lambda: '"draining"' in background.cli("status", "--json", check=False).stdout)
    refused = background.cli(*command, check=False)
    assert (refused.returncode, refused.stderr) == (
        1,
        "workerd is stopping, so nothing was done. `workerd start` starts it once it has ended.\n",
    )
    (tmp_path / "file").touch()
    psutil.wait_procs([process], timeout=30)
    assert not lives(process)


@pytest.mark.slow
def test_the_log_is_appended_to_and_survives_a_copy_and_truncate(background: Background) -> None:
    """After a truncate, writing continues at the beginning of the file."""
    background.cli("start")
    background.log.write_text("")
    background.cli("stop")
    assert background.log.read_bytes()[:1] == b"{"
    before = background.log.read_text()
    background.cli("start")
    assert background.log.read_text().startswith(before)


def test_the_log_is_reopened_after_logrotate_moved_it(background: Background) -> None:
    """On SIGUSR1 every process switches to the new file."""
    background.cli("start")
    moved = background.log.with_suffix(".log.1")
    background.log.rename(moved)
    before = moved.read_bytes()
    background.process().send_signal(signal.SIGUSR1)
    eventually(background.log.exists)
    eventually(lambda: "log.reopened" in background.log.read_text())
    Rows(background.url).insert("add", {})  # it misses its argument, which a pool logs
    eventually(lambda: "attempt.failed" in background.log.read_text())
    background.cli("stop")
    assert "stopped" in background.log.read_text()
    assert moved.read_bytes() == before


def test_start_without_permission_to_write_names_the_file_and_the_key(tmp_path: Path) -> None:
    """It exits with status 1."""
    if os.getuid() == 0:
        pytest.skip("root may write everywhere")
    node = Background(tmp_path / "node")
    (tmp_path / "node").chmod(0o500)
    done = node.cli("start", check=False)
    assert done.returncode == 1
    assert "state_dir" in done.stderr


def test_a_start_that_fails_names_the_log(background: Background) -> None:
    """The lock is a folder, so it cannot be taken."""
    (background.config.parent / "state" / "lock").mkdir(parents=True)
    done = background.cli("start", check=False)
    assert done.returncode == 1
    assert str(background.log) in done.stderr
    assert "cannot open" in background.log.read_text()


@pytest.mark.slow
def test_a_start_says_what_it_waits_for(background: Background) -> None:
    """The gateway's port is taken, and free again once this was said."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        text = background.config.read_text()
        background.config.write_text(text.replace('listen = ""', f'listen = "{address}"'))
        start = subprocess.Popen(
            [sys.executable, "-m", "workerd", "start", "-c", str(background.config)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert start.stderr is not None
        wanted = f"Not ready yet: gateway: The gateway cannot listen on {address}"
        assert any(line.startswith(wanted) for line in iter(start.stderr.readline, ""))
    with start:
        assert "workerd is running" in start.stderr.read()
    assert start.returncode == 0


def test_start_keeps_no_descriptor_of_the_shell(background: Background) -> None:
    """A pipe that a script reads ends when `start` returns."""
    done = subprocess.run(
        [sys.executable, "-m", "workerd", "start", "-c", str(background.config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert "workerd is running" in done.stdout


@pytest.mark.slow
def test_one_pool_is_restarted_and_its_running_job_ends(background: Background, tmp_path: Path) -> None:
    """An unknown pool is a wrong usage, with the known ones named."""
    background.cli("start")
    job = background.cli("enqueue", "waits", f"path={tmp_path}/go").stdout.strip()
    eventually(lambda: "inprogress" in background.cli("job", "show", job).stdout)
    unknown = background.cli("restart", "wait", check=False)
    assert unknown.returncode == 2
    assert 'no pool "wait"' in unknown.stderr
    assert "add, waits" in unknown.stderr
    pid = background.pid
    with ThreadPoolExecutor(1) as runner:
        restarting = runner.submit(background.cli, "restart", "waits")
        eventually(lambda: "draining" in background.cli("status", check=False).stdout)
        (tmp_path / "go").touch()
        assert "restarted pool waits" in restarting.result().stderr
    assert background.pid == pid
    assert "completed" in background.cli("job", "show", job).stdout
