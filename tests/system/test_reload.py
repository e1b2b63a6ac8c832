"""Reload: an invalid configuration is refused as a whole, a valid one drains and restarts what changed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows, assert_settled

CODE = "def answer():\n    return {answer}\n"


def config(folder: Path, *, workers: int = 1, preload: bool = True, more: str = "") -> str:
    return f"""
[shutdown]
drain = "20s"
[defaults]
path = ["{ROOT}", "{folder}"]
[handlers.waits]
call = "tests.support.handlers:wait_for_file"
workers = {workers}
[handlers.noop]
call = "tests.support.handlers:noop"
[handlers.answer]
call = "answering:answer"
preload = {str(preload).lower()}
{more}
"""


class ReloadHarness:
    """A daemon on SQLite whose handler code and configuration the test rewrites."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.code = folder / "answering.py"
        self.write_code(1)
        self.url = f"sqlite:///{folder}/store.db"
        self.rows = Rows(self.url)
        self.daemon = Daemon(folder / "node", self.url, config(folder))

    def write_code(self, answer: int) -> None:
        fresh = self.code.with_suffix(".new")
        fresh.write_text(CODE.format(answer=answer))
        # On file systems with coarse times two versions must still differ.
        os.utime(fresh, ns=(answer * 10**9, answer * 10**9))
        fresh.replace(self.code)

    def send_hup(self) -> None:
        assert self.daemon.process is not None
        self.daemon.process.send_signal(signal.SIGHUP)

    def wait_until_reloaded(self, times: int = 1) -> None:
        eventually(lambda: self.event_count("reload.finished") >= times, state=self.daemon.tail)
        eventually(self.daemon.ready, state=self.daemon.tail)

    def event_count(self, event: str) -> int:
        return self.daemon.logged().count(f'"event":"{event}"')

    def pids(self) -> dict[str, int]:
        status = self.daemon.status()
        children = {**status["roles"], **{f"pool:{name}": pool for name, pool in status["pools"].items()}}
        return {name: child["pid"] for name, child in children.items()}

    def answer(self) -> Any:
        job = self.rows.insert("answer")
        eventually(lambda: self.rows.ended(job), state=self.daemon.tail)
        return self.rows.last(job)["payload"]


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[ReloadHarness]:
    harness = ReloadHarness(tmp_path)
    with harness.daemon:
        yield harness


def changed(before: dict[str, int], after: dict[str, int]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_an_invalid_configuration_is_refused_as_a_whole(harness: ReloadHarness) -> None:
    """Nothing of it takes effect, every error is reported, and all children keep running."""
    before = harness.pids()
    harness.daemon.write(config(harness.folder, workers=3, more='[dispatcher]\nbach = 7\npoll = "soon"\n'))
    harness.send_hup()
    eventually(lambda: harness.event_count("reload.refused"), state=harness.daemon.tail)
    assert "dispatcher.bach" in harness.daemon.logged()
    assert "dispatcher.poll" in harness.daemon.logged()
    done = harness.daemon.cli("reload", check=False)
    assert done.returncode == 2
    assert "batch" in done.stderr
    assert harness.pids() == before
    assert len(harness.daemon.status()["pools"]["waits"]["workers"]) == 1
    assert harness.answer() == b"1"


def test_only_changed_pools_are_drained_and_restarted(harness: ReloadHarness) -> None:
    """A running job of the changed pool ends in its old process; other pools are not touched."""
    go = harness.folder / "go"
    job = harness.rows.insert("waits", {"path": str(go)})
    eventually(lambda: harness.daemon.runs(job))
    before = harness.pids()
    harness.daemon.write(
        config(harness.folder, workers=2, more='[handlers.more]\ncall = "tests.support.handlers:noop"\n')
    )
    harness.send_hup()
    eventually(lambda: harness.daemon.status()["pools"]["waits"]["state"] == "draining")
    other = harness.rows.insert("noop")
    eventually(lambda: harness.rows.ended(other))
    go.touch()
    harness.wait_until_reloaded()
    after = harness.pids()
    # The dispatcher and the gateway know the handlers, so a new one restarts them too.
    assert changed(before, after) <= {"pool:waits", "pool:more", "dispatcher", "gateway"}
    assert {"pool:waits", "pool:more"} <= changed(before, after)
    assert len(harness.daemon.status()["pools"]["waits"]["workers"]) == 2
    assert [row["reason"] for row in harness.rows.attempts(job)] == ["ok"]
    jobs = [harness.rows.insert(name) for name in ("more", "noop")]
    eventually(lambda: harness.rows.ended(*jobs), state=harness.daemon.tail)
    assert harness.daemon.stop() == 0
    assert_settled(harness.rows)


@pytest.mark.slow
def test_jobs_of_a_removed_pool_stay_in_the_store(harness: ReloadHarness) -> None:
    """They wait until a node serves their handler again."""
    text = config(harness.folder)
    harness.daemon.write(text[: text.index("[handlers.answer]")])
    harness.send_hup()
    harness.wait_until_reloaded()
    assert set(harness.daemon.status()["pools"]) == {"waits", "noop"}
    left = harness.rows.insert("answer")
    beside = harness.rows.insert("noop")
    eventually(lambda: harness.rows.ended(beside))
    assert harness.rows.last(left)["status"] == "new"
    harness.daemon.write(text)
    harness.send_hup()
    harness.wait_until_reloaded(2)
    eventually(lambda: harness.rows.ended(left), state=harness.daemon.tail)


@pytest.mark.parametrize("preload", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_changed_handler_code_is_reloaded(tmp_path: Path, preload: bool) -> None:
    """Only the pool of that code is restarted; a reload without a change restarts nothing."""
    harness = ReloadHarness(tmp_path)
    harness.daemon.write(config(tmp_path, preload=preload))
    with harness.daemon:
        before = harness.pids()
        assert harness.answer() == b"1"
        harness.send_hup()
        harness.wait_until_reloaded()
        assert harness.pids() == before
        harness.write_code(2)
        eventually(lambda: harness.daemon.status()["pools"]["answer"]["stale"])
        harness.send_hup()
        harness.wait_until_reloaded(2)
        assert changed(before, harness.pids()) == {"pool:answer"}
        assert harness.answer() == b"2"
        eventually(lambda: not harness.daemon.status()["pools"]["answer"]["stale"])


def test_a_reload_with_broken_handler_code_fails_for_its_pool_only(
    harness: ReloadHarness,
) -> None:
    """The command names the pool and the cause; other pools work, its jobs wait, the next reload fixes it."""
    harness.code.write_text("this is no Python\n")
    waiting = harness.rows.insert("noop")
    done = harness.daemon.cli("reload", check=False)
    assert done.returncode == 1
    assert "pool:answer" in done.stderr
    assert "SyntaxError" in done.stderr
    assert harness.event_count("reload.failed") == 1
    assert "SyntaxError" in harness.daemon.status()["pools"]["answer"]["trouble"]
    job = harness.rows.insert("answer")
    eventually(lambda: harness.rows.ended(waiting))
    assert harness.rows.last(job)["status"] == "new"
    harness.write_code(3)
    harness.send_hup()
    eventually(lambda: harness.rows.ended(job), state=harness.daemon.tail)
    assert harness.rows.last(job)["payload"] == b"3"


def test_a_reload_with_a_wrong_store_url_is_refused(harness: ReloadHarness) -> None:
    """With it, ingester and dispatcher could never start."""
    before = harness.pids()
    harness.daemon.url = "mysql://u@h/db?ssl=foo"
    harness.daemon.write(config(harness.folder))
    done = harness.daemon.cli("reload", check=False)
    assert done.returncode == 2
    assert "store.url" in done.stderr
    harness.send_hup()
    eventually(lambda: harness.event_count("reload.refused"), state=harness.daemon.tail)
    assert harness.pids() == before


@pytest.mark.slow
def test_a_reload_with_an_unreachable_store_fails(harness: ReloadHarness) -> None:
    """Roles that wait for the store do not count as up; the next reload with a reachable store succeeds."""
    harness.daemon.url = f"sqlite:///{harness.folder}/missing/store.db"
    harness.daemon.write(config(harness.folder))
    done = harness.daemon.cli("reload", check=False)
    assert done.returncode == 1
    assert "ingester" in done.stderr
    assert "dispatcher" in done.stderr
    harness.daemon.url = harness.url
    harness.daemon.write(config(harness.folder))
    assert harness.daemon.cli("reload", check=False).returncode == 0
    assert harness.answer() == b"1"


def test_a_stop_during_a_reload_stops_every_child(harness: ReloadHarness) -> None:
    """No child is left and no job is lost."""
    go = harness.folder / "go"
    job = harness.rows.insert("waits", {"path": str(go)})
    eventually(lambda: harness.daemon.runs(job))
    harness.daemon.write(config(harness.folder, workers=2, more='[dispatcher]\npoll = "200ms"\n'))
    harness.send_hup()
    eventually(lambda: harness.event_count("reload.started"))
    tree = harness.daemon.tree()
    assert harness.daemon.process is not None
    harness.daemon.process.send_signal(signal.SIGTERM)
    eventually(lambda: harness.daemon.status().get("state") in ("draining", None))
    go.touch()
    assert harness.daemon.process.wait(30) == 0
    assert not any(process.is_running() for process in tree)
    assert [row["reason"] for row in harness.rows.attempts(job)] == ["ok"]
    assert_settled(harness.rows)
