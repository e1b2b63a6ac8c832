"""Shared fixtures of the pool's tests: an event loop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from workerd.runtime.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()
