"""The configuration and the store, opened for one command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from workerd.config.build import load
from workerd.config.model import Config

if TYPE_CHECKING:
    from workerd.store.base import Store


def configuration(path: Path | None) -> Config:
    """What `-c` names, or /etc/workerd. Raises ConfigError with all faults."""
    return load(path, os.environ)


@contextmanager
def opened(path: Path | None) -> Iterator[tuple[Config, Store]]:
    """The configuration and the store that it names, of this version. Raises ConfigError, StoreError."""
    from workerd.store.engines import open_store

    config = configuration(path)
    store = open_store(config.store, state_dir=config.node.state_dir)
    try:
        store.check_version()
        yield config, store
    finally:
        store.close()


def wake(config: Config) -> None:
    """Tell this machine's dispatcher, if there is one, that there is work."""
    from workerd.runtime.paths import Paths
    from workerd.runtime.sockets import poke

    poke(Paths(config.node).wake)
