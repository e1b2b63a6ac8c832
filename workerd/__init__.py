"""Background jobs for teams who already have MySQL or MariaDB.

from workerd import Context, Failure, Result, Retry, handler     in a module of handlers
from workerd import Client, JobSpec, enqueue, wake               in a program that enqueues
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

from workerd.handler import Cancelled, Context, DeadlineExceeded, Failure, Result, Retry, handler

if TYPE_CHECKING:
    from workerd.client import Client, JobSpec, enqueue, wake

__all__ = [
    "Cancelled",
    "Client",
    "Context",
    "DeadlineExceeded",
    "Failure",
    "JobSpec",
    "Result",
    "Retry",
    "enqueue",
    "handler",
    "wake",
]


def __getattr__(name: str) -> Any:
    # A handler's module needs no database driver, and a pool must not load one (only the store's roles do).
    if name in ("Client", "JobSpec", "enqueue", "wake"):
        return getattr(importlib.import_module("workerd.client"), name)
    raise AttributeError(f"module 'workerd' has no attribute {name!r}")
