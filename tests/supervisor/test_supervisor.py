"""The supervisor over real children: restarts, quarantine, watchdog, an end without leftovers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import psutil
import pytest

from tests.supervisor.conftest import Node, assert_gone
from tests.support.eventually import eventually


def assert_ended_clean(node: Node, processes: list[psutil.Process]) -> None:
    """Nothing of the node is left: no process, no socket, no pid file."""
    assert_gone(processes)
    assert [p.name for p in (node.folder / "run").rglob("*") if p.is_socket() or p.is_file()] == []


def test_ready_and_stopped(node: Node) -> None:
    """A node is ready when all its children are up, and SIGTERM ends it without left-overs."""
    node.start("a", "b")
    eventually(node.is_ready)
    processes = node.descendants()
    assert len(processes) == 4
    assert node.stop() == 0
    assert_ended_clean(node, processes)


@pytest.mark.parametrize("name", ["ingester", "dispatcher"])
def test_killed_role_is_restarted(node: Node, name: str) -> None:
    """A role that is killed is replaced, and the death is counted with its reason."""
    node.start("a")
    eventually(node.is_ready)
    pid = node.role(name)["pid"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: node.is_ready() and node.role(name)["pid"] not in (None, pid))
    assert node.role(name)["restart_reasons"] == {"signal": 1}


def test_role_killed_again_and_again_is_back_at_once(node: Node) -> None:
    """However often a role is killed at its work, the pause before the next start does not grow."""
    node.start("a")
    pid = 0

    def back() -> bool:
        return node.is_ready() and node.role("dispatcher")["pid"] not in (None, pid)

    for _ in range(8):
        eventually(back)
        pid = node.role("dispatcher")["pid"]
        os.kill(pid, signal.SIGKILL)
    eventually(back)
    pauses = [float(said) for said in re.findall(r'"restart_in_s":([0-9.]+)', node.log.read_text())]
    assert pauses
    assert max(pauses) <= 0.2


def test_stopped_role_is_killed_by_the_watchdog(node: Node) -> None:
    """A role that lives without progress is killed and replaced."""
    node.start("a")
    eventually(node.is_ready)
    pid = node.role("ingester")["pid"]
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: node.role("ingester")["pid"] not in (None, pid) and node.is_ready())
    assert node.role("ingester")["restart_reasons"] == {"killed": 1}


@pytest.mark.parametrize("name", ["dies", "loops"])
def test_crash_looping_pool_is_quarantined(node: Node, name: str) -> None:
    """A pool that dies at once is held back while the others and the node are ready."""
    node.start("a", name)
    eventually(node.is_ready)
    pool = node.pool(name)
    assert pool["quarantined"]
    assert pool["trouble"]
    assert node.pool("a")["state"] == "up"


def test_killed_supervisor_takes_its_tree_along(node: Node) -> None:
    """Nothing survives a killed supervisor, and the next start finds nothing in its way."""
    node.start("a", "b")
    eventually(node.is_ready)
    children = [p for p in node.descendants() if p.ppid() == node.process.pid]
    node.process.kill()
    node.process.wait()
    assert_gone(children)
    node.start("a")
    eventually(node.is_ready)
    assert node.stop() == 0


def test_orphans_are_killed(node: Node) -> None:
    """What a dead pool left behind, in a session of its own and orphaned, is killed and reaped."""
    node.start("leaves-children")
    eventually(node.is_ready)
    pid = node.pool("leaves-children")["pid"]
    old = [p for p in node.descendants() if p.pid != pid and p.ppid() in (pid, node.process.pid)]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: node.is_ready() and node.pool("leaves-children")["pid"] != pid)
    assert node.stop() == 0
    assert_gone(old)


def test_second_start_is_refused(node: Node) -> None:
    """A second daemon of the same folders says who runs already, and changes nothing."""
    node.start("a")
    eventually(node.is_ready)
    second = subprocess.run(
        [sys.executable, "-m", "tests.supervisor.node", str(node.folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode != 0
    assert str(node.process.pid) in second.stderr
    assert node.is_ready()
    assert node.stop() == 0


def test_a_child_that_cannot_be_forked_is_tried_again(node: Node) -> None:
    """The kernel may be out of processes or memory for a while."""
    node.start("a")
    eventually(node.is_ready)
    (node.folder / "no-fork").touch()
    os.kill(node.pool("a")["pid"], signal.SIGKILL)
    eventually(lambda: node.events("child.fork_failed"))
    assert "cannot be forked" in node.pool("a")["trouble"]
    assert node.role("ingester")["state"] == "up"
    (node.folder / "no-fork").unlink()
    eventually(node.is_ready)
    assert node.pool("a")["trouble"] == ""
