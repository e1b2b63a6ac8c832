"""From a program to its jobs: over a connection of its own, or inside the program's transaction."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workerd.client.client import Client
    from workerd.client.model import Attempt, Enqueued, Job, Request
    from workerd.client.spec import JobSpec
    from workerd.client.transaction import enqueue, wake

__all__ = ["Attempt", "Client", "Enqueued", "Job", "JobSpec", "Request", "enqueue", "wake"]

_HOMES = {
    "Attempt": "model",
    "Client": "client",
    "Enqueued": "model",
    "Job": "model",
    "JobSpec": "spec",
    "Request": "model",
    "enqueue": "transaction",
    "wake": "transaction",
}


def __getattr__(name: str) -> Any:
    # The command line uses parts of this package and is called from shell scripts: it pays for no more.
    if name in _HOMES:
        return getattr(import_module(f"workerd.client.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'workerd.client' has no attribute {name!r}")
