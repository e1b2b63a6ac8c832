"""Waiting for a job or a request to end: polls that become rarer, each one statement on the primary key."""

from __future__ import annotations

import time
from collections.abc import Callable

from workerd.store.base import Tx

FIRST_PAUSE_S = 0.005
MAX_PAUSE_S = 0.25
"""Short pauses at first, for jobs that take milliseconds."""


def until(
    read: Callable[[Callable[[Tx], bool]], bool], ended: Callable[[Tx], bool], timeout_s: float | None
) -> None:
    """Return when `read(ended)` is true. Raises TimeoutError after `timeout_s` (None: never)."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    pause = FIRST_PAUSE_S
    while not read(ended):
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError(f"it has not ended within {timeout_s:g} s")
        time.sleep(pause if left is None else min(pause, left))
        pause = min(pause * 1.5, MAX_PAUSE_S)
