"""Fixtures that several files of system tests use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon
from workerd.store.base import Store


@pytest.fixture
def start_daemon(tmp_path: Path, store_url: str, store: Store) -> Iterator[Callable[..., Daemon]]:
    """Start daemons on one store, from a configuration and a node name; all are stopped after the test."""
    daemons: list[Daemon] = []

    def start(config: str, name: str = "one", **options: Any) -> Daemon:
        daemons.append(Daemon(tmp_path / name, store_url, config, **options))
        return daemons[-1].start()

    yield start
    for daemon in daemons:
        daemon.end()
