"""Background jobs for teams who already have MySQL or MariaDB.

from workerd import Context, Failure, Result, Retry, handler     in handlers; also Secret, wrap, unwrap
from workerd import Client, JobSpec, enqueue, wake               in a program that enqueues; also AsyncClient
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from workerd.handler import (
    Cancelled,
    Context,
    DeadlineExceeded,
    Failure,
    Interrupted,
    Result,
    Retry,
    handler,
)
from workerd.redaction import Secret
from workerd.wrapping import unwrap, wrap

if TYPE_CHECKING:
    from workerd.async_client import AsyncClient
    from workerd.client import Client
    from workerd.job_spec import JobOptions, JobSpec
    from workerd.transaction import enqueue, wake


__version__ = "0.1.0"


__all__ = [
    "AsyncClient",
    "Cancelled",
    "Client",
    "Context",
    "DeadlineExceeded",
    "Failure",
    "Interrupted",
    "JobOptions",
    "JobSpec",
    "Result",
    "Retry",
    "Secret",
    "enqueue",
    "handler",
    "unwrap",
    "wake",
    "wrap",
]

_LOADED_ON_USE = {
    "AsyncClient": "workerd.async_client",
    "Client": "workerd.client",
    "JobOptions": "workerd.job_spec",
    "JobSpec": "workerd.job_spec",
    "enqueue": "workerd.transaction",
    "wake": "workerd.transaction",
}


def __getattr__(name: str) -> Any:
    # A handler's module needs no database driver, and a pool must not load one (only the store's roles do).
    if name in _LOADED_ON_USE:
        return getattr(importlib.import_module(_LOADED_ON_USE[name]), name)
    raise AttributeError(f"module 'workerd' has no attribute {name!r}")
