"""The supervisor's watch over its children."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import pytest

from workerd.config.model import Config, SupervisorConfig
from workerd.runtime.loop import Loop
from workerd.supervisor.children import Children, Mains
from workerd.supervisor.supervised_child import ChildState, SupervisedChild


class FaultyOnce:
    """A child of which the first look raises, as by a bug."""

    state = ChildState.STARTING

    def __init__(self) -> None:
        self.looks = 0
        self.on_third_look: Callable[[], None]

    def watch(self, lateness: float) -> None:
        self.looks += 1
        if self.looks == 1:
            raise ZeroDivisionError
        if self.looks == 3:
            self.on_third_look()

    def overdue(self, now: float) -> bool:
        return False

    def excuse(self) -> None:
        pass


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def test_an_error_does_not_end_the_watch(loop: Loop) -> None:
    """The supervisor logs it and goes on; a child that hangs is still found."""
    errors: list[Exception] = []
    loop.on_error = errors.append
    children = Children(
        loop,
        Config(supervisor=SupervisorConfig(watchdog=0.1)),
        Mains({}, lambda *_: 0),
        b"incarnation",
        sealed=-1,
        lock=-1,
        delegation=None,
        on_change=lambda: None,
        on_fatal=lambda status, sentence: None,
    )
    children.start()
    child = FaultyOnce()
    children.roles["faulty"] = cast("SupervisedChild", child)
    loop.call_later(30.0, loop.stop)
    child.on_third_look = loop.stop
    loop.run()
    assert child.looks == 3
    assert [type(error) for error in errors] == [ZeroDivisionError]
