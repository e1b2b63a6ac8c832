"""Outcomes on disk while the store is away: appended, fsynced, replayed in order, deleted."""

from __future__ import annotations

import contextlib
import os
import re
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import msgspec

from workerd import log
from workerd.ingester.pending import Measure, weight
from workerd.outcome import Outcome

# The records of a spool file, readable again whatever became of the file.
#
# A record is a mark, the length of its body, a CRC-32 and the body. The checksum starts from a salt that
# each file has in its name, so that neither a block of an older file nor bytes that a handler chose pass for
# a record. After a damaged stretch reading goes on at the next record that is whole.
#

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


# Outcomes on disk while the store is away: appended, fsynced, read again in order, then deleted.
#
# The folder holds numbered files. One is written at a time and read only after its writer has left it, so
# whatever a crash leaves at a file's end is never appended to. What is on disk twice (the process died
# between a commit and the deletion) changes nothing the second time: every outcome names its attempt and
# the incarnation that owned it.
#

FILE = 4 * 1024 * 1024
"""Bytes after which a new file is begun: what one replayed file holds in memory."""
COPIES = 100
"""So many damaged stretches are kept for a person to look at."""

_NAME = re.compile(r"(\d{12})-([0-9a-f]{8})\.spool")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Outcome).decode

_log = log.get_logger("ingester")


class _SpoolFile:
    """One file of the spool. `rows`: outcomes in it that are ours to replay; None if nobody counted."""

    def __init__(self, path: Path, seed: int, size: int, rows: int | None) -> None:
        self.path = path
        self.seed = seed
        self.size = size
        self.rows = rows


class Spool:
    """A bounded queue of outcomes on disk, in the folder `folder`, at most `limit` bytes.

    `trouble`: why the last append took less than it was given, one sentence, empty if it took all.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._files: deque[_SpoolFile] = deque()
        self._former = 0
        self._number = 0
        self._fd = -1
        self._reader: Iterator[Record | Damage] | None = None
        self._ahead: deque[tuple[Outcome, int]] = deque()
        self._data = b""
        self.rows = 0
        self.bytes = 0
        self.trouble = ""

    # -- what there is

    def open(self) -> None:
        """Find what former processes left. Raises OSError if the folder cannot be used."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sync_folder(self._folder.parent)
        for name in sorted(os.listdir(self._folder)):
            match = _NAME.fullmatch(name)
            if match is None:
                continue
            path = self._folder / name
            self._number = int(match[1])
            self._files.append(_SpoolFile(path, int(match[2], 16), path.stat().st_size, None))
        self._former = len(self._files)
        self.bytes = sum(file.size for file in self._files)

    @property
    def empty(self) -> bool:
        """Whether everything that was appended has been replayed."""
        return not self._files

    @property
    def former(self) -> bool:
        """Whether something is left that another process wrote, uncounted."""
        return self._former > 0

    # -- writing

    def append(self, outcomes: Sequence[Outcome]) -> int:
        """Make outcomes durable, in order; how many were, less than all only with `trouble` set."""
        taken, data = self._packed(outcomes)
        self.trouble = "" if taken == len(outcomes) else f"the spool is full ({self._limit} bytes)"
        if not taken:
            return 0
        try:
            self._write(data)
        except OSError as error:
            # A failed fsync may have thrown pages away: nothing of this write counts, and what comes
            # next goes into another file.
            self._leave(cut=True)
            self.trouble = f"the spool cannot be written: {error.strerror or error}"
            return 0
        file = self._files[-1]
        assert file.rows is not None
        file.size += len(data)
        file.rows += taken
        self.bytes += len(data)
        self.rows += taken
        if file.size >= FILE:
            self._leave(cut=False)
        return taken

    def _packed(self, outcomes: Sequence[Outcome]) -> tuple[int, bytes]:
        """As many as fit, as records of the file that they will be written to."""
        room = self._limit - self.bytes
        bodies = []
        for outcome in outcomes:
            body = _encode(outcome)
            room -= len(body) + OVERHEAD
            if room < 0:
                break
            bodies.append(body)
        if not bodies:
            return 0, b""
        seed = self._files[-1].seed if self._fd >= 0 else self._next_seed()
        return len(bodies), b"".join([pack(body, seed) for body in bodies])

    def _next_seed(self) -> int:
        """The salt of the file that the next write begins."""
        seed = int.from_bytes(os.urandom(4))
        path = self._folder / f"{self._number + 1:012d}-{seed:08x}.spool"
        self._files.append(_SpoolFile(path, seed, 0, 0))
        return seed

    def _write(self, data: bytes) -> None:
        if self._fd < 0:
            path = self._files[-1].path
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._number += 1
            _sync_folder(self._folder)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        os.fdatasync(self._fd)

    def _leave(self, *, cut: bool) -> None:
        """Close the file that is being written; `cut`: drop what was not made durable."""
        file = self._files[-1]
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                if cut:
                    os.ftruncate(fd, file.size)
            with contextlib.suppress(OSError):
                os.close(fd)
        if not file.size:
            self._files.pop()
            with contextlib.suppress(OSError):
                file.path.unlink(missing_ok=True)

    # -- reading

    def peek(self, rows: int, most: int) -> list[Outcome]:
        """The oldest outcomes, at most `rows`, weighing at most `most`, one of each job."""
        while self._files:
            measure = Measure(rows, most)
            batch: list[Outcome] = []
            for outcome, size in self._ahead:
                if not measure.takes(outcome, size):
                    return batch
                batch.append(outcome)
            if self._reader is None:
                self._load()
            elif self._read_ahead(rows):
                continue
            elif batch:
                return batch
            else:
                self._remove()
        return []

    def advance(self, count: int) -> None:
        """The oldest `count` outcomes are in the store: forget them."""
        if not count:
            return
        for _ in range(count):
            self._ahead.popleft()
        head = self._files[0]
        if head.rows is not None:
            head.rows -= count
            self.rows -= count
        if not self._ahead and self._reader is not None and not self._read_ahead(1):
            self._remove()

    def _load(self) -> None:
        head = self._files[0]
        if self._fd >= 0 and head is self._files[-1]:
            self._leave(cut=False)
        try:
            self._data = head.path.read_bytes()
        except OSError as error:
            _log.error(
                "a spool file cannot be read and is left aside: mend the disk, then restart the ingester",
                file=str(head.path),
                error=str(error),
            )
            self._forget()
            return
        self._reader = records(self._data, head.seed)

    def _read_ahead(self, rows: int) -> bool:
        """Decode up to `rows` more outcomes of the oldest file; false if it has no more."""
        assert self._reader is not None
        before = len(self._ahead)
        for item in self._reader:
            if isinstance(item, Damage):
                self._damaged(item.start, item.end, item.torn)
                continue
            try:
                outcome = _decode(item.body)
            except msgspec.DecodeError:
                self._damaged(item.end - len(item.body) - OVERHEAD, item.end, torn=False)
                continue
            self._ahead.append((outcome, weight(outcome)))
            if len(self._ahead) - before >= rows:
                break
        return len(self._ahead) > before

    def _damaged(self, start: int, end: int, torn: bool) -> None:
        name = self._files[0].path.name
        if torn:
            _log.info("cut what an unfinished write left in the spool", file=name, bytes=end - start)
            return
        copy = self._folder / f"damaged-{name}-{start}"
        if len(list(self._folder.glob("damaged-*"))) < COPIES:
            with contextlib.suppress(OSError):
                copy.write_bytes(self._data[start:end])
        _log.error(
            "a part of the spool is damaged and is skipped: the attempts in it will be found lost, "
            "check the disk; a copy is kept",
            file=name,
            bytes=end - start,
            copy=str(copy),
        )

    def _remove(self) -> None:
        """Delete the oldest file: all that it held is in the store."""
        path = self._files[0].path
        self._forget()
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            # It would be replayed once more by the next process, which changes nothing.
            _log.warning("a replayed spool file cannot be deleted", file=str(path), error=str(error))

    def _forget(self) -> None:
        head = self._files.popleft()
        self._reader, self._data = None, b""
        self._ahead.clear()
        self.bytes -= head.size
        if head.rows is None:
            self._former -= 1
        else:
            self.rows -= head.rows

    def close(self) -> None:
        """Close what is open; the files stay."""
        if self._fd >= 0:
            self._leave(cut=False)


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
