"""PyMySQL without the library that it loads for RSA alone: 8 MB in every process that has it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_RSA = "cryptography"


class _Hidden(MetaPathFinder):
    """Makes the library look as if it were not installed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] == _RSA:
            raise ModuleNotFoundError(f"{fullname} is loaded when a server asks for it", name=fullname)
        return None


def without_rsa() -> None:
    """Import PyMySQL without RSA; only for processes that run nobody else's code, which might need it."""
    if "pymysql" in sys.modules or _RSA in sys.modules:
        return
    hidden = _Hidden()
    sys.meta_path.insert(0, hidden)
    try:
        importlib.import_module("pymysql")
    finally:
        sys.meta_path.remove(hidden)


def with_rsa() -> bool:
    """Load RSA after all (caching_sha2_password without TLS or Unix socket); false if it was there."""
    if _RSA in sys.modules:
        return False
    importlib.reload(importlib.import_module("pymysql._auth"))
    return _RSA in sys.modules


_prepared: dict[str, ModuleType] = {}


def prepare(user: str) -> None:
    """Import PyMySQL without RSA, and `user`, the module that uses it, for the processes that are forked."""
    without_rsa()
    importlib.import_module(user)
    ours = {name for name in sys.modules if name.partition(".")[0] == "pymysql"} | {user}
    _prepared.update((name, sys.modules[name]) for name in ours)


def forget() -> None:
    """Undo `prepare` in a process that runs somebody else's code, which may need the driver as it is."""
    # The modules live on: to free them would be to write to all of their pages, which are shared.
    for name in _prepared:
        sys.modules.pop(name, None)
