"""The configuration and the store, opened for one command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workerd.config.build import load
from workerd.config.model import Config
from workerd.runtime.paths import Paths
from workerd.runtime.sockets import poke
from workerd.store.base import Store
from workerd.store.engines import open_store


def load_config(path: Path | None) -> Config:
    """The configuration at `path`, None for /etc/workerd. Raises ConfigError with every error."""
    return load(path, os.environ)


@contextmanager
def open_session(path: Path | None) -> Iterator[tuple[Config, Store]]:
    """The configuration and its store, open for one command. Raises ConfigError, StoreError."""
    config = load_config(path)
    store = open_store(config.store, state_dir=config.node.state_dir)
    try:
        store.check_version()
        yield config, store
    finally:
        store.close()


def wake(config: Config) -> None:
    """Wake this host's dispatcher, if it runs."""
    poke(Paths(config.node).wake)
