"""Generations of the daemon: which of them serves, and which were superseded, as files tell it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from workerd.config.model import NodeConfig
from workerd.runtime.generations import Generations, serving_paths
from workerd.runtime.paths import Paths


class Host:
    """Generations that run, by the locks that they hold."""

    def __init__(self, folder: Path) -> None:
        self.node = NodeConfig(runtime_dir=folder / "run", state_dir=folder / "state")
        self.locks: dict[int, ExitStack] = {}

    def start(self, number: int) -> Generations:
        node = msgspec.structs.replace(self.node, generation=number)
        paths = Paths(node)
        for each in (paths.private, paths.spool):
            each.mkdir(parents=True, exist_ok=True)
        stack = self.locks[number] = ExitStack()
        fcntl.flock(stack.enter_context(paths.lock.open("w")), fcntl.LOCK_EX)
        return Generations(node)

    def die(self, number: int) -> None:
        self.locks.pop(number).close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    for number in list(made.locks):
        made.die(number)


def test_the_first_generation_alone_leaves_no_trace(host: Host) -> None:
    """Its files are where they always were."""
    first = host.start(1)
    assert not first.begin()
    assert first.take_over() == []
    first.keep_leading_here()
    assert first.serving == 1
    first.leave()
    assert serving_paths(host.node).wake == host.node.runtime_dir / "wake"
    assert {path.name for path in host.node.runtime_dir.iterdir()} == {"private"}


def test_the_later_of_two_serves(host: Host) -> None:
    """The former is told so, and commands and clients are led to the later one."""
    first, second = host.start(1), host.start(2)
    first.take_over()
    assert second.alive() == [1]
    assert second.take_over() == [1]
    assert first.superseded
    assert not second.superseded
    assert serving_paths(host.node).supervisor == host.node.runtime_dir / "generations/2/private/supervisor"
    wake = host.node.runtime_dir / "wake"
    assert wake.resolve() == host.node.runtime_dir / "generations/2/wake"
    wake.unlink()  # the former dispatcher was restarted, and bound its own
    wake.touch()
    second.keep_leading_here()
    assert wake.is_symlink()
    first.leave()
    assert wake.is_symlink()
    second.leave()
    assert not wake.is_symlink()
    assert second.serving == 1


def test_a_superseded_one_that_is_started_again_is_still_superseded(host: Host) -> None:
    """As long as another serves; else it is a daemon like any other."""
    first, second = host.start(1), host.start(2)
    second.take_over()
    host.die(1)
    first = host.start(1)
    assert first.begin()
    host.die(1)
    host.die(2)
    first = host.start(1)
    assert not first.begin()
    assert first.take_over() == []
    assert first.serving == 1


def test_a_first_generation_that_starts_again_takes_over(host: Host) -> None:
    """The one that serves keeps away from its sockets meanwhile."""
    second = host.start(2)
    second.take_over()
    first = host.start(1)
    assert not first.begin()
    wake = host.node.runtime_dir / "wake"
    wake.unlink()
    wake.touch()
    second.keep_leading_here()
    assert not wake.is_symlink()
    assert first.take_over() == [2]
    assert second.superseded
    assert first.serving == 1


@pytest.mark.parametrize("target", ["../../etc", "generations/0", "generations/2/../..", "generations/1234"])
def test_a_link_that_leads_elsewhere_is_not_followed(host: Host, target: str) -> None:
    """Commands of root read it in a folder of another user."""
    host.node.runtime_dir.mkdir(parents=True)
    (host.node.runtime_dir / "live").symlink_to(target)
    assert Generations(host.node).serving == 1
