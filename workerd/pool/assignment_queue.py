"""The way of assignments to one worker: a queue in the kernel that the pool can take back from."""

from __future__ import annotations

import socket
import struct

import msgspec

from workerd.messages import Assignment

LONGEST = 32 * 1024
"""Bytes of one message, and of a worker's read; what is longer goes over the channel."""

_SERIAL = struct.Struct("!Q")
_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_encoder = msgspec.msgpack.Encoder()


class AssignmentQueue:
    """Both ends of a SOCK_SEQPACKET pair; the worker inherits the reading one.

    A message is one assignment, behind its serial, and exactly one of worker and pool gets it: what the
    pool takes back was not begun, and what it finds no more was (law 4). The worker takes one at a time.
    """

    def __init__(self) -> None:
        self._writing, self._reading = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def fileno(self) -> int:
        """The reading end, for the worker."""
        return self._reading.fileno()

    def put(self, assignment: Assignment) -> bool:
        """Append it; false if it is too long or there is no more room."""
        frame = bytearray(_SERIAL.size)
        _encoder.encode_into(assignment, frame, _SERIAL.size)
        _SERIAL.pack_into(frame, 0, assignment.serial)
        return len(frame) <= LONGEST and self._send(frame)

    def announce(self, assignment: Assignment) -> bool:
        """Append that this one comes over the channel."""
        return self._send(_SERIAL.pack(assignment.serial))

    def _send(self, frame: bytes | bytearray) -> bool:
        try:
            self._writing.send(frame, _FLAGS)
        except BlockingIOError:
            return False
        return True

    def take_back(self) -> set[int]:
        """Empty it; the serials of what the worker had not taken."""
        taken: set[int] = set()
        while True:
            try:
                # The rest of a message is dropped with its head.
                head = self._reading.recv(_SERIAL.size, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return taken
            if len(head) < _SERIAL.size:
                return taken
            taken.add(_SERIAL.unpack(head)[0])

    def hang_up(self) -> None:
        """Let the worker read the end, after what lies there."""
        self._writing.close()

    def close(self) -> None:
        """Give both ends back."""
        self._writing.close()
        self._reading.close()


def serial_of(message: bytes) -> int:
    """Of what a worker has taken."""
    return int(_SERIAL.unpack_from(message)[0])


def assignment_in(message: bytes, decoder: msgspec.msgpack.Decoder[Assignment]) -> Assignment | None:
    """What a worker has taken; None if it was announced only."""
    return decoder.decode(memoryview(message)[_SERIAL.size :]) if len(message) > _SERIAL.size else None
