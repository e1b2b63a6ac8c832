"""A channel: msgspec frames over a stream socket, with one writer and one reader on each side (law 3).

The frame is that of `multiprocessing.Connection` (a signed big-endian length of four bytes, then the
body): a worker uses the plain blocking Connection, a role or pool this non-blocking end. A stopped peer
blocks nothing: what cannot be written is kept and leaves later.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec

from workerd.errors import FrameTooLarge
from workerd.runtime.loop import Loop

_LENGTH = struct.Struct("!i")
_READ_BYTES = 256 * 1024
# One buffer for all channels: a new one of this size would be mapped and unmapped at every read.
_buffer = memoryview(bytearray(_READ_BYTES))

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""A peer that announces a longer frame is faulty and its channel is closed."""

_encoder = msgspec.msgpack.Encoder()

In = TypeVar("In")


class Channel(Generic[In]):
    """The non-blocking end of a channel, served by a Loop.

    `incoming`: the union of the peer's messages. `on_message` gets each of them, in order. `on_close` is
    called once, from the loop, when the peer has gone or broke the framing; the channel is closed by then,
    and `error` says how the framing was broken.
    Sending on a closed channel does nothing: senders that must not lose a message keep it until it is
    acknowledged.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        incoming: Any,
        on_message: Callable[[In], None],
        on_close: Callable[[], None],
        *,
        rank: int = 1,
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._decoder: msgspec.msgpack.Decoder[In] = msgspec.msgpack.Decoder(incoming)
        self._on_message = on_message
        self._on_close = on_close
        self._rank = rank
        self._inbox = bytearray()
        self._needed = 0
        self._outbox: list[bytes] = []
        self._unsent: deque[memoryview] = deque()
        self._flush_due = False
        self._blocked = False
        self.closed = False
        self.error = ""
        sock.setblocking(False)
        loop.on_readable(self._fd, self._readable, rank)

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._fd

    @property
    def unsent(self) -> int:
        """Bytes that the peer has not read yet."""
        return sum(map(len, self._unsent)) + sum(map(len, self._outbox))

    # -- sending

    def send(self, message: msgspec.Struct) -> None:
        """Queue a message; it leaves at the end of this turn of the loop, in one write with the others.

        Raises FrameTooLarge.
        """
        if self.closed:
            return
        body = _encoder.encode(message)
        if len(body) > MAX_FRAME_BYTES:
            raise FrameTooLarge(f"a frame of {len(body)} bytes is over the limit of {MAX_FRAME_BYTES}")
        self._outbox.append(_LENGTH.pack(len(body)))
        self._outbox.append(body)
        if not self._flush_due:
            self._flush_due = True
            self._loop.at_end_of_turn(self.flush)

    def send_now(self, message: msgspec.Struct) -> None:
        """Write a message at once, for a reader that waits for this one alone.

        Raises FrameTooLarge.
        """
        if self.closed:
            return
        if self._outbox or self._unsent:
            self.send(message)
            return
        frame = bytearray(4)
        _encoder.encode_into(message, frame, 4)
        length = len(frame) - 4
        if length > MAX_FRAME_BYTES:
            raise FrameTooLarge(f"a frame of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
        _LENGTH.pack_into(frame, 0, length)
        try:
            sent = self._sock.send(frame, socket.MSG_NOSIGNAL)
        except OSError:
            sent = 0  # flush finds out whether it can be written later
        if sent < length + 4:
            self._unsent.append(memoryview(frame)[sent:])
            self.flush()

    def flush(self) -> None:
        """Write what the socket takes now; the rest leaves when it becomes writable."""
        self._flush_due = False
        if self.closed:
            return
        unsent = self._unsent
        if self._outbox:
            unsent.append(memoryview(b"".join(self._outbox)))
            self._outbox.clear()
        elif not unsent:
            return
        try:
            while unsent:
                sent = self._sock.send(unsent[0], socket.MSG_NOSIGNAL)
                if sent < len(unsent[0]):  # views, so that the rest is not copied at every write
                    unsent[0] = unsent[0][sent:]
                else:
                    unsent.popleft()
        except BlockingIOError:
            pass
        except OSError:
            # The reading side finds the end, behind what the peer had still written.
            self._unsent.clear()
        if self._blocked or self._unsent:
            self._blocked = bool(self._unsent)
            self._loop.on_writable(self._fd, self.flush if self._blocked else None)

    # -- receiving

    def pause(self) -> None:
        """Stop reading until `resume`: the peer's writes fill the socket, then wait (law 7)."""
        if not self.closed:
            self._loop.on_readable(self._fd, None, self._rank)

    def resume(self) -> None:
        """Read again after `pause`."""
        if not self.closed:
            self._loop.on_readable(self._fd, self._readable, self._rank)

    def _readable(self) -> None:
        if not self._read():
            self.close()
            self._on_close()

    def _read(self) -> bool:
        """Read once, at most one buffer; False when the peer has gone or is faulty."""
        try:
            count = self._sock.recv_into(_buffer)
        except BlockingIOError:
            return True
        except OSError:
            # A Unix socket is reset when its peer closed with something unread.
            return False
        if not count:
            return False
        if not self._inbox and count - 4 == _LENGTH.unpack_from(_buffer)[0]:
            # One whole frame, as usual: decoded in the buffer, before anything can overwrite it.
            return self._decode(_buffer[4:count])
        return self._feed(bytes(_buffer[:count]))

    def _decode(self, frame: memoryview) -> bool:
        try:
            message = self._decoder.decode(frame)
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
            # Text that is not UTF-8, or nesting that is too deep: no fault of the reader's.
            self.error = f"it sent a frame that cannot be decoded ({type(error).__name__})"
            return False
        self._on_message(message)
        return True

    def _feed(self, data: bytes) -> bool:
        if self._inbox:
            self._inbox += data
            if len(self._inbox) < self._needed:  # copied once when it is whole, not at every read
                return True
            data = bytes(self._inbox)
            self._inbox.clear()
        start, end = 0, len(data)
        view = memoryview(data)
        while end - start >= 4:
            (length,) = _LENGTH.unpack_from(data, start)
            if not 0 <= length <= MAX_FRAME_BYTES:
                self.error = f"it announced a frame of {length} bytes"
                return False
            if end - start - 4 < length:
                break
            start += 4 + length
            if not self._decode(view[start - length : start]):
                return False
            if self.closed:
                return True
        if start < end:
            self._inbox += view[start:]
            self._needed = 4 + (_LENGTH.unpack_from(data, start)[0] if end - start >= 4 else 0)
        return True

    def drain(self) -> None:
        """Read until it would block or ends: the last messages of a dead peer (law 3)."""
        while not self.closed:
            try:
                data = bytes(_buffer[: self._sock.recv_into(_buffer)])
            except OSError:  # nothing more for now, or ever
                return
            if not data or not self._feed(data):
                return

    def close(self) -> None:
        """Close this side and drop what was not sent. `on_close` is not called."""
        if self.closed:
            return
        self.closed = True
        self._loop.forget(self._fd)
        self._outbox.clear()
        self._unsent.clear()
        with contextlib.suppress(OSError):
            self._sock.close()
