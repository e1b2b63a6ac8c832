"""The store inside a program's own transaction, on its own connection of any supported library."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

from workerd import clock
from workerd.store.dialect import Dialect
from workerd.store.mysql_dialect import MYSQL
from workerd.store.session import Params, Row, Session
from workerd.store.sqlite_dialect import SQLITE


class _Adapter(NamedTuple):
    """How to use a connection: its dialect, its parameter style, a function that executes."""

    dialect: Dialect
    style: str
    execute: Callable[[str, Params], tuple[int, list[Row]]]


class ForeignSession(Session):
    """A Session on the caller's connection, inside the caller's transaction: it never begins or ends one.

    The driver's errors pass through. Raises TypeError for an unsupported kind of connection.
    """

    server = ""
    server_version = ""
    max_packet: int | None = None
    counts_rows = False  # the driver may count a row that was left alone as changed

    def __init__(self, connection: Any) -> None:
        self._adapter = _sqlalchemy(connection) or _django(connection) or _pep249(connection)
        self.dialect = self._adapter.dialect
        # The caller's snapshot may be older than the row with a key; a locking read sees it.
        self.latest = self.dialect.share_lock

    def begin(self, write: bool) -> None:
        """Does nothing: the caller does it."""

    def commit(self) -> None:
        """Does nothing: the caller does it."""

    def rollback(self) -> None:
        """Does nothing: the caller does it."""

    def close(self) -> None:
        """Does nothing: the caller does it."""

    def execute(self, sql: str, params: Params = ()) -> int:
        return self._adapter.execute(self._styled(sql), params)[0]

    def query(self, sql: str, params: Params = ()) -> list[Row]:
        rows = self._adapter.execute(self._styled(sql), params)[1]
        return [tuple(map(_stored, row)) for row in rows]

    def clock(self) -> int:
        if self.dialect is SQLITE:
            return clock.now_us()
        ((now,),) = self.query("SELECT CAST(UTC_TIMESTAMP(6) AS CHAR)")
        return clock.from_text(now)

    def _styled(self, sql: str) -> str:
        return sql.replace("%s", "?").replace("%%", "%") if self._adapter.style == "qmark" else sql


def _stored(value: Any) -> Any:
    """A column in the form of the store's own sessions."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, datetime):
        return value.isoformat(" ", "microseconds").encode()
    return value


def _run(cursor: Any, sql: str, params: Params) -> tuple[int, list[Row]]:
    # Drivers treat "no parameters" and "an empty tuple" differently where the text holds a percent sign.
    cursor.execute(sql, tuple(params))
    rows = list(cursor.fetchall()) if cursor.description is not None else []
    return cursor.rowcount, [tuple(row.values()) if isinstance(row, dict) else tuple(row) for row in rows]


def is_django(connection: Any) -> bool:
    """Whether it is `django.db.connection`, or one of `django.db.connections`."""
    return any(base.__module__.partition(".")[0] == "django" for base in type(connection).__mro__)


def _django(connection: Any) -> _Adapter | None:
    if not is_django(connection):
        return None
    if getattr(connection, "vendor", "") not in ("mysql", "sqlite"):
        raise TypeError(f"expected a connection to MySQL, MariaDB or SQLite, got one to {connection.vendor}")

    def execute(sql: str, params: Params) -> tuple[int, list[Row]]:
        # Django's own cursor begins the transaction that `atomic` has asked for.
        with connection.cursor() as cursor:
            return _run(cursor, sql, params)

    return _Adapter(SQLITE if connection.vendor == "sqlite" else MYSQL, "pyformat", execute)


def _pep249(connection: Any) -> _Adapter:
    module = type(connection).__module__
    root = module.partition(".")[0]
    if not callable(getattr(connection, "cursor", None)):
        raise TypeError(
            f"expected a PEP 249 connection to MySQL or SQLite, or a SQLAlchemy connection or session, "
            f"got {type(connection).__qualname__}"
        )
    used = SQLITE if root in ("sqlite3", "pysqlite3", "sqlcipher3") else MYSQL
    if used is MYSQL and "mysql" not in module.lower() and "mariadb" not in module.lower():
        raise TypeError(f"expected a connection to MySQL, MariaDB or SQLite, got one of {module}")
    style = "qmark" if used is SQLITE else getattr(sys.modules.get(root), "paramstyle", "pyformat")

    def execute(sql: str, params: Params) -> tuple[int, list[Row]]:
        cursor = connection.cursor()
        try:
            return _run(cursor, sql, params)
        finally:
            cursor.close()

    return _Adapter(used, style, execute)


def _is_async(connection: Any) -> bool:
    return inspect.iscoroutinefunction(connection.exec_driver_sql)


def _sqlalchemy(connection: Any) -> _Adapter | None:
    if not any(base.__module__.partition(".")[0] == "sqlalchemy" for base in type(connection).__mro__):
        return None
    if not hasattr(connection, "exec_driver_sql") and hasattr(connection, "connection"):
        connection = connection.connection()  # a Session's, or a scoped_session's
    if not hasattr(connection, "exec_driver_sql") or _is_async(connection):
        raise TypeError(
            f"expected a SQLAlchemy Connection or Session, got {type(connection).__qualname__}; with an "
            f"engine use `with engine.begin() as connection`, with asyncio `await session.run_sync(…)`"
        )
    dialect = connection.dialect
    if dialect.name not in ("mysql", "mariadb", "sqlite"):
        raise TypeError(f"expected a connection to MySQL, MariaDB or SQLite, got one to {dialect.name}")

    def execute(sql: str, params: Params) -> tuple[int, list[Row]]:
        with connection.exec_driver_sql(sql, tuple(params)) as result:
            return result.rowcount, [tuple(row) for row in result] if result.returns_rows else []

    used = SQLITE if dialect.name == "sqlite" else MYSQL
    return _Adapter(used, dialect.paramstyle, execute)
