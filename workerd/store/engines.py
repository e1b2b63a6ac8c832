"""Opens a store: the engine of a URL, loaded only where it is used."""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path

from workerd import lean_imports
from workerd.config.model import StoreConfig
from workerd.config.store_url import parse_store_url
from workerd.store.base import Store

_MODULES = {"mysql": "workerd.store.mysql", "sqlite": "workerd.store.sqlite"}
"""The module of each scheme; its `open_store` takes the parsed URL, a time limit and a password file."""


def prepare(scheme: str, *, encrypted: bool = False) -> None:
    """Load what `open_store` needs for URLs of this scheme, to be shared by the processes forked later."""
    # A broken driver is reported by the process that opens the store.
    with contextlib.suppress(Exception):
        if scheme == "mysql":
            lean_imports.share_driver(_MODULES[scheme], encrypted=encrypted)
        else:
            importlib.import_module(_MODULES[scheme])


def unprepare() -> None:
    """Undo `prepare` in a process that runs user code, which may need the whole driver."""
    lean_imports.forget_driver()


def open_store(
    config: StoreConfig, *, state_dir: Path | None = None, timeout: float = 5.0, spare: bool = False
) -> Store:
    """The store of `[store]`, not connected yet. Raises InvalidValue for a wrong URL.

    timeout
        Seconds that connecting, a statement or a lock may take.
    state_dir
        The folder of a relative `password_file`.
    spare
        This process runs no user code, so the driver is loaded without parts that are seldom needed.
    """
    url = parse_store_url(config.url)
    scheme = config.url.partition(":")[0].lower()
    if spare and scheme == "mysql":
        lean_imports.import_pymysql()
    password_file = Path(config.password_file) if config.password_file else None
    if password_file is not None and state_dir is not None:
        password_file = state_dir / password_file
    store: Store = importlib.import_module(_MODULES[scheme]).open_store(url, timeout, password_file)
    return store
