"""The queue of assignments to one worker: a socket pair, from which the pool can also take them back."""

from __future__ import annotations

import socket
import struct

import msgspec

from workerd.pool.worker_messages import Assignment

MAX_MESSAGE_BYTES = 32 * 1024
"""Also the size of a worker's read; a longer assignment is sent over the channel."""

IDLE_INTERVAL_S = 1
"""A worker's read returns after that long without a message (EAGAIN): the time to reap zombies."""

_SERIAL = struct.Struct("!Q")
_TIMEVAL = struct.Struct("@ll")
_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_encoder = msgspec.msgpack.Encoder()


class AssignmentQueue:
    """Both ends of a SOCK_SEQPACKET pair; the worker inherits the reading end.

    A message is a serial and an assignment, and the kernel hands it to exactly one of worker and pool: what
    the pool takes out was not started, and what it does not find was taken by the worker (law 4).
    """

    def __init__(self) -> None:
        self._writing, self._reading = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._reading.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(IDLE_INTERVAL_S, 0))

    def fileno(self) -> int:
        """The reading end, for the worker."""
        return self._reading.fileno()

    def put(self, assignment: Assignment) -> bool:
        """Append an assignment; false if it is too long or the queue is full."""
        frame = bytearray(_SERIAL.size)
        _encoder.encode_into(assignment, frame, _SERIAL.size)
        _SERIAL.pack_into(frame, 0, assignment.serial)
        return len(frame) <= MAX_MESSAGE_BYTES and self._send(frame)

    def put_marker(self, assignment: Assignment) -> bool:
        """Append only the serial: the assignment itself is sent over the channel."""
        return self._send(_SERIAL.pack(assignment.serial))

    def _send(self, frame: bytes | bytearray) -> bool:
        try:
            self._writing.send(frame, _FLAGS)
        except BlockingIOError:
            return False
        return True

    def take_all(self) -> set[int]:
        """Empty the queue; returns the serials that the worker had not taken."""
        serials: set[int] = set()
        while True:
            try:
                # A SEQPACKET read discards the rest of the message.
                head = self._reading.recv(_SERIAL.size, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return serials
            if len(head) < _SERIAL.size:
                return serials
            serials.add(_SERIAL.unpack(head)[0])

    def close_writing_end(self) -> None:
        """Let the worker read end of file after what is queued."""
        self._writing.close()

    def close(self) -> None:
        """Close both ends."""
        self._writing.close()
        self._reading.close()


def serial_of(message: memoryview) -> int:
    """The serial of a message that a worker has read."""
    return int(_SERIAL.unpack_from(message)[0])


def assignment_in(message: memoryview, decoder: msgspec.msgpack.Decoder[Assignment]) -> Assignment | None:
    """The assignment in a message that a worker has read; None for a marker."""
    return decoder.decode(message[_SERIAL.size :]) if len(message) > _SERIAL.size else None
