"""The worker's ends of what connects it to its pool: assignments in, results and progress out."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable

import msgspec

from workerd.pool.assignment_queue import MAX_MESSAGE_BYTES, assignment_in, serial_of
from workerd.pool.isolation import move_up
from workerd.pool.shared import SharedFlags
from workerd.pool.worker_messages import Assignment, Kept, Saved, ToWorker, Unstarted

_LENGTH = struct.Struct("!i")
_READ_BYTES = 32 * 1024
"""A buffer that malloc must map anew for each read costs 17 µs."""

SAVED_TOO_LATE = "a job can save only in the process of its run, and only until that ends"


class WorkerChannel:
    """The worker's blocking ends: short assignments from the queue, everything else over the channel.

    Frames of the channel are those of `multiprocessing.Connection`. Measured for a frame in each
    direction: 3.6 µs, 6 µs with Connection itself.
    """

    def __init__(
        self,
        fd: int,
        assignments: int,
        flags: SharedFlags,
        on_wait: Callable[[], None],
        on_idle: Callable[[], None],
    ) -> None:
        """`on_wait` is called before waiting for an assignment, `on_idle` every IDLE_INTERVAL_S meanwhile."""
        self._on_wait = on_wait
        self._on_idle = on_idle
        self._fd = fd
        self._assignments = socket.socket(fileno=assignments)
        self._assignments.settimeout(None)  # whatever default user code has set
        # Read into, since a new buffer for each message takes 0.5 µs.
        self._buffer = bytearray(MAX_MESSAGE_BYTES)
        self._view = memoryview(self._buffer)
        self._flags = flags
        self._inbox = b""
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Assignment)
        self._channel_decoder: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
        self._saves = 0
        # Held by the only thread that reads the channel while a job runs.
        self._save_lock = threading.Lock()
        self._ended_serial = 0
        self._run_ended = move_up(os.eventfd(0))
        self._kept_or_ended = select.poll()
        for readable in (fd, self._run_ended):
            self._kept_or_ended.register(readable, select.POLLIN)
        # Progress may come from a thread of the handler's.
        self._lock = threading.Lock()

    def send(self, message: msgspec.Struct) -> None:
        """Write a message; blocks while the pool does not read. Raises OSError when the pool is gone."""
        frame = bytearray(4)
        self._encoder.encode_into(message, frame, 4)
        _LENGTH.pack_into(frame, 0, len(frame) - 4)
        with self._lock:
            sent = os.write(self._fd, frame)
            while sent < len(frame):
                sent += os.write(self._fd, memoryview(frame)[sent:])

    def receive(self) -> Assignment | None:
        """The next assignment that may begin; None when the pool has closed its ends."""
        while True:
            try:
                count = self._assignments.recv_into(self._buffer, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                count = self._wait()
            if not count:
                return None
            message = self._view[:count]
            serial = serial_of(message)
            # The node may have been stopped since it was queued, and another run it by now.
            may_begin = self._flags.may_begin(serial, time.monotonic_ns())
            if may_begin:
                self._flags.mark_started(serial)
            assignment = assignment_in(message, self._decoder) or self._receive_long()
            if assignment is None or may_begin:
                return assignment
            self.send(Unstarted(assignment.serial))

    def _wait(self) -> int:
        self._on_wait()
        while True:
            try:
                return self._assignments.recv_into(self._buffer)
            except BlockingIOError:
                self._on_idle()

    def _receive_long(self) -> Assignment | None:
        while True:
            message = self._take_frame()
            if isinstance(message, Assignment):
                return message
            # Else it answers a save that was interrupted.
            if message is None and not self._read():
                return None

    def _read(self) -> bool:
        """Read once from the channel; false when the pool has closed it."""
        inbox = self._inbox
        missing = 4 + _LENGTH.unpack_from(inbox)[0] - len(inbox) if len(inbox) >= 4 else 0
        data = os.read(self._fd, max(_READ_BYTES, missing))
        self._inbox = inbox + data
        return bool(data)

    def _take_frame(self) -> ToWorker | None:
        """The first whole frame that was read."""
        inbox = self._inbox
        if len(inbox) < 4:
            return None
        end = 4 + _LENGTH.unpack_from(inbox)[0]
        if len(inbox) < end:
            return None
        self._inbox = inbox[end:]
        return self._channel_decoder.decode(inbox[4:end])

    # -- saving

    def keep(self, serial: int, state: bytes, wait: bool) -> None:
        """Send what the handler saves in this run, and wait until the pool has it, or until it is committed.

        The soft signal may raise in it. Raises RuntimeError if the attempt is no longer this node's, the run
        has ended, as it may in a thread, or the pool is gone.
        """
        with self._save_lock:
            self._check_runs(serial)
            self._saves += 1
            number = self._saves
            self.send(Saved(serial, number, state, wait))
            kept = None
            while kept is None:
                # Waits here, where an interruption loses nothing that was read.
                self._kept_or_ended.poll()
                self._check_runs(serial)
                kept = self.read_kept(number)
        if not kept.ours:
            raise RuntimeError("the job was taken over by another node, which has its own saved state")

    def _check_runs(self, serial: int) -> None:
        if serial <= self._ended_serial:
            raise RuntimeError(SAVED_TOO_LATE)

    def end_run(self, serial: int) -> None:
        """Let threads that this run left in `keep` raise, as they would read what is sent to the next run."""
        self._ended_serial = serial
        if self._save_lock.acquire(blocking=False):
            self._save_lock.release()
            return
        os.eventfd_write(self._run_ended, 1)
        with self._save_lock:
            os.eventfd_read(self._run_ended)

    def read_kept(self, number: int) -> Kept | None:
        """Read once; the answer to save `number` if it was there. Never interrupted by the soft signal."""
        if not self._read():
            raise RuntimeError("the pool is gone")
        while (message := self._take_frame()) is not None:
            if isinstance(message, Kept) and message.number == number:
                return message
        return None

    def close(self) -> None:
        """Close it in a process that the handler forked, which must not talk to the pool."""
        for fd in (self._fd, self._assignments.fileno(), self._run_ended):
            with contextlib.suppress(OSError):
                os.close(fd)
