"""Children that a process did not fork itself: adopted orphans, zombies of user code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.pool.harness import alive
from tests.runtime.conftest import turn_until
from tests.support.eventually import eventually
from workerd.runtime.child import become_subreaper, fork
from workerd.runtime.loop import Loop
from workerd.runtime.reaper import OrphanReaper, ZombieReaper


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


def test_a_zombie_is_reaped_at_the_second_check() -> None:
    """At the first one, its parent may still be about to wait for it."""
    pid = os.fork()
    if not pid:
        os._exit(3)
    eventually(lambda: is_zombie(pid))
    zombies = ZombieReaper()
    zombies.check()
    assert is_zombie(pid)
    zombies.check()
    assert not os.path.exists(f"/proc/{pid}")


def test_a_zombie_can_be_waited_for_between_two_checks() -> None:
    """Its status is not lost; a living child is left alone."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        zombies = ZombieReaper()
        zombies.check()
        assert child.stdin is not None
        child.stdin.close()
        eventually(lambda: is_zombie(child.pid))
        zombies.check()
        assert child.wait() == 1  # input() reached the end of the file
