"""Imports kept out of processes that do not need them; every trick of this kind is here, with its gain.

Measured as PSS of the tree (2 workers, MariaDB): Rich under structlog 4.7 MiB, asyncio 2 MiB, cryptography
under PyMySQL 8 MiB for each process that has the driver; ssl under PyMySQL, parts of structlog that nothing
here uses, and what reads files or looks for programs 1.6 MiB together, shared by all.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, cast

_RSA = "cryptography"
_TLS = "ssl"


class _Deferred(ModuleType):
    """Stands for a module and imports it when an attribute of it is used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


def deferred(name: str) -> Any:
    """The module `name`, imported when an attribute of it is used."""
    return sys.modules.get(name) or _Deferred(name)


@contextlib.contextmanager
def without(*names: str, deferred: tuple[str, ...] = ()) -> Iterator[None]:
    """In this block the modules `names` seem not to be installed, and `deferred` ones load on first use."""
    modules = cast(dict[str, ModuleType | None], sys.modules)
    stand_ins: dict[str, ModuleType | None] = {name: None for name in names if name not in modules}
    stand_ins |= {name: _Deferred(name) for name in deferred if name not in modules}
    modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del modules[name]


def import_pymysql() -> None:
    """Import PyMySQL without RSA, and TLS on first use; only for processes without user code."""
    if "pymysql" not in sys.modules:
        with without(_RSA, deferred=(_TLS,)):
            importlib.import_module("pymysql")


def load_rsa() -> bool:
    """Load RSA after all (caching_sha2_password without TLS or Unix socket); false if it was loaded."""
    if _RSA in sys.modules:
        return False
    importlib.reload(importlib.import_module("pymysql._auth"))
    return _RSA in sys.modules


_shared: dict[str, ModuleType] = {}


def share_driver(user: str, *, encrypted: bool) -> None:
    """Import PyMySQL without RSA, and `user`, the module that uses it, for all processes forked later.

    `encrypted`: connections use TLS, so that every process would load it.
    """
    if encrypted:
        importlib.import_module(_TLS)
    import_pymysql()
    importlib.import_module(user)
    ours = {name for name in sys.modules if name.partition(".")[0] == "pymysql"} | {user}
    _shared.update((name, sys.modules[name]) for name in ours)


def forget_driver() -> None:
    """Undo `share_driver` in a process with user code, which may import the driver for itself."""
    # The modules stay referenced: freeing them would write to all of their shared pages.
    for name in _shared:
        sys.modules.pop(name, None)
