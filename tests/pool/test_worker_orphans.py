"""Dead children that nobody waits for do not pile up in a worker."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.eventually import eventually
from workerd.runtime.reaper import Orphans


def is_zombie(pid: int) -> bool:
    return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()


def test_a_dead_child_is_reaped_at_the_second_look() -> None:
    """At the first one somebody may still be about to wait for it."""
    pid = os.fork()
    if not pid:
        os._exit(3)
    eventually(lambda: is_zombie(pid))
    orphans = Orphans()
    orphans.look()
    assert is_zombie(pid)
    orphans.look()
    assert not os.path.exists(f"/proc/{pid}")


def test_a_living_child_is_left_alone_and_its_status_is_its_parents() -> None:
    """Who waits in between gets the status."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        orphans = Orphans()
        orphans.look()
        assert child.stdin is not None
        child.stdin.close()
        eventually(lambda: is_zombie(child.pid))
        orphans.look()
        assert child.wait() == 1  # input() met the end of the file
