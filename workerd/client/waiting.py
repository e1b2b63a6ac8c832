"""Waiting for the end of a job or a request: looks that grow rarer, each one statement on the primary key."""

from __future__ import annotations

import time
from collections.abc import Callable

from workerd.errors import NotFound
from workerd.job import id_text
from workerd.store import queries
from workerd.store.connection import Tx
from workerd.store.values import text
from workerd.workflow import REQUEST_ENDED

FIRST_LOOK = 0.005
SLOWEST_LOOK = 0.25
"""Seconds between two looks: short at first, for jobs that take milliseconds."""

Fact = Callable[[Tx], bool]
Read = Callable[[Fact], bool]


def job_over(key: bytes) -> Fact:
    """The job has ended; raises NotFound."""
    return lambda tx: queries.ended(tx, key)


def request_over(key: bytes) -> Fact:
    """The request has ended; raises NotFound."""

    def over(tx: Tx) -> bool:
        row = tx.one("SELECT status FROM workerd_requests WHERE id = %s", (key,))
        if row is None:
            raise NotFound(f"There is no request {id_text(key)}; `workerd request list` shows what is there.")
        return text(row[0]) in REQUEST_ENDED

    return over


def until(read: Read, fact: Fact, timeout: float | None) -> None:
    """Return when the fact is true, TimeoutError after `timeout` seconds (None: wait for ever)."""
    end = None if timeout is None else time.monotonic() + timeout
    pause = FIRST_LOOK
    while not read(fact):
        left = None if end is None else end - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError(f"it has not ended within {timeout:g} s")
        time.sleep(pause if left is None else min(pause, left))
        pause = min(pause * 1.5, SLOWEST_LOOK)
