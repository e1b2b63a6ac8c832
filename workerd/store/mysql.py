"""MySQL and MariaDB: the first host that may be written, and migrations beside writers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pymysql

from workerd.config.store_url import Host, MySQLUrl
from workerd.errors import StoreAway, StoreBusy, StoreRefused
from workerd.store import migrations, schema
from workerd.store.base import Store, Tx, schema_version
from workerd.store.mysql_connections import addresses, is_secure, no_session, none_usable, open_link
from workerd.store.mysql_dialect import MYSQL
from workerd.store.mysql_posting import Posting
from workerd.store.mysql_session import MySQLSession, NoSession
from workerd.store.schema import Migration
from workerd.store.session import LockLost, ServerRole, ServerState

MIN_SHARE_S = 0.05
"""What each server gets of the time limit for connecting, however many there are."""
MIGRATION_LOCK_WAIT_S = 2
MIGRATION_PAUSE_S = 4.0
"""A change of a table waits so long for transactions that use it, since all others wait behind it meanwhile,
and then lets them pass for so long before it tries again."""


def open_store(url: MySQLUrl, timeout: float, password_file: Path | None) -> Store:
    """A store on a MySQL or MariaDB server, not connected yet."""
    return MySQLStore(url, timeout, password_file)


class MySQLStore(Store):
    """A store on a MySQL or MariaDB server."""

    dialect = MYSQL

    def __init__(self, address: MySQLUrl, timeout: float, password_file: Path | None) -> None:
        super().__init__(address.shown)
        self._address = address
        self._timeout = timeout
        self._password_file = password_file

    def _connect(self) -> MySQLSession:
        return self._connect_for(self._timeout)

    def _connect_for(self, timeout: float) -> MySQLSession:
        """A session on the first server, in the order of the URL, that may be written.

        `timeout`: of a statement. Raises StoreAway.
        """
        failed: list[NoSession] = []
        for host, limit_s in self._hosts():
            for attempt in self._attempts(host, limit_s, timeout):
                self.on_progress()
                if isinstance(attempt, NoSession):
                    failed.append(attempt)
                    continue
                try:
                    attempt.check_server()
                    return attempt
                except NoSession as error:
                    failed.append(error)
                except StoreAway as error:
                    failed.append(NoSession(str(host), f"does not answer: {error}", error.code))
                attempt.close()
        raise none_usable(failed)

    def posting(self) -> Posting | None:
        session = self._connected()
        # Of others it is not known that the answer to an INSERT tells its time.
        if not isinstance(session, MySQLSession) or not session.can_pipeline:
            return None
        session.begin_alone(True)
        return Posting(session, self._count, self.close)

    def _hosts(self) -> Iterator[tuple[Host, float]]:
        """The hosts in their order, each with its share of what is left of the time limit."""
        deadline = time.monotonic() + self._timeout
        hosts = self._address.hosts
        for left, host in zip(range(len(hosts), 0, -1), hosts, strict=True):
            yield host, max(MIN_SHARE_S, (deadline - time.monotonic()) / left)

    def _attempts(self, host: Host, limit_s: float, timeout: float) -> Iterator[MySQLSession | NoSession]:
        """Each address of a host in turn: a session on it, or why there is none."""
        deadline = time.monotonic() + limit_s
        where = str(host) if len(self._address.hosts) > 1 else self._address.shown
        try:
            found = addresses(self._address, host, limit_s / 2)
        except OSError as error:
            yield no_session(where, error)
            return
        for left, address in zip(range(len(found), 0, -1), found, strict=True):
            share_s = max(MIN_SHARE_S, (deadline - time.monotonic()) / left)
            try:
                link = open_link(self._address, host, address, self._password(), share_s, self.on_progress)
            except (pymysql.Error, OSError, ValueError, RuntimeError) as error:
                yield no_session(where, error)
                continue
            plain_text = self._address.tls.mode == "preferred" and not is_secure(link)
            try:
                yield MySQLSession(
                    link, self._address.unix_socket or str(host), timeout, self.idle_limit_s, plain_text
                )
            except StoreAway as error:
                yield NoSession(where, f"does not answer: {error}", error.code)

    def server_states(self) -> list[ServerState]:
        return [self._state(host, limit_s) for host, limit_s in self._hosts()]

    def _state(self, host: Host, limit_s: float) -> ServerState:
        """What a host is; of several addresses the first that may be written, else the first that answers."""
        where = self._address.unix_socket or str(host)
        state = ServerState(where, "", ServerRole.AWAY, "it has no address")
        for attempt in self._attempts(host, limit_s, self._timeout):
            if isinstance(attempt, NoSession):
                found = ServerState(where, "", ServerRole.AWAY, attempt.clause)
            else:
                found = attempt.state()
                attempt.close()
            if found.role is ServerRole.WRITABLE:
                return found
            if state.role is ServerRole.AWAY:
                state = found
        return state

    def _password(self) -> str:
        if self._password_file is None:
            return self._address.password
        try:
            # Read at every connect, so that a password can be changed without a restart.
            return self._password_file.read_text("utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not UTF-8"
            raise StoreAway(
                f"store.password_file {self._password_file} cannot be read ({why}); make it readable"
            ) from None

    def migrate(self) -> list[str]:
        # A connection of its own: copying a large table takes longer than any statement of daily work.
        session = self._connect_for(migrations.TIMEOUT_S)
        try:
            migrations.require_version(session.server_version)
            return self._migrate(session)
        finally:
            session.close()

    def _migrate(self, session: MySQLSession) -> list[str]:
        """Apply what is missing, statement by statement, each again while it loses its locks."""
        session.execute(f"SET SESSION lock_wait_timeout = {MIGRATION_LOCK_WAIT_S}")
        found = schema_version(Tx(session))
        session.rollback()
        missing = migrations.missing(found)
        if not missing:
            return []  # nor is CREATE needed, which the user of a daemon may lack
        self._again(partial(_ddl, session, schema.MYSQL_MIGRATIONS))
        applied = []
        for migration in missing:
            for statement in migration.mysql:
                self._change(partial(_ddl, session, statement))
            if self._again(partial(_note_migration, session, migration)):
                applied.append(f"{migration.version}: {migration.name}")
        return applied

    def _change(self, change: Callable[[], None]) -> None:
        """Change a table once no transaction uses it. Raises StoreBusy if there is one for a day."""
        deadline = time.monotonic() + migrations.TIMEOUT_S
        while True:
            try:
                return self._again(change)
            except StoreBusy:
                if time.monotonic() > deadline:
                    raise
            self.on_progress()
            time.sleep(MIGRATION_PAUSE_S)


# Table, column or index is there already, or already gone: MySQL commits at each DDL statement, so a
# migration that was cut short, or that another node runs too, meets its own work.
_DONE_BEFORE = frozenset({1050, 1060, 1061, 1091})


def _ddl(session: MySQLSession, statement: str) -> None:
    try:
        session.execute(statement)
    except LockLost:
        session.rollback()
        raise
    except (StoreRefused, StoreAway) as error:
        if error.code not in _DONE_BEFORE:
            raise


def _note_migration(session: MySQLSession, migration: Migration) -> bool:
    """Whether this call recorded it: of two that migrate at once, one finds the row there."""
    try:
        changed = session.execute(
            "INSERT INTO workerd_migrations (version, name) VALUES (%s, %s)"
            " ON DUPLICATE KEY UPDATE version = version",
            migration[:2],
        )
        session.commit()
    except LockLost:
        session.rollback()
        raise
    return bool(changed)
