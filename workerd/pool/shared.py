"""What a pool and one worker share: descriptors, signals, a page of flags."""

from __future__ import annotations

import mmap
import signal
from dataclasses import dataclass

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
    page: SharedFlags
    dump: int


# A page of memory shared by the pool and one worker: what must reach a worker that never reads.
#
# A signal only says "look"; the page says what is the matter, so that a signal that comes late, after
# its job has ended, does no harm.
#

_SERIAL, _DEADLINE, _CANCEL, _STOPPING, _BEGUN = range(5)


class SharedFlags:
    """Five 64-bit words, shared with the children that are forked after it was made.

    The worker writes `begun`, the pool the others. Each word is written by one store instruction and read
    by one load, so no lock is needed. `begin` writes the serial last: a reader that sees its own serial
    sees the flags that belong to it.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._words = memoryview(self._memory).cast("Q")

    @property
    def serial(self) -> int:
        """The run that `soft_deadline_ns` and `cancel` are for."""
        return self._words[_SERIAL]

    @property
    def soft_deadline_ns(self) -> int:
        """CLOCK_MONOTONIC nanoseconds of the soft deadline, 0 for none."""
        return self._words[_DEADLINE]

    @property
    def cancel(self) -> bool:
        """The run is to end as cancelled."""
        return self._words[_CANCEL] != 0

    @property
    def stopping(self) -> bool:
        """The node stops or has lost its lease: finish soon. Not bound to one run."""
        return self._words[_STOPPING] != 0

    @property
    def begun(self) -> int:
        """The last run that the worker took up: another one that it was given, it has not touched."""
        return self._words[_BEGUN]

    def take_up(self, serial: int) -> None:
        """Written by the worker, before anything of the run can have an effect."""
        self._words[_BEGUN] = serial

    def begin(self, serial: int, soft_deadline_ns: int) -> None:
        """Set the flags for a new run; called before its Assignment is sent."""
        self._words[_SERIAL] = 0
        self._words[_CANCEL] = 0
        self._words[_DEADLINE] = soft_deadline_ns
        self._words[_SERIAL] = serial

    def ask_cancel(self) -> None:
        """Ask the present run to end as cancelled."""
        self._words[_CANCEL] = 1

    def set_stopping(self, stopping: bool) -> None:
        """Tell the worker that its node stops, or that it does not after all."""
        self._words[_STOPPING] = int(stopping)

    def close(self) -> None:
        """Unmap it from this process."""
        self._words.release()
        self._memory.close()
