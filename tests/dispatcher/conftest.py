"""Shared fixtures of the dispatcher's tests: a harness around one dispatcher, and a factory of several."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dispatching import DispatcherHarness, MakeHarness, node_config
from workerd.store.base import Store


@pytest.fixture
def make_harness(tmp_path: Path, store: Store, store_url: str) -> Iterator[MakeHarness]:
    """Makes harnesses on one store; takes the parts of the configuration that `node_config` takes."""
    harnesses: list[DispatcherHarness] = []

    def make(name: str = "test", **parts: object) -> DispatcherHarness:
        config = node_config(tmp_path / name, store_url, name=name, **parts)  # type: ignore[arg-type]
        harnesses.append(DispatcherHarness(store, config))
        return harnesses[-1]

    yield make
    for harness in harnesses:
        harness.close()
