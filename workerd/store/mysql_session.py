"""One connection to MySQL or MariaDB: its settings, pipelined statements, errors by kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pymysql
from pymysql.constants import FIELD_TYPE
from pymysql.converters import escape_bool

from workerd import clock
from workerd.errors import StoreAway, StoreError, StoreRefused
from workerd.store import servers
from workerd.store.mysql_dialect import MYSQL, literal
from workerd.store.mysql_errors import (
    NOT_COMMITTED,
    NOTHING_DONE,
    SERVER_READ_ONLY,
    TOO_LARGE,
    UNREACHABLE,
    classify,
)
from workerd.store.mysql_results import LeanResult
from workerd.store.patient_connection import PatientConnection
from workerd.store.session import LastStatement, Params, Row, ServerRole, ServerState, Session

_INTEGERS = (FIELD_TYPE.TINY, FIELD_TYPE.SHORT, FIELD_TYPE.INT24, FIELD_TYPE.LONG, FIELD_TYPE.LONGLONG)
_FLOATS = (FIELD_TYPE.FLOAT, FIELD_TYPE.DOUBLE, FIELD_TYPE.DECIMAL, FIELD_TYPE.NEWDECIMAL)
CONVERSIONS: dict[int | type[Any], Callable[[Any], str] | Callable[[str], Any]] = {
    bool: escape_bool,  # the driver itself needs it for SET AUTOCOMMIT
    **dict.fromkeys(_INTEGERS, int),
    **dict.fromkeys(_FLOATS, float),
}

# Strict, and without NO_BACKSLASH_ESCAPES, on which `literal` relies. Dates of no calendar, which another
# program may have written, must not stop a statement that only touches their rows.
_SQL_MODE = "STRICT_ALL_TABLES,ALLOW_INVALID_DATES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION"


class MySQLSession(Session):
    """One connection, in a transaction from its first statement to COMMIT or ROLLBACK.

    `can_pipeline`: whether the server takes a statement before it has answered the one before.
    `shows_early`: whether others see what a statement commits before it has answered.
    """

    dialect = MYSQL

    def __init__(
        self, link: PatientConnection, where: str, timeout: float, idle_limit: float, plain_text: bool
    ) -> None:
        self._link = link
        self._where = where
        self.plain_text = plain_text
        self.server = where
        self.can_pipeline = False
        self.shows_early = False
        self._commits_at_once = False
        self.max_packet: int | None = None
        try:
            version, packet = self.query("SELECT VERSION(), @@max_allowed_packet")[0]
            self.server_version = version.decode("ascii", "replace")
            self.max_packet = packet
            for statement in _settings("MariaDB" in self.server_version, timeout, idle_limit):
                self.execute(statement)
        except StoreError:
            self.close()
            raise
        link.limit_s = timeout

    def is_dead(self) -> bool:
        """Between transactions a server sends nothing but that it hangs up."""
        return self._link.is_unusable()

    def check_server(self) -> None:
        """Raises StoreAway unless the server may be written."""
        obstacle = self._ask()
        if obstacle:
            raise NoSession(self.server, obstacle, servers.READ_ONLY_CODE, answered=True)

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
        self.shows_early = servers.shows_early(self, found)
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
            statement = self.statement(last.sql, last.params)
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

    def execute_after(self, last: LastStatement, sql: str, params: Params = ()) -> int:
        if not self.can_pipeline:
            return super().execute_after(last, sql, params)
        both = [self.statement(last.sql, last.params), self.statement(sql, params)]
        first, second = self._answers(both)
        last.check(int(first.affected_rows or 0))
        return int(second.affected_rows or 0)

    def rollback(self) -> None:
        self._run("ROLLBACK")

    def execute(self, sql: str, params: Params = ()) -> int:
        return int(self._run(sql, params).affected_rows or 0)

    def execute_alone(self, sql: str, params: Params, on_sent: Callable[[], None]) -> int:
        return int(self._run(sql, params, on_sent if self.shows_early else None).affected_rows or 0)

    def query(self, sql: str, params: Params = ()) -> list[Row]:
        if self._commits_at_once and not self._link.get_autocommit():
            return self._rows([self.statement(sql, params), b"COMMIT"])[0]
        return list(self._run(sql, params).rows or ())

    def queries(self, statements: Sequence[tuple[str, Params]]) -> list[list[Row]]:
        if not self.can_pipeline:
            return super().queries(statements)
        return self._rows([self.statement(sql, params) for sql, params in statements])

    def _rows(self, statements: list[bytes]) -> list[list[Row]]:
        return [list(answer.rows or ()) for answer in self._answers(statements)]

    def _answers(self, statements: list[bytes]) -> list[LeanResult]:
        """The answer to each; raises the first error."""
        answers = self._pipeline(statements)
        for answer in answers:
            if isinstance(answer, StoreError):
                raise answer
        return [answer for answer in answers if not isinstance(answer, StoreError)]

    def _pipeline(self, statements: list[bytes]) -> list[LeanResult | StoreError]:
        try:
            answers = self._link.pipeline(statements)
        except (pymysql.Error, OSError, RuntimeError) as error:
            raise self.classified(error) from None
        return [self.classified(a) if isinstance(a, pymysql.Error) else a for a in answers]

    def clock(self) -> int:
        return clock.from_text(self.query("SELECT UTC_TIMESTAMP(6)")[0][0])

    def close(self) -> None:
        with suppress(pymysql.Error, OSError):
            self._link.close()

    @property
    def link(self) -> PatientConnection:
        """The driver's connection."""
        return self._link

    def _run(self, sql: str, params: Params = (), on_sent: Callable[[], None] | None = None) -> LeanResult:
        statement = self.statement(sql, params)
        try:
            return self._link.ask(statement, on_sent)
        except (pymysql.Error, OSError, RuntimeError) as error:
            raise self.classified(error) from None

    def statement(self, sql: str, params: Params = ()) -> bytes:
        """A statement as it is sent. Raises StoreRefused if the server would not take it."""
        try:
            statement = _bound(sql, params).encode("utf-8")
        except UnicodeEncodeError as error:
            raise StoreRefused(f"text is not valid Unicode: {error.reason}", 1366) from None
        # The server hangs up on a longer one, which would look like a lost connection (law 7).
        if self.max_packet is not None and len(statement) >= self.max_packet:
            limit = f"the server's max_allowed_packet is {self.max_packet}"
            raise StoreRefused(f"the statement has {len(statement)} bytes, {limit}", TOO_LARGE)
        return statement

    def classified(self, error: Exception) -> StoreError:
        """A driver's error as ours, with the server's message and code."""
        code, message = code_and_message(error)
        if code in SERVER_READ_ONLY:
            return NoSession(self.server, f"{servers.READ_ONLY} ({message})", code, answered=True)
        return classify(code, message)


def _bound(sql: str, params: Params) -> str:
    return sql % tuple(map(literal, params)) if params else sql


class NoSession(StoreAway):
    """A server that does not answer, or may not be written: `where` it is, and `clause`, what it does."""

    def __init__(self, where: str, clause: str, code: int, *, answered: bool = False) -> None:
        super().__init__(f"The store {where} {clause}", code, answered=answered)
        self.where = where
        self.clause = clause


def _settings(mariadb: bool, timeout: float, idle_limit: float) -> list[str]:
    # The server ends a statement shortly before the socket times out, so that the connection survives.
    seconds = timeout * 0.8
    idle = math.ceil(idle_limit)
    if mariadb:
        # A long list of ids must stay a range on the primary key, not become a subquery.
        special = (
            f"max_statement_time = {seconds:.3f}, in_predicate_conversion_threshold = 0,"
            f" idle_transaction_timeout = {idle}"
        )
    else:  # MySQL cannot tell a transaction that is idle from a connection that is
        special = f"max_execution_time = {int(seconds * 1000)}, wait_timeout = {idle}"
    return [
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
        f"SET SESSION innodb_lock_wait_timeout = 1, lock_wait_timeout = {max(1, math.ceil(seconds))},"
        f" time_zone = '+00:00', sql_mode = '{_SQL_MODE}', {special}",
    ]


def code_and_message(error: BaseException) -> tuple[int, str]:
    """The server's code, UNREACHABLE for an error of the socket, else 0; and what it says."""
    args = error.args
    if isinstance(error, pymysql.Error) and len(args) > 1 and isinstance(args[0], int):
        return args[0], str(args[1])
    return (UNREACHABLE if isinstance(error, OSError) else 0), str(error)
