"""SQLite: one file, one writer at a time, every transaction short."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from workerd import clock
from workerd.config.store_url import SQLiteUrl
from workerd.errors import StoreAway, StoreError, StoreRefused
from workerd.store import migrations, schema
from workerd.store.base import (
    LockLost,
    Params,
    Row,
    ServerRole,
    ServerState,
    Session,
    Store,
    Tx,
    schema_version,
)
from workerd.store.sqlite_dialect import SQLITE

BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_SCHEMA, sqlite3.SQLITE_PROTOCOL})
REFUSED = frozenset({sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG})
"""What is known to be the fault of a row's values; every other code is the state of the store."""
_REFUSED_MESSAGES = ("malformed JSON", "JSON path error", "integer overflow")
"""The same of SQLITE_ERROR, which has no code of its own for it."""
_STEPS = 100_000  # virtual machine steps between two checks of the time limit, about a millisecond


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
        return SQLiteSession(self._path, self._timeout, self.on_progress)

    def migrate(self) -> list[str]:
        return self.run(_migrate)

    def server_states(self) -> list[ServerState]:
        try:
            return [ServerState(self.shown, self.server_version, ServerRole.WRITABLE, "")]
        except StoreAway as error:
            return [ServerState(self.shown, "", ServerRole.AWAY, str(error))]


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

    def __init__(self, path: Path, timeout: float, on_progress: Callable[[], None]) -> None:
        self._timeout = timeout
        self._on_progress = on_progress
        self._end = 0.0
        self.server = str(path)
        self.server_version = f"SQLite {sqlite3.sqlite_version}"
        try:
            # `_locked` waits for the lock: SQLite's own pauses grow to 100 ms.
            self._link = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise StoreAway(f"{path} cannot be opened ({error}); make its folder writable") from None
        self._link.text_factory = bytes
        self._cursor = self._link.cursor()
        self._link.set_progress_handler(self._over, _STEPS)
        try:
            # WAL: readers and the writer do not block each other. FULL: a commit survives a power cut.
            self._locked("PRAGMA journal_mode = WAL")
            self._locked("PRAGMA synchronous = FULL")
            self._locked("PRAGMA temp_store = MEMORY")
        except StoreError:
            self.close()
            raise

    def begin(self, write: bool) -> None:
        self._locked("BEGIN IMMEDIATE" if write else "BEGIN")

    def commit(self) -> None:
        self._locked("COMMIT")

    def rollback(self) -> None:
        if self._link.in_transaction:
            self.execute("ROLLBACK")

    def execute(self, sql: str, params: Params = ()) -> int:
        self._end = time.monotonic() + self._timeout
        try:
            return self._cursor.execute(_translated(sql), params).rowcount
        except (sqlite3.Error, UnicodeEncodeError, OverflowError) as error:
            raise classify(error) from None

    def query(self, sql: str, params: Params = ()) -> list[Row]:
        self._end = time.monotonic() + self._timeout
        try:
            return self._cursor.execute(_translated(sql), params).fetchall()
        except (sqlite3.Error, UnicodeEncodeError, OverflowError) as error:
            raise classify(error) from None

    def clock(self) -> int:
        return clock.now_us()

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self._link.close()

    def _over(self) -> int:
        self._on_progress()
        return int(time.monotonic() > self._end)

    def _locked(self, statement: str) -> None:
        """Run a statement that needs the file's lock, again every 1-3 ms until the time limit."""
        end = time.monotonic() + self._timeout
        while True:
            self._on_progress()
            try:
                self.execute(statement)
                return
            except LockLost as error:
                if time.monotonic() > end:
                    raise StoreAway(
                        "another program keeps a transaction open on the database file; end that transaction",
                        error.code,
                    ) from None
            time.sleep(random.uniform(0.001, 0.003))


@lru_cache(maxsize=512)
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
