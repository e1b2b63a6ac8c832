"""MySQL and MariaDB through PyMySQL: driver, session settings, errors by kind."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pymysql
from pymysql.connections import MySQLResult
from pymysql.constants import FIELD_TYPE
from pymysql.converters import escape_bool

from workerd import clock, lean_imports
from workerd.config.store_url import Host, MySQLUrl
from workerd.errors import StoreAway, StoreBusy, StoreError, StoreRefused
from workerd.store import migrations, schema, servers
from workerd.store.base import (
    LastStatement,
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
from workerd.store.mysql_dialect import MYSQL, literal
from workerd.store.mysql_errors import (
    NO_ANSWER,
    NOT_COMMITTED,
    NOTHING_DONE,
    SERVER_READ_ONLY,
    TOO_LARGE,
    UNREACHABLE,
    classify,
)
from workerd.store.patient_connection import PatientConnection
from workerd.store.resolver import Address, resolver
from workerd.store.schema import Migration

MIN_SHARE_S = 0.05
"""What each server gets of the time limit for connecting, however many there are."""
_MIGRATION_TIMEOUT_S = 86_400.0
MIGRATION_LOCK_WAIT_S = 2
MIGRATION_PAUSE_S = 4.0
"""A change of a table waits so long for transactions that use it, since all others wait behind it meanwhile,
and then lets them pass for so long before it tries again."""

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
        return self._connect_for(self._timeout)

    def _connect_for(self, timeout: float) -> MySQLSession:
        """A session on the first server, in the order of the URL, that may be written.

        `timeout`: of a statement. Raises StoreAway.
        """
        failed: list[_NoSession] = []
        for host, limit_s in self._hosts():
            for attempt in self._attempts(host, limit_s, timeout):
                self.on_progress()
                if isinstance(attempt, _NoSession):
                    failed.append(attempt)
                    continue
                try:
                    attempt.check_server()
                    return attempt
                except _NoSession as error:
                    failed.append(error)
                except StoreAway as error:
                    failed.append(_NoSession(str(host), f"does not answer: {error}", error.code))
                attempt.close()
        raise _none_usable(failed)

    def _hosts(self) -> Iterator[tuple[Host, float]]:
        """The hosts in their order, each with its share of what is left of the time limit."""
        deadline = time.monotonic() + self._timeout
        hosts = self._address.hosts
        for left, host in zip(range(len(hosts), 0, -1), hosts, strict=True):
            yield host, max(MIN_SHARE_S, (deadline - time.monotonic()) / left)

    def _attempts(self, host: Host, limit_s: float, timeout: float) -> Iterator[MySQLSession | _NoSession]:
        """Each address of a host in turn: a session on it, or why there is none."""
        deadline = time.monotonic() + limit_s
        where = str(host) if len(self._address.hosts) > 1 else self._address.shown
        try:
            addresses = _addresses(self._address, host, limit_s / 2)
        except OSError as error:
            yield _no_session(where, error)
            return
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            share_s = max(MIN_SHARE_S, (deadline - time.monotonic()) / left)
            try:
                link = _open(self._address, host, address, self._password(), share_s, self.on_progress)
            except (pymysql.Error, OSError, ValueError, RuntimeError) as error:
                yield _no_session(where, error)
                continue
            plain_text = self._address.tls.mode == "preferred" and not _is_secure(link)
            try:
                yield MySQLSession(link, self._address.unix_socket or str(host), timeout, plain_text)
            except StoreAway as error:
                yield _NoSession(where, f"does not answer: {error}", error.code)

    def server_states(self) -> list[ServerState]:
        return [self._state(host, limit_s) for host, limit_s in self._hosts()]

    def _state(self, host: Host, limit_s: float) -> ServerState:
        """What a host is; of several addresses the first that may be written, else the first that answers."""
        where = self._address.unix_socket or str(host)
        state = ServerState(where, "", ServerRole.AWAY, "it has no address")
        for attempt in self._attempts(host, limit_s, self._timeout):
            if isinstance(attempt, _NoSession):
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
        session = self._connect_for(_MIGRATION_TIMEOUT_S)
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
        deadline = time.monotonic() + _MIGRATION_TIMEOUT_S
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


class MySQLSession(Session):
    """One connection, in a transaction from its first statement to COMMIT or ROLLBACK.

    `can_pipeline`: whether the server takes a statement before it has answered the one before.
    """

    dialect = MYSQL

    def __init__(self, link: PatientConnection, where: str, timeout: float, plain_text: bool) -> None:
        self._link = link
        self._where = where
        self.plain_text = plain_text
        self.server = where
        self.can_pipeline = False
        self._commits_at_once = False
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
        link.limit_s = timeout

    def is_dead(self) -> bool:
        """Between transactions a server sends nothing but that it hangs up."""
        return self._link.is_readable()

    def check_server(self) -> None:
        """Raises StoreAway unless the server may be written."""
        obstacle = self._ask()
        if obstacle:
            raise _NoSession(self.server, obstacle, servers.READ_ONLY_CODE, answered=True)

    def state(self) -> ServerState:
        """What the server is, as one of those in the URL."""
        try:
            obstacle = self._ask()
        except StoreAway as error:
            return ServerState(self._where, self.server_version, ServerRole.AWAY, str(error))
        role = ServerRole.READ_ONLY if obstacle else ServerRole.WRITABLE
        clear = "not encrypted: the server cannot, which ssl=preferred allows" if self.plain_text else ""
        return ServerState(self._where, self.server_version, role, obstacle or clear)

    def _ask(self) -> str:
        """Why the server may not be written, "" if it may."""
        found = servers.variables(self)
        self.server = servers.description(self._where, found, self.server_version)
        self.can_pipeline = servers.can_pipeline(self, found)
        return servers.obstacle(self, found)

    def begin(self, write: bool) -> None:
        """With autocommit off, the first statement begins the transaction: one round trip less."""
        self._commits_at_once = False
        if self._link.get_autocommit():
            self._run("SET AUTOCOMMIT = 0")

    def begin_alone(self, write: bool) -> None:
        """A SELECT has its COMMIT with it. For writing, autocommit stays on until `begin`."""
        self._commits_at_once = not write and self.can_pipeline
        if not self._commits_at_once and not self._link.get_autocommit():
            self._run("SET AUTOCOMMIT = 1")

    def may_have_committed(self, error: StoreAway) -> bool:
        return error.code not in NOTHING_DONE

    def was_not_committed(self, error: StoreError) -> bool:
        return isinstance(error, StoreAway) and error.code in NOT_COMMITTED

    def commit(self) -> None:
        if not self._commits_at_once and not self._link.get_autocommit():
            self._run("COMMIT")

    def commit_after(self, last: LastStatement) -> StoreError | None:
        if not self.can_pipeline:
            return super().commit_after(last)
        try:
            statement = self._bytes(_bound(last.sql, last.params))
        except StoreRefused as error:
            return error
        done, committed = self._pipeline([statement, b"COMMIT"])
        if isinstance(done, StoreError):
            return done
        if isinstance(committed, StoreError):
            raise committed
        if done.affected_rows != last.expected:
            raise StoreAway(
                f"{done.affected_rows} rows were changed in place of {last.expected}", answered=True
            )
        return None

    def rollback(self) -> None:
        self._run("ROLLBACK")

    def execute(self, sql: str, params: Params = ()) -> int:
        return int(self._run(_bound(sql, params)).affected_rows or 0)

    def query(self, sql: str, params: Params = ()) -> list[Row]:
        if self._commits_at_once and not self._link.get_autocommit():
            return self._rows([self._bytes(_bound(sql, params)), b"COMMIT"])[0]
        return list(self._run(_bound(sql, params)).rows or ())

    def queries(self, statements: Sequence[tuple[str, Params]]) -> list[list[Row]]:
        if not self.can_pipeline:
            return super().queries(statements)
        return self._rows([self._bytes(_bound(sql, params)) for sql, params in statements])

    def _rows(self, statements: list[bytes]) -> list[list[Row]]:
        answers = self._pipeline(statements)
        for answer in answers:
            if isinstance(answer, StoreError):
                raise answer
        return [list(answer.rows or ()) for answer in answers if not isinstance(answer, StoreError)]

    def _pipeline(self, statements: list[bytes]) -> list[MySQLResult | StoreError]:
        try:
            answers = self._link.pipeline(statements)
        except (pymysql.Error, OSError, RuntimeError) as error:
            raise self._classified(error) from None
        return [self._classified(a) if isinstance(a, pymysql.Error) else a for a in answers]

    def clock(self) -> int:
        return clock.from_text(self.query("SELECT UTC_TIMESTAMP(6)")[0][0])

    def close(self) -> None:
        with suppress(pymysql.Error, OSError):
            self._link.close()

    def _run(self, sql: str) -> MySQLResult:
        statement = self._bytes(sql)
        try:
            return self._link.ask(statement)
        except (pymysql.Error, OSError, RuntimeError) as error:
            raise self._classified(error) from None

    def _bytes(self, sql: str) -> bytes:
        """A statement as it is sent. Raises StoreRefused if the server would not take it."""
        try:
            statement = sql.encode("utf-8")
        except UnicodeEncodeError as error:
            raise StoreRefused(f"text is not valid Unicode: {error.reason}", 1366) from None
        # The server hangs up on a longer one, which would look like a lost connection (law 7).
        if self.max_packet is not None and len(statement) >= self.max_packet:
            limit = f"the server's max_allowed_packet is {self.max_packet}"
            raise StoreRefused(f"the statement has {len(statement)} bytes, {limit}", TOO_LARGE)
        return statement

    def _classified(self, error: Exception) -> StoreError:
        """A driver's error as ours, with the server's message and code."""
        code, message = _code_and_message(error)
        if code in SERVER_READ_ONLY:
            return _NoSession(self.server, f"{servers.READ_ONLY} ({message})", code, answered=True)
        return classify(code, message)


def _bound(sql: str, params: Params) -> str:
    return sql % tuple(map(literal, params)) if params else sql


class _UnixLink(PatientConnection):
    """A connection over a Unix socket, which servers consider as safe as TLS."""

    _secure = True  # the driver sets it only for sockets that it connected itself


class _NoSession(StoreAway):
    """A server that does not answer, or may not be written: `where` it is, and `clause`, what it does."""

    def __init__(self, where: str, clause: str, code: int, *, answered: bool = False) -> None:
        super().__init__(f"The store {where} {clause}", code, answered=answered)
        self.where = where
        self.clause = clause


def _no_session(where: str, error: Exception) -> _NoSession:
    code, message = _code_and_message(error)
    answered = code not in NO_ANSWER
    does = "refuses the connection" if answered else "does not answer"
    return _NoSession(where, f"{does}: {message}", code, answered=answered)


def _none_usable(failed: list[_NoSession]) -> StoreAway:
    """The error of a store none of whose servers may be written; its code is of one that answered, if any."""
    if len(failed) == 1:
        return failed[0]
    telling = next((error for error in failed if error.answered), failed[0])
    each = "; ".join(f"{error.where} {error.clause}" for error in failed)
    return StoreAway(
        f"The store has no server that can be written: {each}", telling.code, answered=telling.answered
    )


def _open(
    address: MySQLUrl,
    host: Host,
    peer: Address,
    password: str,
    limit_s: float,
    on_progress: Callable[[], None],
) -> PatientConnection:
    try:
        return _connected(address, host, peer, password, limit_s, on_progress)
    except RuntimeError:
        # The driver needs RSA and does not have it.
        if not lean_imports.load_rsa():
            raise
    return _connected(address, host, peer, password, limit_s, on_progress)


def _connected(
    address: MySQLUrl,
    host: Host,
    peer: Address,
    password: str,
    limit_s: float,
    on_progress: Callable[[], None],
) -> PatientConnection:
    tls = address.tls
    link = (PatientConnection if address.unix_socket is None else _UnixLink)(
        limit_s=limit_s,
        on_progress=on_progress,
        user=address.user,
        password=password.encode("utf-8"),
        host=host.name,
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
    link.connect(_dial(peer, limit_s))
    return link


def _is_secure(link: Any) -> bool:
    return bool(link._secure)  # the driver's own mark: TLS, or a Unix socket


def _addresses(address: MySQLUrl, host: Host, limit_s: float) -> list[Address]:
    """Where a host may be reached. Raises OSError."""
    if address.unix_socket is not None:
        return [Address(socket.AF_UNIX, address.unix_socket)]
    return resolver.addresses(host.name, host.port, limit_s)


def _dial(peer: Address, limit_s: float) -> socket.socket:
    """A connected socket; connected here because the driver leaks it when there is no answer."""
    link = socket.socket(peer.family, socket.SOCK_STREAM)
    try:
        link.settimeout(limit_s)
        if peer.family != socket.AF_UNIX:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        link.connect(peer.sockaddr)
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
