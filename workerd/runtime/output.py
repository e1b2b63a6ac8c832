"""What a child prints and logs: always read, so that it never blocks; bounded for each period.

Text is split into lines; log records come in frames between them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from workerd.runtime.log_frames import FrameReader
from workerd.runtime.loop import Loop


class Keeper(Protocol):
    """Gets everything that is read, including what is not passed on."""

    def add(self, data: bytes, *, is_record: bool = False) -> None:
        """Text, or one record."""


MAX_PERIOD_BYTES = 64 * 1024
"""Bytes of text passed on in one period, and as many again of records; the rest is only counted."""
MAX_LINE_BYTES = 4096
"""A longer line is passed on in pieces."""
MIN_LINE_COST_BYTES = 32
"""Minimum that a line counts for: every line costs the log something."""
_READ_BYTES = 64 * 1024
_MAX_DRAIN_READS = 16
"""About sixteen full pipes: a flood of output must not block the loop."""


class OutputReader:
    """The reading end of a child's output pipe.

    `on_lines` gets complete lines as text, invalid UTF-8 replaced, control characters not escaped;
    `on_record` the bytes of a log record. A period is a job, or the time between two; `end_period` returns
    how many of its bytes were dropped. `touched`: something was read in this period. `before_read`
    is called before anything is read. `keeper` gets all that is read from when it is set. `scrub` returns the
    text without secrets, and how many bytes at its end may be the beginning of one.
    """

    def __init__(
        self,
        loop: Loop,
        fd: int,
        on_lines: Callable[[list[str]], None],
        before_read: Callable[[], None] = lambda: None,
        on_record: Callable[[bytes], None] = lambda record: None,
        scrub: Callable[[bytes], tuple[bytes, int]] | None = None,
    ) -> None:
        self._before_read = before_read
        self._on_record = on_record
        self._scrub = scrub
        self._held = b""
        self._frames = FrameReader()
        self._loop = loop
        self._fd = fd
        self._on_lines = on_lines
        self._budget = self._record_budget = MAX_PERIOD_BYTES
        self._dropped = 0
        self._partial = b""
        self.touched = False
        self.keeper: Keeper | None = None
        os.set_blocking(fd, False)
        loop.on_readable(fd, self._readable, rank=0)

    def _readable(self) -> None:
        self._before_read()
        if not self._read():
            self._loop.forget(self._fd)

    def _read(self) -> bool:
        """Read once; False at the end of the pipe."""
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return True
        if data:
            self._take(data)
        return bool(data)

    def drain(self) -> None:
        """Read what is in the pipe now, without waiting for its end: a writer may live forever."""
        for _ in range(_MAX_DRAIN_READS):
            try:
                data = os.read(self._fd, _READ_BYTES)
            except (BlockingIOError, OSError):
                return
            if not data:
                return
            self._take(data)

    def _take(self, data: bytes) -> None:
        self.touched = True
        keeper = self.keeper
        for part, is_record in self._frames.split(data):
            if self._scrub is not None and not is_record:
                part = self._scrubbed(part)
            if keeper is not None:
                keeper.add(part, is_record=is_record)
            if is_record:
                self._take_record(part)
            else:
                self._take_text(part)

    def _scrubbed(self, data: bytes) -> bytes:
        """The text without what must not be passed on; what may be the beginning of it is held."""
        assert self._scrub is not None
        data, back = self._scrub(self._held + data)
        cut = max(data.rfind(b"\n") + 1, len(data) - back) if back else len(data)
        self._held = data[cut:]
        return data[:cut]

    def _take_record(self, record: bytes) -> None:
        if self._record_budget <= 0:
            self._dropped += len(record)
            return
        self._record_budget -= max(len(record), MIN_LINE_COST_BYTES)
        self._on_record(record)

    def _take_text(self, data: bytes) -> None:
        if self._budget <= 0:
            self._dropped += len(data)
            return
        *whole, self._partial = (self._partial + data).split(b"\n")
        lines: list[str] = []
        for line in whole:
            self._add(line, lines)
        while len(self._partial) > MAX_LINE_BYTES and self._budget > 0:
            self._add(self._partial[:MAX_LINE_BYTES], lines)
            self._partial = self._partial[MAX_LINE_BYTES:]
        if self._budget <= 0:
            self._dropped += len(self._partial)
            self._partial = b""
        if lines:
            self._on_lines(lines)

    def _add(self, line: bytes, lines: list[str]) -> None:
        if not line:
            self._budget -= 1
        for start in range(0, len(line), MAX_LINE_BYTES):
            piece = line[start : start + MAX_LINE_BYTES]
            if self._budget <= 0:
                self._dropped += len(piece)
                continue
            kept = piece[: self._budget]
            self._budget -= max(len(kept), MIN_LINE_COST_BYTES)
            self._dropped += len(piece) - len(kept)
            lines.append(kept.decode("utf-8", "replace"))

    def end_period(self) -> int:
        """End the period: pass an unfinished line on; returns the number of bytes not passed on."""
        begun, self._held = self._held + self._frames.flush(), b""
        if begun:
            if self.keeper is not None:
                self.keeper.add(begun)
            self._take_text(begun)
        if self._partial:
            lines: list[str] = []
            self._add(self._partial, lines)
            self._partial = b""
            if lines:
                self._on_lines(lines)
        dropped = self._dropped + self._frames.dropped
        self._dropped = self._frames.dropped = 0
        self._budget = self._record_budget = MAX_PERIOD_BYTES
        self.touched = False
        return dropped

    def close(self) -> None:
        """Close the pipe."""
        self._loop.forget(self._fd)
        os.close(self._fd)
