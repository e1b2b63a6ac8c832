"""The supervisor over real children: restarts, quarantine, watchdog, reload, an end without left-overs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.eventually import eventually
from workerd.runtime.control import ask


class Node:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"

    def start(self, *pools: str) -> Node:
        self.configure(*pools)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.supervisor.node", str(self.folder)], stderr=log, stdout=log
            )
        return self

    def configure(self, *pools: str) -> None:
        (self.folder / "pools").write_text(json.dumps(pools))

    def status(self) -> dict[str, Any]:
        try:
            return ask(self.folder / "run/private/supervisor", {"ask": "status"})
        except OSError:
            return {}

    def reload(self) -> dict[str, Any]:
        return ask(self.folder / "run/private/supervisor", {"ask": "reload"}, timeout=60.0)

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return bool(self.status().get("ready"))

    def role(self, name: str) -> dict[str, Any]:
        return dict(self.status()["roles"][name])

    def pool(self, name: str) -> dict[str, Any]:
        return dict(self.status()["pools"][name])

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def assert_gone(processes: list[psutil.Process]) -> None:
    """The processes have ended; whose parent died with them stays a zombie until init looks."""
    eventually(lambda: not any(is_alive(p) for p in processes), within=5)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    tree = [] if node.process.poll() is not None else node.descendants()
    with contextlib.suppress(ProcessLookupError):
        node.process.kill()
    node.process.wait()
    assert_gone(tree)


def ended_clean(node: Node, processes: list[psutil.Process]) -> None:
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
    ended_clean(node, processes)


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


def test_strangers_are_ended(node: Node) -> None:
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


def test_reload_restarts_only_what_changed(node: Node) -> None:
    """SIGHUP adds, removes and leaves alone exactly what the new configuration says."""
    node.start("a", "b")
    eventually(node.is_ready)
    kept = node.pool("a")["pid"]
    node.configure("a", "c")
    answer = node.reload()
    assert answer == {"ok": True, "changes": ["dispatcher", "pool:c", "pool:b"], "failed": {}}
    assert node.events("reload.finished")
    assert set(node.status()["pools"]) == {"a", "c"}
    assert node.is_ready()
    assert node.pool("a")["pid"] == kept
    assert node.stop() == 0


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("dies", "pool:dies ended with exit status 3"),
        ("falls", "pool:falls ended with exit status 4"),
        ("loops", "pool:loops ended because its workers die without having a job"),
        ("waits", "It waits for something that is not there."),
        ("hangs", "pool:hangs is not up after 1 s"),
    ],
)
def test_a_reload_whose_pool_does_not_stay_up_has_failed(node: Node, name: str, sentence: str) -> None:
    """The answer and the log name the child and its sentence; all other children are restarted."""
    node.start("a")
    eventually(node.is_ready)
    node.configure(name, "b")
    answer = node.reload()
    assert answer["ok"] is False
    assert answer["failed"] == {f"pool:{name}": sentence}
    assert set(answer["changes"]) == {"dispatcher", "pool:a", "pool:b", f"pool:{name}"}
    (event,) = node.events("reload.failed")
    assert event["children"] == f"pool:{name}"
    assert sentence in event["error"]
    assert not node.events("reload.finished")
    assert node.pool("b")["state"] == "up"
    assert set(node.status()["pools"]) == {"b", name}
    assert node.stop() == 0


@pytest.mark.parametrize("fate", ["falls", "waits"])
def test_a_reload_whose_roles_do_not_stay_up_has_failed(node: Node, fate: str) -> None:
    """A reload that breaks a role has failed, though the role is restarted; the next one may mend it."""
    node.start("a")
    eventually(node.is_ready)
    (node.folder / "fate").write_text(fate)
    node.configure("a", "debug")
    answer = node.reload()
    assert answer["ok"] is False
    assert set(answer["failed"]) == {"ingester", "dispatcher"}
    (node.folder / "fate").write_text("")
    node.configure("a")
    assert node.reload()["ok"] is True
    eventually(node.is_ready)
    assert node.stop() == 0


def test_reloads_at_the_same_time_are_one_after_the_other(node: Node) -> None:
    """Each is answered, and each is read afresh."""
    node.start("a")
    eventually(node.is_ready)
    node.configure("b")
    with ThreadPoolExecutor(3) as askers:
        answers = list(askers.map(lambda _: node.reload(), range(3)))
    assert [answer["ok"] for answer in answers] == [True] * 3
    assert sorted(len(answer["changes"]) for answer in answers) == [0, 0, 3]
    assert set(node.status()["pools"]) == {"b"}


def test_a_stop_during_a_reload_answers_it(node: Node) -> None:
    """Who asked for the reload is not left waiting."""
    node.start("a")
    eventually(node.is_ready)
    node.configure("hangs")
    with ThreadPoolExecutor(1) as asker:
        asked = asker.submit(node.reload)
        eventually(lambda: node.status()["state"] == "reloading")
        node.process.send_signal(signal.SIGTERM)
        assert asked.result() == {"ok": False, "errors": ["workerd is stopping."]}
    assert node.process.wait(30) == 0
