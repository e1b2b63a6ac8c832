"""Django's tasks on workerd: the backend, its task class, and the handler that runs tasks.

    TASKS = {"default": {"BACKEND": "workerd.contrib.django.WorkerdBackend", "OPTIONS": {…}}}

    [handlers.django]
    call = "workerd.contrib.django:run"

Django's own process imports the backend only, a pool only what runs tasks.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["WorkerdBackend", "WorkerdTask", "run"]

_MODULES = {
    "WorkerdBackend": "workerd.contrib.django.backend",
    "WorkerdTask": "workerd.contrib.django.backend",
    "run": "workerd.contrib.django.runner",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'workerd.contrib.django' has no attribute {name!r}")
