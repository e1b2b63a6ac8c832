"""Pools and workers in control groups of a real kernel, with the controllers that this host has."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from workerd.runtime.cgroup import Delegation, PoolGroup, WorkerGroup
from workerd.runtime.child import fork

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root may mount and make cgroups")

SLEEPER = "import time; time.sleep(1000)"


@pytest.fixture
def delegation() -> Iterator[Delegation]:
    """A subtree of this machine's version 2 hierarchy, mounted for the test, with this process outside."""
    with tempfile.TemporaryDirectory() as mount:
        if subprocess.run(["mount", "-t", "cgroup2", "none", mount]).returncode:
            pytest.skip("no version 2 hierarchy can be mounted here")
        root = Path(mount, f"workerd-test-{os.getpid()}")
        try:
            root.mkdir()
            wanted = (root / "cgroup.controllers").read_text().split()
            if not wanted:
                (Path(mount) / "cgroup.subtree_control").write_text(
                    " ".join(f"+{c}" for c in Path(mount, "cgroup.controllers").read_text().split())
                )
            yield Delegation(root)
        finally:
            eventually(lambda: _removed(root), within=10)
            subprocess.run(["umount", mount], check=True)


def _removed(root: Path) -> bool:
    for folder in sorted((p for p in root.rglob("*") if p.is_dir()), reverse=True):
        if (folder / "cgroup.kill").exists():
            (folder / "cgroup.kill").write_text("1")
        try:
            folder.rmdir()
        except OSError:
            return False
    root.rmdir()
    return True


def in_pool(delegation: Delegation, name: str, main: Callable[[PoolGroup], object], **limits: int) -> None:
    """Run `main` in a process that is the manager of that pool; it must exit with 0."""

    def manage() -> int:
        main(delegation.pool_group(name, **limits))
        return 0

    child = fork(manage)
    eventually(lambda: child.reap() is not None, within=60)
    child.close()
    assert child.status == 0


def worker(group: WorkerGroup, code: str) -> subprocess.Popen[bytes]:
    """A Python process in the group, leader of its own session."""
    return subprocess.Popen(
        [sys.executable, "-c", code], preexec_fn=group.enter, start_new_session=True, stdout=subprocess.PIPE
    )


def test_a_kill_reaches_detached_processes(delegation: Delegation) -> None:
    """Killing a worker kills its setsid and double-forked children, and no process of another worker."""

    def main(pool: PoolGroup) -> None:
        first, second = pool.worker_group(0), pool.worker_group(1)
        code = (
            "import os, subprocess, sys\n"
            f"subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], start_new_session=True)\n"
            f"if not os.fork(): os.setsid(); os.fork() or exec({SLEEPER!r})\n"
            f"print('up', flush=True)\n{SLEEPER}"
        )
        one, other = worker(first, code), worker(second, SLEEPER)
        assert one.stdout is not None
        one.stdout.readline()
        eventually(lambda: len((first.path / "cgroup.procs").read_text().split()) >= 3)
        first.kill()
        eventually(first.empty)
        one.wait()
        assert other.poll() is None
        assert not second.empty()
        assert eventually(first.remove)
        second.kill()
        other.wait()

    in_pool(delegation, "email", main)


def test_a_restarted_pool_sweeps_the_old_groups(delegation: Delegation) -> None:
    """Leftover processes of a dead pool are killed when the new one creates its group."""
    folder = delegation.root / "pool.a%2fb%20%c3%a9"

    def first_life(pool: PoolGroup) -> None:
        left = pool.worker_group(7)
        worker(left, SLEEPER)
        eventually(lambda: not left.empty())

    def second_life(pool: PoolGroup) -> None:
        eventually(WorkerGroup(pool.path / "worker.7", 0).remove)

    in_pool(delegation, "a/b é", first_life)
    assert (folder / "worker.7" / "cgroup.procs").read_text()
    in_pool(delegation, "a/b é", second_life)
    assert eventually(lambda: delegation.kill_pool("a/b é"))
    assert not folder.exists()


def test_processes_are_moved_out_of_the_delegated_group(delegation: Delegation) -> None:
    """They go to `roles`, so that controllers can be enabled; a second call changes nothing."""
    process = subprocess.Popen([sys.executable, "-c", SLEEPER])
    (delegation.root / "cgroup.procs").write_text(str(process.pid))
    assert delegation.prepare()
    assert delegation.prepare()
    assert (delegation.root / "roles" / "cgroup.procs").read_text().split() == [str(process.pid)]
    assert set((delegation.root / "cgroup.subtree_control").read_text().split()) >= delegation.controllers
    process.kill()
    process.wait()


def test_an_out_of_memory_kill_is_counted_in_its_group(delegation: Delegation) -> None:
    """Only the worker over its limit dies, and its group has the count and the peak."""
    if "memory" not in delegation.controllers:
        pytest.skip("this machine's version 2 hierarchy has no memory controller")

    def main(pool: PoolGroup) -> None:
        assert (pool.path / "pids.max").read_text().strip() == "100"
        assert (pool.path / "cpu.weight").read_text().strip() == "50"
        bounded, other = pool.worker_group(0, 64 << 20), pool.worker_group(1, 64 << 20)
        assert (bounded.oom_kills(), other.oom_kills()) == (0, 0)
        one, two = worker(bounded, "x = bytearray(256 << 20)"), worker(other, SLEEPER)
        assert one.wait() == -9
        assert bounded.oom_kills() >= 1
        peak = bounded.peak()
        assert peak is None or 32 << 20 < peak <= 64 << 20
        assert other.oom_kills() == 0
        two.kill()
        assert two.wait() == -9
        assert other.oom_kills() == 0

    in_pool(delegation, "greedy", main, cpu_weight=50, pids_max=100)


def test_a_group_that_was_not_delegated_is_not_found() -> None:
    """Such as the group of a shell, even if root may write it."""
    found = Delegation.find()
    assert found is None or (found.root / "cgroup.type").exists()
