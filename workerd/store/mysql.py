"""MySQL and MariaDB through PyMySQL: driver, session settings, errors by kind."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pymysql
from pymysql.constants import FIELD_TYPE
from pymysql.converters import escape_bool

from workerd import clock, lean_imports
from workerd.config.store_url import MySQLUrl
from workerd.errors import StoreAway, StoreError, StoreRefused
from workerd.store import migrations, schema
from workerd.store.base import LockLost, Params, Row, Session, Store, Tx, schema_version
from workerd.store.mysql_dialect import MYSQL, literal
from workerd.store.mysql_errors import NOT_COMMITTED, NOTHING_DONE, TOO_LARGE, UNREACHABLE, classify
from workerd.store.patient_connection import PatientConnection
from workerd.store.schema import Migration

_MIGRATION_TIMEOUT_S = 86_400.0

_INTEGERS = (FIELD_TYPE.TINY, FIELD_TYPE.SHORT, FIELD_TYPE.INT24, FIELD_TYPE.LONG, FIELD_TYPE.LONGLONG)
_FLOATS = (FIELD_TYPE.FLOAT, FIELD_TYPE.DOUBLE, FIELD_TYPE.DECIMAL, FIELD_TYPE.NEWDECIMAL)
_CONVERSIONS: dict[int | type[Any], Callable[[Any], str] | Callable[[str], Any]] = {
    bool: escape_bool,  # the driver itself needs it for SET AUTOCOMMIT
    **dict.fromkeys(_INTEGERS, int),
    **dict.fromkeys(_FLOATS, float),
}

# Strict, and without NO_BACKSLASH_ESCAPES, on which `literal` relies.
_SQL_MODE = "STRICT_ALL_TABLES,NO_ZERO_DATE,NO_ZERO_IN_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION"


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
        return MySQLSession(self._address, self._password(), self._timeout, self.on_progress)

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
        session = MySQLSession(self._address, self._password(), _MIGRATION_TIMEOUT_S, self.on_progress)
        try:
            migrations.require_version(session.server_version)
            return self._migrate(session)
        finally:
            session.close()

    def _migrate(self, session: MySQLSession) -> list[str]:
        """Apply what is missing, statement by statement, each again while it loses its locks."""
        found = schema_version(Tx(session))
        missing = migrations.missing(found)
        self._again(partial(_ddl, session, schema.MYSQL_MIGRATIONS))
        applied = []
        for migration in missing:
            for statement in migration.mysql:
                self._again(partial(_ddl, session, statement))
            if self._again(partial(_note_migration, session, migration)):
                applied.append(f"{migration.version}: {migration.name}")
        return applied


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


class MySQLSession(Session):
    """One connection, in a transaction from its first statement to COMMIT or ROLLBACK."""

    dialect = MYSQL

    def __init__(
        self, address: MySQLUrl, password: str, timeout: float, on_progress: Callable[[], None]
    ) -> None:
        try:
            self._link = _open(address, password, timeout, on_progress)
        except (pymysql.Error, OSError, ValueError, RuntimeError) as error:
            code, message = _code_and_message(error)
            raise StoreAway(f"The store {address.shown} does not answer: {message}", code) from None
        self.plain_text = address.tls.mode == "preferred" and not _is_secure(self._link)
        self._cursor = self._link.cursor()
        self.max_packet: int | None = None
        try:
            version, packet = self.query("SELECT VERSION(), @@max_allowed_packet")[0]
            self.server_version = version.decode("ascii", "replace")
            self.max_packet = packet
            for statement in _settings("MariaDB" in self.server_version, timeout):
                self.execute(statement)
        except StoreError:
            self.close()
            raise

    def begin(self, write: bool) -> None:
        """With autocommit off, the first statement begins the transaction: one round trip less."""
        if self._link.get_autocommit():
            self._run("SET AUTOCOMMIT = 0")

    def begin_alone(self, write: bool) -> None:
        """Autocommit stays on until `begin`, so that single statements in a row switch it once."""
        if not self._link.get_autocommit():
            self._run("SET AUTOCOMMIT = 1")

    def may_have_committed(self, error: StoreAway) -> bool:
        return error.code not in NOTHING_DONE

    def was_not_committed(self, error: StoreError) -> bool:
        return isinstance(error, StoreAway) and error.code in NOT_COMMITTED

    def commit(self) -> None:
        if not self._link.get_autocommit():
            self._run("COMMIT")

    def rollback(self) -> None:
        self._run("ROLLBACK")

    def execute(self, sql: str, params: Params = ()) -> int:
        return self._run(sql % tuple(map(literal, params)) if params else sql)

    def query(self, sql: str, params: Params = ()) -> list[Row]:
        self._run(sql % tuple(map(literal, params)) if params else sql)
        return list(self._cursor.fetchall())

    def clock(self) -> int:
        return clock.from_text(self.query("SELECT UTC_TIMESTAMP(6)")[0][0])

    def close(self) -> None:
        with suppress(pymysql.Error, OSError):
            self._link.close()

    def _run(self, sql: str) -> int:
        # The server hangs up on a longer one, which would look like a lost connection (law 7).
        if self.max_packet is not None and len(sql) > self.max_packet // 4:
            size = len(sql.encode("utf-8", "surrogatepass"))
            if size >= self.max_packet:
                limit = f"the server's max_allowed_packet is {self.max_packet}"
                raise StoreRefused(f"the statement has {size} bytes, {limit}", TOO_LARGE)
        try:
            return int(self._cursor.execute(sql))
        except UnicodeEncodeError as error:
            raise StoreRefused(f"text is not valid Unicode: {error.reason}", 1366) from None
        except (pymysql.Error, OSError, RuntimeError) as error:
            raise _classified(error) from None


class _UnixLink(PatientConnection):
    """A connection over a Unix socket, which servers consider as safe as TLS."""

    _secure = True  # the driver sets it only for sockets that it connected itself


def _open(
    address: MySQLUrl, password: str, timeout: float, on_progress: Callable[[], None]
) -> PatientConnection:
    try:
        return _connected(address, password, timeout, on_progress)
    except RuntimeError:
        # The driver needs RSA and does not have it.
        if not lean_imports.load_rsa():
            raise
    return _connected(address, password, timeout, on_progress)


def _connected(
    address: MySQLUrl, password: str, timeout: float, on_progress: Callable[[], None]
) -> PatientConnection:
    tls = address.tls
    link = (PatientConnection if address.unix_socket is None else _UnixLink)(
        limit_s=timeout,
        on_progress=on_progress,
        user=address.user,
        password=password.encode("utf-8"),
        host=address.host,
        database=address.database,
        charset="utf8mb4",
        collation="utf8mb4_bin",
        use_unicode=False,
        conv=dict(_CONVERSIONS),
        autocommit=False,
        program_name="workerd",
        ssl_disabled=True if tls.mode == "off" else None,
        ssl_ca=tls.ca,
        ssl_cert=tls.cert,
        ssl_key=tls.key,
        ssl_verify_cert=tls.verify if tls.mode == "required" else None,
        ssl_verify_identity=tls.verify if tls.mode == "required" else None,
        defer_connect=True,
    )
    link.connect(_dial(address, timeout))
    return link


def _is_secure(link: Any) -> bool:
    return bool(link._secure)  # the driver's own mark: TLS, or a Unix socket


def _dial(address: MySQLUrl, timeout: float) -> socket.socket:
    """A connected socket; connected here because the driver leaks it when there is no answer."""
    if address.unix_socket is None:
        link = socket.create_connection((address.host, address.port), timeout)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return link
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.settimeout(timeout)
    try:
        link.connect(address.unix_socket)
    except OSError:
        link.close()
        raise
    return link


def _settings(mariadb: bool, timeout: float) -> list[str]:
    # The server ends a statement shortly before the socket times out, so that the connection survives.
    seconds = timeout * 0.8
    if mariadb:
        # A long list of ids must stay a range on the primary key, not become a subquery.
        special = f"max_statement_time = {seconds:.3f}, in_predicate_conversion_threshold = 0"
    else:
        special = f"max_execution_time = {int(seconds * 1000)}"
    return [
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
        f"SET SESSION innodb_lock_wait_timeout = 1, lock_wait_timeout = {max(1, math.ceil(seconds))},"
        f" time_zone = '+00:00', sql_mode = '{_SQL_MODE}', {special}",
    ]


def _code_and_message(error: BaseException) -> tuple[int, str]:
    args = error.args
    if isinstance(error, pymysql.Error) and len(args) > 1 and isinstance(args[0], int):
        return args[0], str(args[1])
    return (UNREACHABLE if isinstance(error, OSError) else 0), str(error)


def _classified(error: BaseException) -> StoreError:
    """A driver's error as ours, with the server's message and code."""
    code, message = _code_and_message(error)
    return classify(code, message)
