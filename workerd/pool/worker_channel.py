"""The worker's ends of what connects it to its pool: assignments in, results and progress out."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable

import msgspec

from workerd.messages import Assignment
from workerd.pool.assignment_queue import MAX_MESSAGE_BYTES, assignment_in, serial_of
from workerd.pool.shared import SharedFlags

_LENGTH = struct.Struct("!i")
_READ_BYTES = 32 * 1024
"""A buffer that malloc must map anew for each read costs 17 µs."""


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
        """The next assignment; None when the pool has closed its ends."""
        try:
            count = self._assignments.recv_into(self._buffer, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            count = self._wait()
        if not count:
            return None
        message = self._view[:count]
        self._flags.mark_started(serial_of(message))
        return assignment_in(message, self._decoder) or self._receive_long()

    def _wait(self) -> int:
        self._on_wait()
        while True:
            try:
                return self._assignments.recv_into(self._buffer)
            except BlockingIOError:
                self._on_idle()

    def _receive_long(self) -> Assignment | None:
        inbox = self._inbox
        while len(inbox) < 4 or (missing := 4 + _LENGTH.unpack_from(inbox)[0] - len(inbox)) > 0:
            data = os.read(self._fd, _READ_BYTES if len(inbox) < 4 else max(_READ_BYTES, missing))
            if not data:
                return None
            inbox += data
        end = 4 + _LENGTH.unpack_from(inbox)[0]
        self._inbox = inbox[end:]
        return self._decoder.decode(inbox[4:end])

    def close(self) -> None:
        """Close it in a process that the handler forked, which must not talk to the pool."""
        for fd in (self._fd, self._assignments.fileno()):
            with contextlib.suppress(OSError):
                os.close(fd)
