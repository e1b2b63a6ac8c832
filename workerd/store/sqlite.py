"""SQLite: one file, one writer at a time, every transaction short."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from workerd import clock
from workerd.config.store_url import SQLiteUrl
from workerd.errors import StoreAway, StoreError, StoreRefused
from workerd.store import migrations, schema
from workerd.store.base import Store, Tx, schema_version
from workerd.store.session import LockLost, Params, Row, ServerRole, ServerState, Session
from workerd.store.sqlite_dialect import SQLITE

BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_SCHEMA, sqlite3.SQLITE_PROTOCOL})
REFUSED = frozenset({sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG})
"""What is known to be the fault of a row's values; every other code is the state of the store."""
_REFUSED_MESSAGES = ("malformed JSON", "JSON path error", "integer overflow")
"""The same of SQLITE_ERROR, which has no code of its own for it."""
DATABASE_MOVED = sqlite3.SQLITE_READONLY_DBMOVED
"""SQLite's own code for a file that was moved while it was open."""
SERVER_VERSION = f"SQLite {sqlite3.sqlite_version}"
_DISK_CODES = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})
_LEAST_FREE_BYTES = 64 * 1024
"""With less, an I/O error is blamed on the full disk; SQLite's shared memory grows by half of that."""
_STEPS = 100_000  # virtual machine steps between two checks of the time limit, about a millisecond
_LEAST_PAUSE_S, _MAX_PAUSE_S = 0.0005, 0.003
"""Between two tries to get the lock, growing to the longer one within 50 ms. Dispatcher and ingester of a
busy node always wait for each other: measured with no-ops, pauses of 1 to 3 ms from the start cost 4 % of
their throughput."""


def open_store(url: SQLiteUrl, timeout: float, password_file: Path | None) -> Store:
    """An embedded store, which needs no password, not connected yet."""
    return SQLiteStore(url, timeout)


class SQLiteStore(Store):
    """An embedded store."""

    dialect = SQLITE
    embedded = True

    def __init__(self, address: SQLiteUrl, timeout: float) -> None:
        super().__init__(address.shown)
        self._path = address.path
        self._timeout = timeout

    def _connect(self) -> SQLiteSession:
        if self._was_there and not self._path.exists():
            raise _removed(self._path)
        session = SQLiteSession(self._path, self._timeout, self.on_progress)
        self._was_there = True
        return session

    def is_empty(self) -> bool:
        return self._is_missing() or super().is_empty()

    def check_version(self) -> None:
        if self._is_missing():
            migrations.check(None, SERVER_VERSION)
        super().check_version()

    def _is_missing(self) -> bool:
        """Whether there was never a file, as before the first migration; a removed one is an outage."""
        return not self._was_there and self._path.parent.is_dir() and not self._path.exists()

    def migrate(self) -> list[str]:
        if not self._was_there and not self._path.exists():
            _create(self._path)
        # A session of its own: each new column with a check reads all rows, seconds for a million.
        session = SQLiteSession(self._path, migrations.TIMEOUT_S, self.on_progress, lock_wait=self._timeout)
        self._was_there = True
        try:
            session.begin(write=True)
            applied = _migrate(Tx(session))
            session.commit()
        finally:
            session.close()
        return applied

    def server_states(self) -> list[ServerState]:
        if self._is_missing():
            reason = "it does not exist yet; the daemon or `workerd migrate` creates it"
            return [ServerState(self.shown, SERVER_VERSION, ServerRole.WRITABLE, reason)]
        try:
            return [ServerState(self.shown, self.server_version, ServerRole.WRITABLE, "")]
        except StoreAway as error:
            return [ServerState(self.shown, "", ServerRole.AWAY, str(error))]


def _create(path: Path) -> None:
    """The only place where the file is made: a connection that made it could hide that it was removed."""
    try:
        path.parent.mkdir(0o750, parents=True, exist_ok=True)
        path.touch(0o644)
    except OSError as error:
        raise StoreAway(
            f"The store {path} cannot be created ({error.strerror}); make its folder writable", answered=True
        ) from None


def _migrate(tx: Tx) -> list[str]:
    """Apply all that is missing, or nothing."""
    applied = []
    tx.execute(schema.SQLITE_MIGRATIONS)
    for migration in migrations.missing(schema_version(tx)):
        for statement in migration.sqlite:
            tx.execute(statement)
        tx.execute("INSERT INTO workerd_migrations (version, name) VALUES (%s, %s)", migration[:2])
        applied.append(f"{migration.version}: {migration.name}")
    return applied


class SQLiteSession(Session):
    """One connection; text is returned as bytes, the clock is the machine's."""

    dialect = SQLITE
    max_packet: int | None = None

    def __init__(
        self, path: Path, timeout: float, on_progress: Callable[[], None], lock_wait: float | None = None
    ) -> None:
        """`timeout`: of a statement, and of the wait for the file's lock unless `lock_wait` is given."""
        self._timeout = timeout
        self._lock_wait = timeout if lock_wait is None else lock_wait
        self._on_progress = on_progress
        self._end = 0.0
        self.server = str(path)
        self.server_version = SERVER_VERSION
        self._path = path
        self._shared_memory = f"{path}-shm"
        self._file = _identity(path)
        try:
            # `_locked` waits for the lock: SQLite's own pauses grow to 100 ms.
            self._link = sqlite3.connect(
                f"{path.as_uri()}?mode=rw", uri=True, timeout=0, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            if self._file is None:
                why = "does not exist; `workerd migrate` creates it, as the daemon does when it starts"
            else:
                why = f"cannot be opened ({error}); make its folder writable"
            raise StoreAway(f"The store {path} {why}", answered=True) from None
        self._link.text_factory = bytes
        self._cursor = self._link.cursor()
        self._link.set_progress_handler(self._over, _STEPS)
        try:
            # WAL: readers and the writer do not block each other. FULL: a commit survives a power cut.
            self._locked("PRAGMA journal_mode = WAL")
            self._locked("PRAGMA synchronous = FULL")
            self._locked("PRAGMA temp_store = MEMORY")
            self._locked("SELECT 1 FROM sqlite_schema LIMIT 1")  # maps the log's index
        except StoreError:
            self.close()
            raise
        self._index = _identity(self._shared_memory)

    def check_server(self) -> None:
        """Raises StoreAway if the file is no longer the one that is open: what is written would be lost.

        Likewise if the log's index is not: those who have another one do not see what is written.
        """
        found = _identity(self._path)
        if found is None:
            raise _removed(self._path)
        if found != self._file or _identity(self._shared_memory) != self._index:
            text = f"The store {self._path} was replaced by another file"
            raise StoreAway(text, DATABASE_MOVED, answered=True)

    def was_not_committed(self, error: StoreError) -> bool:
        return isinstance(error, StoreAway) and error.code & 0xFFFF in (
            DATABASE_MOVED,
            sqlite3.SQLITE_FULL,
        )

    def begin(self, write: bool) -> None:
        self.check_server()
        self._locked("BEGIN IMMEDIATE" if write else "BEGIN")

    def commit(self) -> None:
        self.check_server()
        self._locked("COMMIT")

    def rollback(self) -> None:
        if self._link.in_transaction:
            self.execute("ROLLBACK")

    def execute(self, sql: str, params: Params = ()) -> int:
        self._end = time.monotonic() + self._timeout
        try:
            return self._cursor.execute(_translated(sql), params).rowcount
        except (sqlite3.Error, UnicodeEncodeError, OverflowError) as error:
            raise self._classified(error) from None

    def execute_each(self, sql: str, rows: Sequence[Params]) -> int:
        self._end = time.monotonic() + self._timeout
        try:
            return self._cursor.executemany(_translated(sql), rows).rowcount
        except (sqlite3.Error, UnicodeEncodeError, OverflowError) as error:
            raise self._classified(error) from None

    def query(self, sql: str, params: Params = ()) -> list[Row]:
        self._end = time.monotonic() + self._timeout
        try:
            return self._cursor.execute(_translated(sql), params).fetchall()
        except (sqlite3.Error, UnicodeEncodeError, OverflowError) as error:
            raise self._classified(error) from None

    def _classified(self, error: Exception) -> StoreError:
        found = classify(error)
        if isinstance(found, StoreAway) and found.code & 0xFF in _DISK_CODES and _is_full(self._path, found):
            text = f"The store {self._path} cannot grow ({error}): its disk is full; make room there"
            return StoreAway(text, found.code, answered=True)
        return found

    def clock(self) -> int:
        return clock.now_us()

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self._link.close()

    def _over(self) -> int:
        self._on_progress()
        return int(time.monotonic() > self._end)

    def _locked(self, statement: str) -> None:
        """Run a statement that needs the file's lock, again after short pauses until the time limit."""
        began = time.monotonic()
        while True:
            self._on_progress()
            try:
                self.execute(statement)
                return
            except LockLost as error:
                waited = time.monotonic() - began
                if waited > self._lock_wait:
                    raise StoreAway(
                        "another program keeps a transaction open on the database file; end that transaction",
                        error.code,
                    ) from None
            pause = min(_MAX_PAUSE_S, _LEAST_PAUSE_S + waited / 20)
            time.sleep(random.uniform(pause / 2, pause))


def _removed(path: Path) -> StoreAway:
    return StoreAway(f"The store {path} was removed; put its file back", DATABASE_MOVED, answered=True)


def _identity(path: Path | str) -> tuple[int, int] | None:
    """Device and inode of the file at `path`, None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _is_full(path: Path, error: StoreAway) -> bool:
    """Whether the disk is the cause: SQLite reports an I/O error for some of what it cannot write."""
    if error.code & 0xFF == sqlite3.SQLITE_FULL:
        return True
    try:
        disk = os.statvfs(path.parent)
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize < _LEAST_FREE_BYTES


def _translated(sql: str) -> str:
    return sql.replace("%s", "?")


def classify(error: Exception) -> StoreError:
    """A driver's error as ours, with SQLite's message and code."""
    if not isinstance(error, sqlite3.Error):
        return StoreRefused(f"a value cannot be stored: {error}", sqlite3.SQLITE_MISMATCH)
    code = getattr(error, "sqlite_errorcode", 0)
    kind = code & 0xFF  # the primary result code
    if kind in BUSY:
        return LockLost(str(error), code)
    if kind in REFUSED or (kind == sqlite3.SQLITE_ERROR and str(error).startswith(_REFUSED_MESSAGES)):
        return StoreRefused(f"SQLite: {error}", code)
    return StoreAway(f"SQLite: {error}", code, answered=True)
