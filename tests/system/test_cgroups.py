"""A daemon with a delegated control group: the groups of its pools are created and removed."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="needs root to create control groups")

BOTH = f"""
[defaults]
path = ["{ROOT}"]
[handlers.noop]
call = "tests.support.handlers:noop"
[handlers.waits]
call = "tests.support.handlers:wait_for_file"
"""
ONE, _, _ = BOTH.partition("[handlers.waits]")


def _mount() -> Path | None:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 ") and before.split(" ")[3] == "/":
            return Path(before.split(" ")[4])
    return None


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group marked as delegated, the way systemd does it."""
    mount = _mount()
    if mount is None:
        pytest.skip("no cgroup v2 hierarchy is mounted")
    made = mount / f"workerd-test-{os.getpid()}"
    made.mkdir()
    try:
        os.setxattr(made, "user.delegate", b"1")
        yield made
    finally:
        eventually(lambda: _removed(made), within=10)


def _removed(group: Path) -> bool:
    for folder in (*sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True), group):
        with contextlib.suppress(OSError):
            folder.rmdir()
    return not group.exists()


@pytest.fixture
def daemon(group: Path, tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path / "node", f"sqlite:///{tmp_path}/store.db", BOTH)
    own = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line[:3] == "0::")
    (group / "cgroup.procs").write_text("0")  # the daemon inherits the group of its parent
    try:
        daemon.spawn()
    finally:
        (group.parent / own.strip("/") / "cgroup.procs").write_text("0")
    try:
        eventually(daemon.ready, state=daemon.tail)
        yield daemon
    finally:
        daemon.end()


def test_reload_removes_the_group_of_a_dropped_pool(group: Path, daemon: Daemon) -> None:
    """The groups of the other pools stay as they are."""
    pids = {name: pool["pid"] for name, pool in daemon.status()["pools"].items()}
    for name, pid in pids.items():
        assert (group / f"pool.{name}" / "manager" / "cgroup.procs").read_text().split() == [str(pid)]
    daemon.write(ONE)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    eventually(lambda: not (group / "pool.waits").exists(), state=daemon.tail)
    assert (group / "pool.noop" / "manager" / "cgroup.procs").read_text().split() == [str(pids["noop"])]
    daemon.write(BOTH)
    daemon.process.send_signal(signal.SIGHUP)
    eventually(lambda: (group / "pool.waits" / "worker.1").exists(), state=daemon.tail)
