"""Whether user code has called a function that changes its process: cheaper than to compare the state."""

from __future__ import annotations

import functools
import importlib
import os
import resource
import signal
import time
from collections.abc import Callable
from typing import Any


class NotedCalls:
    """Notes calls of some functions of a module. `noted`: whether there was one since it was set to False.

    Not calls by C code, nor of a reference that was kept before `watch`.
    """

    def __init__(self, module: Any, *functions: str) -> None:
        self.noted = False
        self._module = module
        self._functions = functions

    def watch(self) -> None:
        """Note calls from now on; before user code is imported, which may keep the functions."""
        functions, self._functions = self._functions, ()
        for name in functions:
            setattr(self._module, name, self._noting(getattr(self._module, name)))

    def _noting(self, function: Callable[..., Any]) -> Any:
        @functools.wraps(function)
        def noting(*args: Any, **kwargs: Any) -> Any:
            self.noted = True
            return function(*args, **kwargs)

        return noting


limit_changes = NotedCalls(resource, "setrlimit", "prlimit")
"""Changes of resource limits; to compare all of them takes 10 µs a run."""

zone_changes = NotedCalls(time, "tzset")
"""Changes of the time zone that Python sees."""

signal_changes = NotedCalls(importlib.import_module("_signal"), "signal")
"""Changes of signal handlers, which `signal.signal` makes through this; to compare all takes 1.7 µs a run."""

timer_changes = NotedCalls(signal, "setitimer", "alarm")
"""Timers that were set; to stop all three takes 1.1 µs a run."""

umask_changes = NotedCalls(os, "umask")
"""Changes of the umask; to set it takes 0.4 µs a run."""

niceness_changes = NotedCalls(os, "nice", "setpriority")
"""Changes of the niceness; to ask for it takes 0.3 µs a run."""

_ALL = (
    limit_changes, zone_changes, signal_changes, timer_changes, umask_changes, niceness_changes,
)  # fmt: skip


def watch() -> None:
    """Note calls in this process and those that it forks."""
    for calls in _ALL:
        calls.watch()
