"""Outcomes on disk while the store is unavailable: appended durably, replayed in order, deleted."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import msgspec

from workerd import log
from workerd.ingester.pending import BatchLimit, weight
from workerd.outcome import Outcome

# The folder holds one SQLite file, deleted when all of it is replayed. A file that a former process left or
# that turns out to be damaged is only read: new outcomes go to a new file, which no old damage can reach.
#
# Replaying an outcome twice (the process died between the commit in the store and the deletion here) has no
# effect the second time: every outcome names its attempt and the incarnation that owned it (law 1).

ROW_BYTES = 24
"""Bytes that a row takes beside its body: number, checksum, and what SQLite adds."""
SMALLEST_ROW_BYTES = 64
DELETE_BYTES = 4 * 1024 * 1024
"""Replayed bytes that are deleted together: each deletion costs an fsync."""
LOG_BYTES = 4 * 1024 * 1024
"""What SQLite's write-ahead log shrinks to; it comes on top of `ingester.spool`."""
LOCK_TIMEOUT_S = 1.0
MAX_COPIES = 10
"""Damaged files, and damaged rows, that are kept for inspection."""
DAMAGED_PREFIX = "damaged-"
"""Of the names of those."""

_NAME = re.compile(r"(\d{12})\.db")
_APPEND = "INSERT INTO outcomes (number, checksum, body) VALUES (?, ?, ?)"
_READ = "SELECT number, checksum, body FROM outcomes WHERE number >= ? ORDER BY number"
_EDGE = "SELECT number FROM outcomes ORDER BY number {} LIMIT 1"
_DELETE = "DELETE FROM outcomes WHERE number < ?"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Outcome).decode

_log = log.get_logger("ingester")


def _checksum(number: int, body: bytes) -> int:
    return crc32(body, number & 0xFFFFFFFF)


class _SpoolFile:
    """One SQLite file; outcomes numbered `first` to `end - 1` are not replayed yet.

    The constructor raises sqlite3.Error if the file cannot be used at all.
    """

    def __init__(self, path: Path, *, ours: bool) -> None:
        self.path = path
        self.ours = ours  # begun by this process
        self.damaged = False
        self._undeleted_bytes = 0
        self._db = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None)
        self._db.text_factory = bytes  # of a damaged row anything may come
        try:
            self._prepare()
        except BaseException as error:
            self._db.close()
            if isinstance(error, UnicodeDecodeError):  # in sqlite3's own message about a damaged schema
                raise sqlite3.DatabaseError("the schema is damaged") from None
            raise

    def _prepare(self) -> None:
        execute = self._db.execute
        execute("PRAGMA locking_mode = EXCLUSIVE")  # one process, so no shared memory beside the log
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")  # each COMMIT is fsynced: law 6
        execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
        execute(
            "CREATE TABLE IF NOT EXISTS outcomes"
            " (number INTEGER PRIMARY KEY, checksum INTEGER NOT NULL, body BLOB NOT NULL)"
        )
        size = sum(file.stat().st_size for file in self.path.parent.glob(f"{self.path.name}*"))
        self.first = self._edge("ASC", otherwise=1) or 1
        self.end = self._edge("DESC", otherwise=size // SMALLEST_ROW_BYTES) + 1
        # Not the sum of the rows' lengths: that would read the whole file.
        self.bytes = size if self.first < self.end else 0

    def _edge(self, order: str, otherwise: int) -> int:
        """The first or last number, 0 if there are no rows, `otherwise` if that page is damaged."""
        try:
            (number,) = self._db.execute(_EDGE.format(order)).fetchone() or (0,)
        except sqlite3.DatabaseError as error:
            self.note_damage(error)
            return otherwise
        return int(number)

    @property
    def writable(self) -> bool:
        """Whether what is appended is safe here."""
        return self.ours and not self.damaged

    def note_damage(self, error: sqlite3.Error) -> None:
        """Log it once; from now on the file is only read."""
        if not self.damaged:
            self.damaged = True
            _log.error("spool.damaged", file=str(self.path), error=str(error))

    def append(self, bodies: Sequence[bytes]) -> None:
        """Write all in one transaction. Raises sqlite3.Error; then none was written."""
        rows = [(number, _checksum(number, body), body) for number, body in enumerate(bodies, self.end)]
        try:
            self._db.execute("BEGIN")
            self._db.executemany(_APPEND, rows)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            if not isinstance(error, sqlite3.OperationalError):  # not the disk, but what is on it
                self.note_damage(error)
            raise
        self.end += len(rows)
        self.bytes += sum(map(len, bodies)) + ROW_BYTES * len(rows)

    def read(self) -> sqlite3.Cursor:
        """(number, checksum, body) of what is not replayed yet; raises sqlite3.Error, also while reading."""
        return self._db.execute(_READ, (self.first,))

    def forget(self, below: int, size: int) -> None:
        """What is numbered below `below`, `size` bytes, is replayed."""
        self.first = below
        self.bytes -= size
        self._undeleted_bytes += size
        if self._undeleted_bytes < DELETE_BYTES or self.damaged or below >= self.end:
            return
        # What cannot be deleted now is replayed again by the next process, without effect.
        with contextlib.suppress(sqlite3.Error):
            self._db.execute(_DELETE, (below,))
        self._undeleted_bytes = 0

    def skip_unreadable(self) -> None:
        """Move `first` past the stretch that cannot be read, by steps that double and then halve again."""
        step = 1
        while self.first + step < self.end and not self._readable(self.first + step):
            step *= 2
        bad, good = self.first + step // 2, min(self.first + step, self.end)
        while good - bad > 1:
            middle = (bad + good) // 2
            bad, good = (bad, middle) if self._readable(middle) else (middle, good)
        self.first = good

    def _readable(self, number: int) -> bool:
        try:
            self._db.execute(f"{_READ} LIMIT 1", (number,)).fetchone()
        except sqlite3.Error:
            return False
        return True

    def close(self) -> None:
        self._db.close()


class Spool:
    """A bounded queue of outcomes on disk, in the folder `folder`, at most `limit` bytes.

    `trouble`: why the last append took less than it was given, one sentence, empty if it took all.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._files: deque[_SpoolFile] = deque()
        self._last_file = 0
        self._peeked: list[tuple[int, int]] = []  # number and bytes of the outcomes of the last peek
        self.trouble = ""

    def open(self) -> None:
        """Open what former processes left. Raises OSError if the folder cannot be used."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sync_folder(self._folder.parent)
        for name in sorted(os.listdir(self._folder)):
            match = _NAME.fullmatch(name)
            if match is not None:
                self._last_file = int(match[1])
                self._open_file(self._folder / name)
        if self._files:
            _log.info("spool.opened", rows=self.rows, bytes=self.bytes)

    def _open_file(self, path: Path) -> None:
        try:
            file = _SpoolFile(path, ours=False)
        except (OSError, sqlite3.OperationalError) as error:
            _log.error("spool.unreadable", file=str(path), error=str(error))
        except sqlite3.DatabaseError as error:
            _log.error("spool.damaged", file=str(path), error=str(error))
            self._keep_copy(path)
        else:
            self._files.append(file)
            if file.first >= file.end:
                self._remove(file)

    @property
    def empty(self) -> bool:
        """Whether everything that was appended has been replayed."""
        return not self._files

    @property
    def rows(self) -> int:
        """Outcomes that are not replayed yet; at the edge of a damaged file an upper bound."""
        return sum(file.end - file.first for file in self._files)

    @property
    def bytes(self) -> int:
        """Bytes of these outcomes; of a former process, the size of its file."""
        return sum(max(0, file.bytes) for file in self._files)

    @property
    def half_full(self) -> bool:
        """Whether more than half of the limit is used."""
        return self.bytes > self._limit // 2

    # -- writing

    def append(self, outcomes: Sequence[Outcome]) -> int:
        """Make outcomes durable, in order; how many were, less than all only with `trouble` set."""
        bodies = _fitting(outcomes, self._limit - self.bytes)
        self.trouble = "" if len(bodies) == len(outcomes) else f"the spool is full ({self._limit} bytes)"
        if not bodies:
            return 0
        try:
            if not self._files or not self._files[-1].writable:
                self._begin_file()
            self._files[-1].append(bodies)
        except (OSError, sqlite3.Error) as error:
            self.trouble = f"the spool cannot be written: {error}"
            return 0
        return len(bodies)

    def _begin_file(self) -> None:
        self._last_file += 1
        path = self._folder / f"{self._last_file:012d}.db"
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            _sync_folder(self._folder)
            self._files.append(_SpoolFile(path, ours=True))
        except BaseException:
            _delete(path)
            raise

    # -- reading

    def peek(self, rows: int, max_weight: int) -> list[Outcome]:
        """The oldest outcomes, at most `rows`, weighing at most `max_weight`, one of each job."""
        while self._files:
            file = self._files[0]
            try:
                batch = self._read(file, rows, max_weight)
            except sqlite3.Error as error:
                file.note_damage(error)
                file.skip_unreadable()
                batch = []
                if file.first < file.end:
                    continue
            if batch:
                return batch
            self._remove(file)
        return []

    def _read(self, file: _SpoolFile, rows: int, max_weight: int) -> list[Outcome]:
        """As `peek`, of one file. Raises sqlite3.Error if its oldest rows cannot be read."""
        limit = BatchLimit(rows, max_weight)
        batch: list[Outcome] = []
        self._peeked = []
        try:
            for number, checksum, body in file.read():
                outcome = _outcome_of(number, checksum, body)
                if outcome is None:
                    if batch:
                        break
                    self._set_row_aside(file, number, body)
                elif limit.takes(outcome, weight(outcome)):
                    batch.append(outcome)
                    self._peeked.append((number, len(body) + ROW_BYTES))
                else:
                    break
        except sqlite3.Error:
            if not batch:
                raise
        return batch

    def advance(self, count: int) -> None:
        """The oldest `count` outcomes of the last peek are in the store: forget them."""
        if not count:
            return
        done, self._peeked = self._peeked[:count], self._peeked[count:]
        file = self._files[0]
        file.forget(done[-1][0] + 1, sum(size for _, size in done))
        if file.first >= file.end:
            self._remove(file)

    def _set_row_aside(self, file: _SpoolFile, number: int, body: object) -> None:
        """Skip the oldest row, which is damaged, and keep a copy of it."""
        file.first = number + 1
        copy = self._folder / f"{DAMAGED_PREFIX}{file.path.stem}-{number}"
        if len(list(self._folder.glob(f"{DAMAGED_PREFIX}*-*"))) < MAX_COPIES:
            with contextlib.suppress(OSError):
                copy.write_bytes(body if isinstance(body, bytes) else repr(body).encode())
        _log.error("spool.row_damaged", file=str(file.path), row=number, copy=str(copy))

    def _remove(self, file: _SpoolFile) -> None:
        """Delete a file, all of which is replayed; a damaged one is kept for inspection."""
        self._files.remove(file)
        file.close()
        if file.damaged:
            self._keep_copy(file.path)
        else:
            _delete(file.path)

    def _keep_copy(self, path: Path) -> None:
        if len(list(self._folder.glob(f"{DAMAGED_PREFIX}*.db"))) >= MAX_COPIES:
            _delete(path)
            return
        for suffix in ("", "-wal"):
            with contextlib.suppress(OSError):
                os.rename(f"{path}{suffix}", f"{path.parent}/{DAMAGED_PREFIX}{path.name}{suffix}")

    def close(self) -> None:
        """Close what is open; the files stay."""
        for file in self._files:
            file.close()


def _fitting(outcomes: Sequence[Outcome], room: int) -> list[bytes]:
    """As many encoded outcomes, from the front, as fit into `room` bytes."""
    bodies = []
    for outcome in outcomes:
        body = _encode(outcome)
        room -= len(body) + ROW_BYTES
        if room < 0:
            break
        bodies.append(body)
    return bodies


def _outcome_of(number: int, checksum: object, body: object) -> Outcome | None:
    """The outcome that a row holds; None if the row is damaged."""
    if not isinstance(body, bytes) or checksum != _checksum(number, body):
        return None
    try:
        return _decode(body)
    except msgspec.DecodeError:
        return None


def _delete(path: Path) -> None:
    # A file that stays is replayed again by the next process, without effect.
    for suffix in ("", "-wal"):
        with contextlib.suppress(OSError):
            os.unlink(f"{path}{suffix}")


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
