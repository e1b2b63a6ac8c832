"""What a pool and one worker share: descriptors, signals, flags in shared memory."""

from __future__ import annotations

import mmap
import signal
from dataclasses import dataclass

SOFT_SIGNAL = int(signal.SIGRTMIN) + 1
"""Read the flags: the soft deadline has passed, or a cancel or an interruption was requested."""

DUMP_SIGNAL = int(signal.SIGRTMIN) + 2
"""faulthandler writes the stacks of all threads to the dump descriptor."""

FIRST_PRIVATE_FD = 500
"""The worker moves its own descriptors here and above, out of a handler's way."""


@dataclass(frozen=True)
class WorkerFds:
    """The worker's share; it owns them after the fork.

    channel
        Blocking end of a stream socket pair; frames are those of `multiprocessing.Connection`.
    assignments
        Reading end of the worker's AssignmentQueue.
    output
        Write end of the pipe that becomes descriptors 1 and 2.
    null
        `/dev/null`, which becomes descriptor 0.
    flags
        Shared memory.
    dump
        memfd that faulthandler writes to and the pool reads.
    """

    channel: int
    assignments: int
    output: int
    null: int
    flags: SharedFlags
    dump: int


_SERIAL, _DEADLINE, _REQUEST, _STOPPING, _STARTED, _CPU_US, _START_UNTIL, _FIRST_SERIAL = range(8)
_CANCEL, _INTERRUPT = 1, 2
NO_END_NS = 2**63 - 1
"""Before the first LeaseState, and for runs outside of a pool."""


class SharedFlags:
    """Eight 64-bit words, shared with the children that are forked later: for a worker that never reads.

    A signal only says that they changed, so one that arrives after its job has ended does no harm. The
    worker writes `started` and `cpu_us`, the pool the others. Each word is written by one store instruction
    and read by one load, so no lock is needed. `begin` writes the serial last: a reader that sees its own
    serial sees the flags that belong to it.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._words = memoryview(self._memory).cast("Q")
        self._words[_START_UNTIL] = NO_END_NS

    @property
    def serial(self) -> int:
        """The attempt that `soft_deadline_ns`, `cancel` and `interrupt` belong to."""
        return self._words[_SERIAL]

    @property
    def soft_deadline_ns(self) -> int:
        """CLOCK_MONOTONIC nanoseconds of the soft deadline, 0 for none."""
        return self._words[_DEADLINE]

    @property
    def cancel(self) -> bool:
        """A cancel of this attempt was requested."""
        return self._words[_REQUEST] == _CANCEL

    @property
    def interrupt(self) -> bool:
        """This attempt is to be interrupted, to go on in the next one."""
        return self._words[_REQUEST] == _INTERRUPT

    @property
    def stopping(self) -> bool:
        """The node stops or has lost its lease: finish soon. Not bound to one attempt."""
        return self._words[_STOPPING] != 0

    def may_begin(self, serial: int, now_ns: int) -> bool:
        """Whether the node has had its lease without a gap since it assigned this; `now_ns`: monotonic."""
        # Read in this order: with a renewed lease the pool writes its end last.
        return now_ns < self._words[_START_UNTIL] and serial >= self._words[_FIRST_SERIAL]

    def set_start_until(self, until_ns: int) -> None:
        """Set until when attempts may begin, CLOCK_MONOTONIC nanoseconds: then the lease may be over."""
        self._words[_START_UNTIL] = until_ns

    def set_first_serial(self, serial: int) -> None:
        """Set from which on attempts may begin: those before belong to a lease that is over."""
        self._words[_FIRST_SERIAL] = serial

    @property
    def started(self) -> int:
        """The last attempt that the worker started."""
        return self._words[_STARTED]

    def mark_started(self, serial: int) -> None:
        """Written by the worker before anything of the attempt can have an effect."""
        self._words[_STARTED] = serial

    @property
    def cpu_us(self) -> int:
        """CPU time that the worker and its children had used when the last attempt began."""
        return self._words[_CPU_US]

    def mark_cpu(self, cpu_us: int) -> None:
        """Written by the worker when it begins to measure an attempt."""
        self._words[_CPU_US] = cpu_us

    def begin(self, serial: int, soft_deadline_ns: int) -> None:
        """Set the flags for a new attempt; called before its Assignment is sent."""
        self._words[_SERIAL] = 0
        self._words[_REQUEST] = 0
        self._words[_DEADLINE] = soft_deadline_ns
        self._words[_SERIAL] = serial

    def request_cancel(self) -> None:
        """Request that the present attempt ends as cancelled."""
        self._words[_REQUEST] = _CANCEL

    def request_interrupt(self) -> None:
        """Request that the present attempt is interrupted; a cancel takes precedence."""
        if not self.cancel:
            self._words[_REQUEST] = _INTERRUPT

    def set_stopping(self, stopping: bool) -> None:
        """Set whether the node stops or has lost its lease."""
        self._words[_STOPPING] = int(stopping)

    def close(self) -> None:
        """Unmap it from this process."""
        self._words.release()
        self._memory.close()
