"""Shared fixtures of the runtime's tests: an event loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from workerd.runtime.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def turn_until(loop: Loop, condition: Callable[[], Any], within: float = 10.0) -> None:
    """Turn the loop until the condition holds."""
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        loop.turn(0.01)
