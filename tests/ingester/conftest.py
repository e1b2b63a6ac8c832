"""An ingester process for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ingesting import IngesterHarness
from workerd.store.base import Store


@pytest.fixture
def make_harness(tmp_path: Path, opened: Callable[..., Store]) -> Iterator[Callable[..., IngesterHarness]]:
    """Make nodes with a migrated store and an ingester that is not started yet."""
    harnesses: list[IngesterHarness] = []

    def make(url: str, *, migrated: bool = True, **ingester: Any) -> IngesterHarness:
        if migrated:
            store = opened(url)
            store.migrate()
            store.close()
        harnesses.append(IngesterHarness(tmp_path, url, **ingester))
        return harnesses[-1]

    yield make
    for harness in harnesses:
        harness.close()
