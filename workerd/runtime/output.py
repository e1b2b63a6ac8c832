"""What a child prints: always read, so that it never blocks; split in lines; bounded for each period."""

from __future__ import annotations

import os
from collections.abc import Callable

from workerd.runtime.loop import Loop

LIMIT = 64 * 1024
"""Bytes that are told of one period; what comes after is counted."""
LINE_LIMIT = 4096
"""Bytes of one line; a longer one is told in pieces."""
SHORTEST = 32
"""Bytes that a line counts for at least: the log has a price for every line."""
_READ = 64 * 1024
_AT_ONCE = 16
"""Reads in one go, about the size of a pipe sixteen times: a flood must not keep the loop."""


class Output:
    """The reading end of a child's output pipe.

    `on_lines` gets complete lines as text, invalid UTF-8 replaced; what they contain is not made
    harmless here. A period is a job, or the time between two; `turn_over` ends one and says how many
    bytes of it were not told. `touched`: something was read in this period. `before` is called before
    anything is read.
    """

    def __init__(
        self,
        loop: Loop,
        fd: int,
        on_lines: Callable[[list[str]], None],
        before: Callable[[], None] = lambda: None,
    ) -> None:
        self._before = before
        self._loop = loop
        self._fd = fd
        self._on_lines = on_lines
        self._left = LIMIT
        self._dropped = 0
        self._partial = b""
        self.touched = False
        os.set_blocking(fd, False)
        loop.on_readable(fd, self._readable, rank=0)

    def _readable(self) -> None:
        self._before()
        if not self._read():
            self._loop.forget(self._fd)

    def _read(self) -> bool:
        """Take one buffer; false at the end of the pipe."""
        try:
            data = os.read(self._fd, _READ)
        except BlockingIOError:
            return True
        if data:
            self._take(data)
        return bool(data)

    def drain(self) -> None:
        """Take what is in the pipe now; nothing waits for the writers to end, one may live for ever."""
        for _ in range(_AT_ONCE):
            try:
                data = os.read(self._fd, _READ)
            except (BlockingIOError, OSError):
                return
            if not data:
                return
            self._take(data)

    def _take(self, data: bytes) -> None:
        self.touched = True
        if self._left <= 0:
            self._dropped += len(data)
            return
        *lines, self._partial = (self._partial + data).split(b"\n")
        told: list[str] = []
        for line in lines:
            self._tell(line, told)
        while len(self._partial) > LINE_LIMIT and self._left > 0:
            self._tell(self._partial[:LINE_LIMIT], told)
            self._partial = self._partial[LINE_LIMIT:]
        if self._left <= 0:
            self._dropped += len(self._partial)
            self._partial = b""
        if told:
            self._on_lines(told)

    def _tell(self, line: bytes, told: list[str]) -> None:
        if not line:
            self._left -= 1
        for start in range(0, len(line), LINE_LIMIT):
            piece = line[start : start + LINE_LIMIT]
            if self._left <= 0:
                self._dropped += len(piece)
                continue
            kept = piece[: self._left]
            self._left -= max(len(kept), SHORTEST)
            self._dropped += len(piece) - len(kept)
            told.append(kept.decode("utf-8", "replace"))

    def turn_over(self) -> int:
        """End the period: tell what stands in an unfinished line, and return the bytes not told."""
        if self._partial:
            told: list[str] = []
            self._tell(self._partial, told)
            self._partial = b""
            if told:
                self._on_lines(told)
        dropped, self._dropped, self._left = self._dropped, 0, LIMIT
        self.touched = False
        return dropped

    def close(self) -> None:
        """Give the descriptor back."""
        self._loop.forget(self._fd)
        os.close(self._fd)
