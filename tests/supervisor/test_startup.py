"""Startup before the first fork: folders, lock, incarnation, runtime files."""

from __future__ import annotations

import os
import signal
import stat
import time
from pathlib import Path

import pytest
import setproctitle

from tests.support.descriptors import open_descriptors
from tests.support.eventually import eventually
from workerd.config.model import NodeConfig
from workerd.runtime.child import fork
from workerd.runtime.paths import Paths
from workerd.supervisor import startup
from workerd.supervisor.startup import AlreadyRunning, BootError, RuntimeFiles


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(NodeConfig(runtime_dir=tmp_path / "run", state_dir=tmp_path / "state"))
    startup.make_folders(paths)
    return paths


def test_private_folders_are_private(paths: Paths) -> None:
    """Also when another program made them in advance."""
    paths.private.chmod(0o777)
    startup.make_folders(paths)
    for path in (paths.private, paths.spool):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


@pytest.mark.parametrize(("shared", "own"), [(0o755, 0o755), (0o750, 0o750), (0o775, 0o755)])
def test_a_later_generation_is_reached_by_those_who_reach_the_first(
    paths: Paths, tmp_path: Path, shared: int, own: int
) -> None:
    """Whatever the umask of the daemon; nobody else may write there."""
    paths.runtime.chmod(shared)
    later = Paths(NodeConfig(runtime_dir=tmp_path / "run", state_dir=tmp_path / "state", generation=2))
    umask = os.umask(0o077)
    try:
        startup.make_folders(later)
    finally:
        os.umask(umask)
    for path in (later.runtime, later.runtime.parent):
        assert stat.S_IMODE(path.stat().st_mode) == own
    assert stat.S_IMODE(later.private.stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_made_names_its_key(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    paths = Paths(NodeConfig(runtime_dir=tmp_path / "run", state_dir=tmp_path / "file" / "state"))
    with pytest.raises(BootError, match=r"node\.state_dir"):
        startup.make_folders(paths)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775])
@pytest.mark.parametrize("folder", ["runtime", "state"])
def test_a_folder_that_others_may_write_is_refused(paths: Paths, folder: str, mode: int) -> None:
    """They could replace the pid file, the lock or a socket in it."""
    found: Path = getattr(paths, folder)
    found.chmod(mode)
    with pytest.raises(BootError, match=f"{found} may be written by other users; `chmod go-w"):
        startup.make_folders(paths)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("folder", ["runtime", "private", "state", "spool"])
def test_a_folder_of_another_user_is_refused(paths: Paths, folder: str) -> None:
    """The sentence names the owner."""
    found: Path = getattr(paths, folder)
    os.chown(found, 65534, 65534)
    with pytest.raises(BootError, match=f"{found} belongs to nobody"):
        startup.make_folders(paths)


@pytest.mark.parametrize("name", ["lock", "pid", "private", "spool"])
def test_no_symbolic_link_is_followed(paths: Paths, tmp_path: Path, name: str) -> None:
    """What it leads to stays as it is."""
    link: Path = getattr(paths, name)
    other = tmp_path / "other"
    if link.is_dir():
        link.rmdir()
        other.mkdir(0o755)
        link.symlink_to(other)
        with pytest.raises(BootError, match=str(link)):
            startup.make_folders(paths)
        assert stat.S_IMODE(other.stat().st_mode) == 0o755
    else:
        other.write_text("kept")
        link.symlink_to(other)
        with pytest.raises(BootError, match=str(link)):
            startup.take_lock(link)
        assert other.read_text() == "kept"


def test_a_lock_that_is_held_names_the_holder(paths: Paths) -> None:
    def hold() -> int:
        startup.take_lock(paths.lock)
        signal.pause()
        return 0

    holder = fork(hold)
    try:
        eventually(lambda: paths.lock.exists() and paths.lock.read_text() == f"{holder.pid}\n")
        with pytest.raises(AlreadyRunning, match=str(holder.pid)) as caught:
            startup.take_lock(paths.lock)
        assert caught.value.pid == holder.pid
    finally:
        holder.kill()
        eventually(lambda: holder.reap() is not None)
        holder.close()


def test_a_stopped_child_of_a_dead_supervisor_is_killed_for_its_lock(paths: Paths) -> None:
    """It holds the lock that it inherited and would never end by itself."""
    reading, writing = os.pipe()

    def supervisor() -> int:
        startup.take_lock(paths.lock)
        leftover = os.fork()
        if leftover == 0:
            setproctitle.setproctitle("workerd: pool x")
            os.write(writing, str(os.getpid()).encode())
            os.kill(os.getpid(), signal.SIGSTOP)
        os.waitpid(leftover, os.WUNTRACED)
        return 0

    child = fork(supervisor, keep=(writing,))
    eventually(lambda: child.reap() == 0)
    child.close()
    leftover = int(os.read(reading, 32))
    began = time.monotonic()
    os.close(startup.take_lock(paths.lock))
    assert startup.KILL_LEFTOVERS_AFTER_S <= time.monotonic() - began < startup.LOCK_WAIT_S
    eventually(lambda: not Path(f"/proc/{leftover}/cmdline").exists() or is_zombie(leftover))
    for fd in (reading, writing):
        os.close(fd)


def is_zombie(pid: int) -> bool:
    return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()


def test_each_start_is_a_new_incarnation_and_former_ones_are_kept(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to a limit: rows of the newest ones are rescued at once."""
    monkeypatch.setattr(startup, "MAX_INCARNATIONS", 3)
    ids = [startup.begin_incarnation(paths).hex() for _ in range(5)]
    assert len(set(ids)) == 5
    assert paths.incarnations.read_text().split() == ids[-3:]


def test_runtime_files_that_were_removed_are_noticed_and_renewed(paths: Paths) -> None:
    """A cleaner of temporary files may remove them under a running harness."""
    files = RuntimeFiles(paths)
    paths.supervisor.touch()
    paths.dispatcher.touch()
    files.note_sockets()
    assert files.intact
    assert files.reachable
    paths.dispatcher.unlink()
    assert not files.reachable
    paths.pid.unlink()
    assert not files.intact
    files.renew()
    assert paths.pid.read_text() == f"{os.getpid()}\n"
    files.remove()
    assert not paths.pid.exists()


def test_a_pid_file_that_cannot_be_renewed_costs_no_other_descriptor(paths: Paths, tmp_path: Path) -> None:
    """The lock is held until there is a new one: its number would be another file's at the next try."""
    files = RuntimeFiles(paths)
    paths.pid.unlink()
    paths.pid.symlink_to(tmp_path / "nowhere")
    before = open_descriptors()
    for _ in range(2):
        with pytest.raises(BootError):
            files.renew()
    assert open_descriptors() == before
    paths.pid.unlink()
    files.renew()
    assert len(open_descriptors()) == len(before)
    files.remove()
