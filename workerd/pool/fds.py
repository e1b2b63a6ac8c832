"""What a worker inherits from its pool: descriptors, a shared page, and two signals."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from workerd.pool.page import Page

SOFT_SIGNAL = int(signal.SIGRTMIN) + 1
"""Look at the page: the soft deadline is over, or a cancel was asked for."""

DUMP_SIGNAL = int(signal.SIGRTMIN) + 2
"""faulthandler writes the stacks of all threads into the dump descriptor."""

LOWEST = 500
"""The worker moves what it inherits to descriptors from here on, out of a handler's way."""


@dataclass(frozen=True)
class WorkerFds:
    """The worker's share; it owns them after the fork.

    channel
        Blocking end of a stream socket pair; frames are those of `multiprocessing.Connection`.
    lane
        Reading end of the lane that assignments come by, one message each.
    output
        Write end of the pipe that becomes descriptors 1 and 2.
    null
        `/dev/null`, which becomes descriptor 0.
    page
        Written by the pool, read by the worker.
    dump
        memfd that faulthandler writes to and the pool reads.
    """

    channel: int
    lane: int
    output: int
    null: int
    page: Page
    dump: int
