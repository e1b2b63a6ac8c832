"""Processes that user code left: adopted orphans, and what a run started."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pool.harness import alive
from tests.runtime.conftest import turn_until
from tests.support.eventually import eventually
from workerd.runtime import reaper
from workerd.runtime.child import become_subreaper, children_of, fork
from workerd.runtime.loop import Loop
from workerd.runtime.reaper import OrphanReaper, RunProcesses


def test_orphans_are_killed_down_to_the_last_generation(tmp_path: Path) -> None:
    """Orphans of orphans are adopted one after the other; none is left, and the known child lives."""

    def family() -> int:
        become_subreaper()
        loop = Loop()
        known = os.fork()
        if known == 0:
            time.sleep(600)
        if os.fork() == 0:
            for _ in range(3):
                if os.fork() == 0:
                    os.setsid()
            (tmp_path / str(os.getpid())).touch()
            time.sleep(600)
        eventually(lambda: len(list(tmp_path.iterdir())) == 8)
        reaper = OrphanReaper(loop, lambda: {known})
        reaper.sweep()
        turn_until(loop, lambda: not reaper.busy)
        kept = alive(known) and reaper.killed == 8
        os.kill(known, signal.SIGKILL)
        return 0 if kept else 1

    child = fork(family)
    assert eventually(lambda: child.reap() is not None)
    assert child.status == 0
    assert not [path for path in tmp_path.iterdir() if alive(int(path.name))]
    child.close()


def is_zombie(pid: int) -> bool:
    return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()


def test_what_a_run_left_is_killed_and_reaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Detached descendants too; the children of before the run live on."""
    monkeypatch.setattr(reaper, "END_TIMEOUT_S", 60.0)  # dying takes time on a busy machine

    def worker() -> int:
        become_subreaper()
        kept = os.fork()
        if kept == 0:
            time.sleep(600)
        processes = RunProcesses()
        processes.capture()
        if os.fork() == 0:
            for _ in range(3):
                if os.fork() == 0:
                    os.setsid()
            (tmp_path / str(os.getpid())).touch()
            os._exit(0) if os.getpid() % 2 else time.sleep(600)
        eventually(lambda: len(list(tmp_path.iterdir())) == 8)
        processes.end_run()
        left = children_of(os.getpid())
        os.kill(kept, signal.SIGKILL)
        return 0 if left == [kept] else 1

    child = fork(worker)
    assert eventually(lambda: child.reap() is not None)
    assert child.status == 0
    assert not [path for path in tmp_path.iterdir() if os.path.exists(f"/proc/{path.name}")]
    child.close()


def test_a_zombie_of_an_idle_worker_is_reaped_at_the_second_check() -> None:
    """At the first one, its parent may still be about to wait for it."""
    pid = os.fork()
    if not pid:
        os._exit(3)
    eventually(lambda: is_zombie(pid))
    processes = RunProcesses()
    processes.while_idle()
    assert is_zombie(pid)
    processes.while_idle()
    assert not os.path.exists(f"/proc/{pid}")


def test_a_status_that_user_code_has_not_asked_for_is_not_lost() -> None:
    """The object that stands for the process learns it when the process is reaped."""
    processes = RunProcesses()
    processes.capture()  # the servers of other tests are children of this process too
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]) as child:
        other = multiprocessing.get_context("fork").Process(target=os._exit, args=(4,))
        other.start()
        assert other.pid is not None
        eventually(lambda: is_zombie(child.pid))
        processes.end_run()
        assert not os.path.exists(f"/proc/{child.pid}")
        assert not os.path.exists(f"/proc/{other.pid}")
        assert child.wait() == 3
        assert other.exitcode in (4, -signal.SIGKILL)


def test_a_living_child_of_an_idle_worker_is_left_alone() -> None:
    """A thread of user code may be waiting for it."""
    processes = RunProcesses()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        processes.while_idle()
        assert child.stdin is not None
        child.stdin.close()
        eventually(lambda: is_zombie(child.pid))
        processes.while_idle()
        assert child.wait() == 1  # input() reached the end of the file
