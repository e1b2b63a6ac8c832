"""Log records in an output pipe: frames that are told apart from printed text, and put together again.

A frame is `RS workerd PID.NUMBER MORE payload LF`, in one write of at most PIPE_BUF bytes, which the kernel
keeps in one piece: what other threads and processes print may come between the frames of a record, never
into one. The payload is JSON, which holds no control character.
"""

from __future__ import annotations

import itertools
import os
import select
from collections.abc import Iterator

MARK = b"\x1e"
"""Record separator: where a frame begins."""
MAX_FRAME_BYTES = 4096
"""PIPE_BUF: longer writes to a pipe may be torn apart."""
MAX_RECORD_BYTES = 64 * 1024
MAX_OPEN_RECORDS = 8
"""Records of which only a part was read: one a process at most, unless its writer died or was interrupted."""

_NAME = b"workerd"
_HEAD_BYTES = 64


class FrameWriter:
    """Writes records to an output pipe; may be used by several threads, and by forked processes."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._numbers = itertools.count()

    def write(self, record: bytes) -> None:
        """Write a record of at most MAX_RECORD_BYTES; blocks while nobody reads. Raises OSError."""
        key = b"%d.%d" % (os.getpid(), next(self._numbers))
        size = MAX_FRAME_BYTES - _HEAD_BYTES
        for start in range(0, len(record), size):
            more = b"1" if start + size < len(record) else b"0"
            self._write(b" ".join((MARK + _NAME, key, more, record[start : start + size])) + b"\n")

    def _write(self, frame: bytes) -> None:
        while True:
            try:
                os.write(self._fd, frame)
            except BlockingIOError:  # user code has made the pipe, which is its standard error, non-blocking
                select.select((), (self._fd,), ())
            else:
                return


class FrameReader:
    """Separates the records of an output pipe from its text.

    `dropped`: bytes of records that were too long or never came to their end.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._pending = b""
        self._open: dict[bytes, bytes] = {}

    def split(self, data: bytes) -> Iterator[tuple[bytes, bool]]:
        """Pieces of the data in their order: text as it is, and (record, True)."""
        if not self._pending and MARK not in data:
            yield data, False
            return
        data, self._pending = self._pending + data, b""
        while data:
            start = data.find(MARK)
            if start < 0:
                yield data, False
                return
            if start:
                yield data[:start], False
            end = data.find(b"\n", start)
            if end < 0 and len(data) - start < MAX_FRAME_BYTES:
                self._pending = data[start:]
                return
            end = end + 1 if end >= 0 else len(data)
            frame, data = data[start:end], data[end:]
            yield from self._frame(frame)

    def flush(self) -> bytes:
        """Text that began like a frame, at the end of a period; parts of records are counted as dropped."""
        pending, self._pending = self._pending, b""
        self.dropped += sum(map(len, self._open.values()))
        self._open.clear()
        return pending

    def _frame(self, frame: bytes) -> Iterator[tuple[bytes, bool]]:
        name, *rest = frame[1:-1].split(b" ", 3)
        if name != _NAME or len(rest) != 3 or rest[1] not in (b"0", b"1"):
            yield frame, False  # a handler printed the mark itself
            return
        key, more, part = rest
        record = self._open.pop(key, b"") + part
        if len(record) > MAX_RECORD_BYTES:
            self.dropped += len(record)
        elif more == b"0":
            yield record, True
        else:
            if len(self._open) >= MAX_OPEN_RECORDS:
                self.dropped += len(self._open.pop(next(iter(self._open))))
            self._open[key] = record
