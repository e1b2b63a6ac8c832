"""The store: jobs, requests, schedules, handlers and nodes, in MySQL, MariaDB or SQLite. Knows no process."""

from __future__ import annotations

from pathlib import Path

from workerd.config.model import Store as StoreConfig
from workerd.store import driver
from workerd.store.connection import Store, Tx
from workerd.store.url import SQLiteAddress, parse

__all__ = ["Store", "Tx", "open_store"]


def open_store(
    config: StoreConfig, *, state_dir: Path | None = None, timeout: float = 5.0, spare: bool = False
) -> Store:
    """The store that `[store]` names, not connected yet; ConfigError if the URL is none.

    `timeout`: seconds that connecting, a statement or a lock may take. `state_dir` is where a relative
    `password_file` is looked for. `spare`: this process runs nobody else's code, so the driver is loaded
    without what is seldom needed.
    """
    address = parse(config.url)
    if isinstance(address, SQLiteAddress):
        from workerd.store.sqlite import SQLiteStore

        return SQLiteStore(address, timeout)
    # Imported here, so that a node on SQLite carries no driver that it does not use.
    if spare:
        driver.without_rsa()
    from workerd.store.mysql import MySQLStore

    password_file = Path(config.password_file) if config.password_file else None
    if password_file is not None and state_dir is not None:
        password_file = state_dir / password_file
    return MySQLStore(address, timeout, password_file)
