"""Which process the pid file may name before it is signalled."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from workerd.cli.errors import CommandFailed
from workerd.cli.running import RunningDaemon
from workerd.config.model import Config, NodeConfig
from workerd.runtime.child import Child, fork

NOBODY = 65534


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    yield process
    assert process.poll() is None
    process.kill()
    process.wait()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "run").mkdir()
    return Config(node=NodeConfig(name="n", runtime_dir=tmp_path / "run", state_dir=tmp_path / "state"))


def hold(path: Path, text: str, uid: int) -> Child:
    """A process of this user that has written the text into the file and holds its lock."""
    path.touch()
    os.chown(path, uid, uid)
    ready, tell = os.pipe()

    def main() -> int:
        fd = os.open(path, os.O_RDWR)
        os.setuid(uid)
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(fd, text.encode())
        os.write(tell, b".")
        signal.pause()
        return 0

    child = fork(main, keep=(tell,))
    os.close(tell)
    assert os.read(ready, 1) == b"."
    os.close(ready)
    return child


def end(child: Child) -> None:
    child.kill()
    eventually(lambda: child.reap() is not None)
    child.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_a_process_of_another_user_than_the_files_is_not_signalled(
    config: Config, tmp_path: Path, victim: subprocess.Popen[bytes]
) -> None:
    """The user of the daemon may write any pid into its file, and root may signal any."""
    holder = hold(tmp_path / "run" / "workerd.pid", f"{victim.pid}\n", NOBODY)
    try:
        with pytest.raises(CommandFailed, match=f"names process {victim.pid}, .* as nobody"):
            RunningDaemon.find(config)
    finally:
        end(holder)


def test_a_process_that_does_not_hold_the_lock_is_not_signalled(
    config: Config, tmp_path: Path, victim: subprocess.Popen[bytes]
) -> None:
    """Although it is one of the same user."""
    holder = hold(tmp_path / "run" / "workerd.pid", f"{victim.pid}\n", os.geteuid())
    try:
        with pytest.raises(CommandFailed, match="nothing was signalled"):
            RunningDaemon.find(config)
    finally:
        end(holder)


def test_the_holder_of_the_lock_is_found_and_signalled(config: Config, tmp_path: Path) -> None:
    holder = hold(tmp_path / "run" / "workerd.pid", "", os.geteuid())
    (tmp_path / "run" / "workerd.pid").write_text(f"{holder.pid}\n")
    found = RunningDaemon.find(config)
    assert found is not None
    found.signal(signal.SIGKILL)
    eventually(lambda: not found.is_alive())
    end(holder)


@pytest.mark.parametrize("kind", ["link", "fifo", "second name"])
def test_a_pid_file_that_is_no_plain_file_is_refused(config: Config, tmp_path: Path, kind: str) -> None:
    """A link would let its owner name the pid file of any other daemon; nothing blocks on a FIFO."""
    path, other = tmp_path / "run" / "workerd.pid", tmp_path / "other.pid"
    other.write_text(f"{os.getpid()}\n")
    if kind == "link":
        path.symlink_to(other)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.hardlink_to(other)
    with pytest.raises(CommandFailed, match="cannot be read"):
        RunningDaemon.find(config)
