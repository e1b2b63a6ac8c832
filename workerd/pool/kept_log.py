"""What a run printed and logged, to be kept with its attempt: the beginning and the newest of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from workerd.pool.log_relay import record_in
from workerd.text import decode, field_value, harmless

HEAD_SHARE = 16
"""The first 1/16 of the limit is kept, and of the rest the newest."""
_JOINED_BYTES = 4096
"""Pieces of text are joined up to this size: a handler may write byte by byte."""


class LogPart(NamedTuple):
    """Part of a log that is being written; `until`: where the next begins, `skipped`: bytes lost."""

    text: str
    until: int
    skipped: int


class _Piece:
    """Bytes that were read together: text, or one record as JSON. `start`: bytes written before it."""

    __slots__ = ("data", "is_record", "start")

    def __init__(self, start: int, data: bytes | bytearray, is_record: bool) -> None:
        self.start = start
        self.data = data
        self.is_record = is_record

    @property
    def end(self) -> int:
        return self.start + len(self.data)


class KeptLog:
    """The log of one run, at most `limit` bytes of it."""

    def __init__(self, limit: int) -> None:
        self._head_limit = limit // HEAD_SHARE
        self._tail_limit = limit - self._head_limit
        self._head: list[_Piece] = []
        self._tail: deque[_Piece] = deque()
        self._written = 0

    def add(self, data: bytes, *, is_record: bool = False) -> None:
        """Append text as it was read, or a record."""
        if self._written < self._head_limit:
            room = self._head_limit - self._written
            if is_record or len(data) <= room:
                self._append(self._head, data, is_record)
                return
            self._append(self._head, data[:room], False)
            data = data[room:]
        if len(data) > self._tail_limit and not is_record:
            left_out = len(data) - self._tail_limit
            self._written += left_out
            self._tail.clear()
            data = data[left_out:]
        self._append(self._tail, data, is_record)
        while self._tail and self._written - self._tail[0].end >= self._tail_limit:
            self._tail.popleft()

    def _append(self, pieces: list[_Piece] | deque[_Piece], data: bytes, is_record: bool) -> None:
        last = pieces[-1] if pieces else None
        joins = last is not None and not last.is_record and not is_record and last.end == self._written
        if joins and last is not None and len(last.data) + len(data) <= _JOINED_BYTES:
            last.data += data
        else:
            pieces.append(_Piece(self._written, data, is_record))
        self._written += len(data)

    def text(self) -> tuple[str, int]:
        """The kept text, control characters and invalid UTF-8 escaped, and how many bytes were left out."""
        head, tail = _rendered(self._head), _rendered(self._tail)
        first = self._tail[0].start if self._tail else self._written
        dropped = first - (self._head[-1].end if self._head else 0)
        if not dropped and len(head) + len(tail) <= self._head_limit + self._tail_limit:
            whole = head + tail
            if len(whole.encode()) <= self._head_limit + self._tail_limit:
                return whole, 0
        head, cut_of_head = _beginning(head, self._head_limit)
        tail, cut_of_tail = _ending(tail, self._tail_limit)
        dropped += cut_of_head + cut_of_tail
        if not dropped:
            return head + tail, 0
        return f"{head}… {dropped:,} bytes are left out here …\n{tail}", dropped

    def since(self, start: int, *, ended: bool) -> LogPart:
        """What came after the first `start` bytes, as far as it is kept; whole lines until it `ended`."""
        pieces = [piece for piece in self._pieces() if piece.end > start]
        first = pieces[0].start if pieces else self._written
        skipped = max(0, first - start)
        if pieces and first < start and not pieces[0].is_record:
            data = bytes(pieces[0].data[start - first :])
            pieces[0] = _Piece(start, data, False)
        until = self._written
        if not ended and pieces and not pieces[-1].is_record:
            last = pieces[-1]
            whole = bytes(last.data).rfind(b"\n") + 1
            if whole or len(last.data) < _JOINED_BYTES:
                until = last.start + whole
                pieces[-1] = _Piece(last.start, bytes(last.data[:whole]), False)
        return LogPart(_rendered(pieces), until, skipped)

    def _pieces(self) -> Iterator[_Piece]:
        yield from self._head
        yield from self._tail


def _rendered(pieces: Iterable[_Piece]) -> str:
    """As text for people."""
    parts: list[str] = []
    text = bytearray()
    for piece in pieces:
        if not piece.is_record:
            text += piece.data
            continue
        parts.append(_text(text))
        if text and not text.endswith(b"\n"):
            parts.append("\n")
        text.clear()
        parts.append(_record(bytes(piece.data)))
    parts.append(_text(text))
    return "".join(parts)


def _text(data: bytearray) -> str:
    return harmless(decode(bytes(data)).replace("\r\n", "\n"))


def _record(data: bytes) -> str:
    """`warning: slow image  width=200`, and the traceback below it."""
    record = record_in(data)
    if record is None:  # user code has imitated a frame
        return harmless(decode(data)) + "\n"
    fields = "".join(f" {name}={field_value(value)}" for name, value in record.fields.items())
    line = f"{record.level}: {record.event}" + (f" {fields}" if fields else "")
    return harmless(line if record.exception is None else f"{line}\n{record.exception.rstrip()}") + "\n"


def _beginning(text: str, limit: int) -> tuple[str, int]:
    """The first lines within the limit, at least part of one, and the number of bytes cut."""
    data = text.encode()
    if len(data) <= limit and (not text or text.endswith("\n")):
        return text, 0
    kept = data[:limit]
    kept = kept[: kept.rfind(b"\n") + 1] or kept
    shown = kept.decode("utf-8", "ignore")
    return shown if shown.endswith("\n") else shown + "\n", len(data) - len(kept)


def _ending(text: str, limit: int) -> tuple[str, int]:
    """The last lines within the limit, at least part of one, and the number of bytes cut."""
    data = text.encode()
    if len(data) <= limit:
        return text, 0
    kept = data[-limit:]
    kept = kept[kept.find(b"\n", 0, len(kept) - 1) + 1 :]
    return kept.decode("utf-8", "ignore"), len(data) - len(kept)
