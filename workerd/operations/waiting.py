"""Wait for a job or request to end: polls with growing intervals, each one statement on the primary key."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from workerd.store.base import Tx

FIRST_INTERVAL_S = 0.005
MAX_INTERVAL_S = 0.25
"""Short intervals at first, for jobs that take milliseconds."""


def wait_until(
    read: Callable[[Callable[[Tx], bool]], bool], ended: Callable[[Tx], bool], timeout_s: float | None
) -> None:
    """Return once `read(ended)` is true. Raises TimeoutError after `timeout_s` (None: never)."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    pauses = intervals()
    while not read(ended):
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError(f"it has not ended within {timeout_s:g} s")
        pause = next(pauses)
        time.sleep(pause if left is None else min(pause, left))


def intervals() -> Iterator[float]:
    """Seconds between two looks, without end."""
    interval = FIRST_INTERVAL_S
    while True:
        yield interval
        interval = min(interval * 1.5, MAX_INTERVAL_S)
