"""The records of a spool file, readable again whatever became of the file.

A record is a mark, the length of its body, a CRC-32 and the body. The checksum starts from a salt that
each file has in its name, so that neither a block of an older file nor bytes that a handler chose pass for
a record. After a damaged stretch reading goes on at the next record that is whole.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple
from zlib import crc32

MARK = b"\xabwd\x01"
_HEAD = struct.Struct("<4sII")
OVERHEAD = _HEAD.size
"""Bytes that a record is longer than its body."""

BODY_LIMIT = 128 * 1024 * 1024
"""Bytes of one body; a length above it is damage."""


class Record(NamedTuple):
    """A whole record: its body, and where the next begins."""

    body: bytes
    end: int


class Damage(NamedTuple):
    """A stretch that holds no whole record. `torn`: what a write that was cut short leaves at the end."""

    start: int
    end: int
    torn: bool


def pack(body: bytes, seed: int) -> bytes:
    """A body as a record of the file whose salt is `seed` (32 bits)."""
    length = len(body)
    return _HEAD.pack(MARK, length, crc32(body, seed ^ length)) + body


def records(data: bytes, seed: int) -> Iterator[Record | Damage]:
    """Everything that a file holds, in order; damage is told once a stretch."""
    at = 0
    while at < len(data):
        record = _record_at(data, at, seed)
        if record is None:
            found = _next_record(data, at + 1, seed)
            yield Damage(at, found, torn=found == len(data) and _is_torn(data[at:]))
            at = found
        else:
            yield record
            at = record.end


def _record_at(data: bytes, at: int, seed: int) -> Record | None:
    if len(data) - at < OVERHEAD:
        return None
    mark, length, check = _HEAD.unpack_from(data, at)
    end = at + OVERHEAD + length
    if mark != MARK or length > BODY_LIMIT or end > len(data):
        return None
    body = data[at + OVERHEAD : end]
    return Record(body, end) if crc32(body, seed ^ length) == check else None


def _next_record(data: bytes, at: int, seed: int) -> int:
    """Where the next whole record begins; the end of the data if there is none."""
    while (at := data.find(MARK, at)) >= 0:
        if _record_at(data, at, seed) is not None:
            return at
        at += 1
    return len(data)


def _is_torn(rest: bytes) -> bool:
    """Whether the last bytes are a record that was being written, or blocks that never were."""
    if len(rest) < OVERHEAD or not rest.strip(b"\0"):
        return True
    mark, length, _ = _HEAD.unpack_from(rest)
    return bool(mark == MARK and length <= BODY_LIMIT and OVERHEAD + length > len(rest))
