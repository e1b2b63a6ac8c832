"""Reload: a wrong configuration is refused whole, a right one restarts what it changes, each draining."""

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


class World:
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
        # A file system with coarse times must not make two versions look alike.
        os.utime(fresh, ns=(answer * 10**9, answer * 10**9))
        fresh.replace(self.code)

    def hup(self) -> None:
        assert self.daemon.process is not None
        self.daemon.process.send_signal(signal.SIGHUP)

    def reloaded(self, times: int = 1) -> None:
        eventually(lambda: self.logged("reload.finished") >= times, state=self.daemon.tail)
        eventually(self.daemon.ready, state=self.daemon.tail)

    def logged(self, event: str) -> int:
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
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    with world.daemon:
        yield world


def changed(before: dict[str, int], after: dict[str, int]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_a_wrong_configuration_is_refused_whole(world: World) -> None:
    """Nothing of it takes effect, every error is reported, and everything runs on."""
    before = world.pids()
    world.daemon.write(config(world.folder, workers=3, more='[dispatcher]\nbach = 7\npoll = "soon"\n'))
    world.hup()
    eventually(lambda: world.logged("reload.refused"), state=world.daemon.tail)
    assert "dispatcher.bach" in world.daemon.logged()
    assert "dispatcher.poll" in world.daemon.logged()
    done = world.daemon.cli("reload", check=False)
    assert done.returncode == 2
    assert "batch" in done.stderr
    assert world.pids() == before
    assert len(world.daemon.status()["pools"]["waits"]["workers"]) == 1
    assert world.answer() == b"1"


def test_only_what_changed_is_restarted_and_it_drains(world: World) -> None:
    """A running job of the changed pool ends in its old process; nothing else is touched."""
    go = world.folder / "go"
    job = world.rows.insert("waits", {"path": str(go)})
    eventually(lambda: world.daemon.runs(job))
    before = world.pids()
    world.daemon.write(
        config(world.folder, workers=2, more='[handlers.more]\ncall = "tests.support.handlers:noop"\n')
    )
    world.hup()
    eventually(lambda: world.daemon.status()["pools"]["waits"]["state"] == "draining")
    other = world.rows.insert("noop")
    eventually(lambda: world.rows.ended(other))
    go.touch()
    world.reloaded()
    after = world.pids()
    # The dispatcher and the gateway know the handlers, so a new one restarts them too.
    assert changed(before, after) <= {"pool:waits", "pool:more", "dispatcher", "gateway"}
    assert {"pool:waits", "pool:more"} <= changed(before, after)
    assert len(world.daemon.status()["pools"]["waits"]["workers"]) == 2
    assert [row["reason"] for row in world.rows.attempts(job)] == ["ok"]
    jobs = [world.rows.insert(name) for name in ("more", "noop")]
    eventually(lambda: world.rows.ended(*jobs), state=world.daemon.tail)
    assert world.daemon.stop() == 0
    assert_settled(world.rows)


@pytest.mark.slow
def test_a_removed_pool_goes_and_its_jobs_stay(world: World) -> None:
    """They wait until some node serves their handler again."""
    text = config(world.folder)
    world.daemon.write(text[: text.index("[handlers.answer]")])
    world.hup()
    world.reloaded()
    assert set(world.daemon.status()["pools"]) == {"waits", "noop"}
    left = world.rows.insert("answer")
    beside = world.rows.insert("noop")
    eventually(lambda: world.rows.ended(beside))
    assert world.rows.last(left)["status"] == "new"
    world.daemon.write(text)
    world.hup()
    world.reloaded(2)
    eventually(lambda: world.rows.ended(left), state=world.daemon.tail)


@pytest.mark.parametrize("preload", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_handler_code_is_loaded_anew_when_its_files_changed(tmp_path: Path, preload: bool) -> None:
    """The pool of that code is restarted, no other; a reload without a change restarts nothing."""
    world = World(tmp_path)
    world.daemon.write(config(tmp_path, preload=preload))
    with world.daemon:
        before = world.pids()
        assert world.answer() == b"1"
        world.hup()
        world.reloaded()
        assert world.pids() == before
        world.write_code(2)
        assert world.daemon.status()["pools"]["answer"]["stale"]
        world.hup()
        world.reloaded(2)
        assert changed(before, world.pids()) == {"pool:answer"}
        assert world.answer() == b"2"
        assert not world.daemon.status()["pools"]["answer"]["stale"]


def test_a_reload_whose_code_does_not_load_has_failed_and_harms_its_own_pool_only(world: World) -> None:
    """The command says which pool and why; the other pools work, its jobs stay, the next reload mends it."""
    world.code.write_text("this is no Python\n")
    waiting = world.rows.insert("noop")
    done = world.daemon.cli("reload", check=False)
    assert done.returncode == 1
    assert "pool:answer" in done.stderr
    assert "SyntaxError" in done.stderr
    assert world.logged("reload.failed") == 1
    assert "SyntaxError" in world.daemon.status()["pools"]["answer"]["trouble"]
    job = world.rows.insert("answer")
    eventually(lambda: world.rows.ended(waiting))
    assert world.rows.last(job)["status"] == "new"
    world.write_code(3)
    world.hup()
    eventually(lambda: world.rows.ended(job), state=world.daemon.tail)
    assert world.rows.last(job)["payload"] == b"3"


def test_a_reload_with_a_wrong_store_url_is_refused(world: World) -> None:
    """It would leave ingester and dispatcher dying for ever."""
    before = world.pids()
    world.daemon.url = "mysql://u@h/db?ssl=foo"
    world.daemon.write(config(world.folder))
    done = world.daemon.cli("reload", check=False)
    assert done.returncode == 2
    assert "store.url" in done.stderr
    world.hup()
    eventually(lambda: world.logged("reload.refused"), state=world.daemon.tail)
    assert world.pids() == before


def test_a_reload_with_a_store_that_is_not_there_has_failed(world: World) -> None:
    """Roles that wait for the store are not up; with the right store the next reload mends it."""
    world.daemon.url = f"sqlite:///{world.folder}/missing/store.db"
    world.daemon.write(config(world.folder))
    done = world.daemon.cli("reload", check=False)
    assert done.returncode == 1
    assert "ingester" in done.stderr
    assert "dispatcher" in done.stderr
    world.daemon.url = world.url
    world.daemon.write(config(world.folder))
    assert world.daemon.cli("reload", check=False).returncode == 0
    assert world.answer() == b"1"


def test_a_stop_in_the_middle_of_a_reload_ends_everything(world: World) -> None:
    """At whichever step, no child is left and nothing is lost."""
    go = world.folder / "go"
    job = world.rows.insert("waits", {"path": str(go)})
    eventually(lambda: world.daemon.runs(job))
    world.daemon.write(config(world.folder, workers=2, more='[dispatcher]\npoll = "200ms"\n'))
    world.hup()
    eventually(lambda: world.logged("reload.started"))
    tree = world.daemon.tree()
    assert world.daemon.process is not None
    world.daemon.process.send_signal(signal.SIGTERM)
    eventually(lambda: world.daemon.status().get("state") in ("draining", None))
    go.touch()
    assert world.daemon.process.wait(30) == 0
    assert not any(process.is_running() for process in tree)
    assert [row["reason"] for row in world.rows.attempts(job)] == ["ok"]
    assert_settled(world.rows)
