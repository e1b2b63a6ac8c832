"""A node with small test children, and commands to it."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.eventually import eventually
from workerd.runtime.control import ask


class SupervisorHarness:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"

    def start(self, *pools: str) -> SupervisorHarness:
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

    def restart(self, pool: str) -> dict[str, Any]:
        return ask(self.folder / "run/private/supervisor", {"ask": "restart", "pool": pool}, timeout=60.0)

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
def harness(tmp_path: Path) -> Iterator[SupervisorHarness]:
    harness = SupervisorHarness(tmp_path)
    yield harness
    tree = [] if harness.process.poll() is not None else harness.descendants()
    with contextlib.suppress(ProcessLookupError):
        harness.process.kill()
    harness.process.wait()
    assert_gone(tree)
