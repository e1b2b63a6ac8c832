"""The supervisor over real children: restarts, quarantine, watchdog, an end without leftovers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import psutil
import pytest

from tests.supervisor.conftest import SupervisorHarness, assert_gone
from tests.support.eventually import eventually


def assert_ended_clean(harness: SupervisorHarness, processes: list[psutil.Process]) -> None:
    """Nothing of the node is left: no process, no socket, no pid file."""
    assert_gone(processes)
    assert [p.name for p in (harness.folder / "run").rglob("*") if p.is_socket() or p.is_file()] == []


def test_ready_and_stopped(harness: SupervisorHarness) -> None:
    """A node is ready when all its children are up, and SIGTERM ends it without left-overs."""
    harness.start("a", "b")
    eventually(harness.is_ready)
    processes = harness.descendants()
    assert len(processes) == 4
    assert harness.stop() == 0
    assert_ended_clean(harness, processes)


@pytest.mark.parametrize("name", ["ingester", "dispatcher"])
def test_killed_role_is_restarted(harness: SupervisorHarness, name: str) -> None:
    """A role that is killed is replaced, and the death is counted with its reason."""
    harness.start("a")
    eventually(harness.is_ready)
    pid = harness.role(name)["pid"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: harness.is_ready() and harness.role(name)["pid"] not in (None, pid))
    assert harness.role(name)["restart_reasons"] == {"signal": 1}


def test_roles_know_whether_the_store_was_used_before_them(harness: SupervisorHarness) -> None:
    """Since a dispatcher was up: the next one must not make a store that is gone anew."""
    harness.start("a")
    eventually(harness.is_ready)
    pid = harness.role("dispatcher")["pid"]
    assert not harness.role("dispatcher")["store_was_used"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: harness.is_ready() and harness.role("dispatcher")["pid"] not in (None, pid))
    assert harness.role("dispatcher")["store_was_used"]


def test_role_killed_again_and_again_is_back_at_once(harness: SupervisorHarness) -> None:
    """However often a role is killed at its work, the pause before the next start does not grow."""
    harness.start("a")
    pid = 0

    def back() -> bool:
        return harness.is_ready() and harness.role("dispatcher")["pid"] not in (None, pid)

    for _ in range(8):
        eventually(back)
        pid = harness.role("dispatcher")["pid"]
        os.kill(pid, signal.SIGKILL)
    eventually(back)
    pauses = [float(said) for said in re.findall(r'"restart_in_s":([0-9.]+)', harness.log.read_text())]
    assert pauses
    assert max(pauses) <= 0.2


def test_stopped_role_is_killed_by_the_watchdog(harness: SupervisorHarness) -> None:
    """A role that lives without progress is killed and replaced."""
    harness.start("a")
    eventually(harness.is_ready)
    pid = harness.role("ingester")["pid"]
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: harness.role("ingester")["pid"] not in (None, pid) and harness.is_ready())
    assert harness.role("ingester")["restart_reasons"] == {"killed": 1}


@pytest.mark.parametrize("name", ["dies", "loops"])
def test_crash_looping_pool_is_quarantined(harness: SupervisorHarness, name: str) -> None:
    """A pool that dies at once is quarantined while the others and the node are ready."""
    harness.start("a", name)
    eventually(harness.is_ready)
    pool = harness.pool(name)
    assert pool["quarantined"]
    assert pool["trouble"]
    assert harness.pool("a")["state"] == "up"


def test_a_killed_supervisor_kills_its_tree(harness: SupervisorHarness) -> None:
    """No process survives a killed supervisor, and nothing blocks the next start."""
    harness.start("a", "b")
    eventually(harness.is_ready)
    children = [p for p in harness.descendants() if p.ppid() == harness.process.pid]
    harness.process.kill()
    harness.process.wait()
    assert_gone(children)
    harness.start("a")
    eventually(harness.is_ready)
    assert harness.stop() == 0


def test_orphans_are_killed(harness: SupervisorHarness) -> None:
    """Orphans of a dead pool, in their own session, are killed and reaped."""
    harness.start("leaves-children")
    eventually(harness.is_ready)
    pid = harness.pool("leaves-children")["pid"]
    old = [p for p in harness.descendants() if p.pid != pid and p.ppid() in (pid, harness.process.pid)]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: harness.is_ready() and harness.pool("leaves-children")["pid"] != pid)
    assert harness.stop() == 0
    assert_gone(old)


def test_second_start_is_refused(harness: SupervisorHarness) -> None:
    """A second daemon on the same folders names the running one and changes nothing."""
    harness.start("a")
    eventually(harness.is_ready)
    second = subprocess.run(
        [sys.executable, "-m", "tests.supervisor.node", str(harness.folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode != 0
    assert str(harness.process.pid) in second.stderr
    assert harness.is_ready()
    assert harness.stop() == 0


def test_a_child_that_cannot_be_forked_is_tried_again(harness: SupervisorHarness) -> None:
    """The kernel may be out of processes or memory for a while."""
    harness.start("a")
    eventually(harness.is_ready)
    (harness.folder / "no-fork").touch()
    os.kill(harness.pool("a")["pid"], signal.SIGKILL)
    eventually(lambda: harness.events("child.fork_failed"))
    assert "cannot be forked" in harness.pool("a")["trouble"]
    assert harness.role("ingester")["state"] == "up"
    (harness.folder / "no-fork").unlink()
    eventually(harness.is_ready)
    assert harness.pool("a")["trouble"] == ""


def test_a_start_that_fails_is_said_once(harness: SupervisorHarness) -> None:
    """Although both roles cannot work; nothing is said of running jobs, as none ran."""
    (harness.folder / "fate").write_text("fatal")
    harness.start("a")
    assert harness.process.wait(30) == 3
    (event,) = harness.events("node.start_failed")
    assert event["error"] == "It cannot work on this node."
    assert not harness.events("drain.skipped")


def test_the_roster_names_living_roles_however_often_others_die(harness: SupervisorHarness) -> None:
    """A role that is not named could never connect again."""
    harness.start("a")
    eventually(harness.is_ready)
    for _ in range(3):
        pid = harness.role("ingester")["pid"]
        os.kill(pid, signal.SIGKILL)
        eventually(lambda old=pid: harness.role("ingester")["pid"] not in (None, old) and harness.is_ready())
    status = harness.status()
    pids = {name: role["pid"] for name, role in status["roles"].items()}
    assert status["roles"]["dispatcher"]["known_roles"] == pids
    assert harness.stop() == 0
