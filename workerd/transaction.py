"""Enqueue inside the caller's own transaction: the job exists if and only if it commits."""

from __future__ import annotations

import inspect
import sys
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from workerd import clock
from workerd.config.model import NodeConfig
from workerd.documents import Enqueued
from workerd.job_spec import Duration, JobSpec, check
from workerd.operations.enqueue import insert, insert_alone
from workerd.runtime.paths import Paths
from workerd.runtime.sockets import poke
from workerd.store.base import Engine, Params, Row, Session, Tx

_waiting: WeakKeyDictionary[Any, Callable[[], object] | None] = WeakKeyDictionary()
"""SQLAlchemy sessions that are listened to, and what is to be called at their next commit."""


def after_commit(connection: Any, call: Callable[[], object]) -> None:
    """Call when the statement just executed is committed: now if it is already, or never if nobody tells."""
    if any(base.__module__.startswith("sqlalchemy.orm") for base in type(connection).__mro__):
        _listen(connection.registry() if hasattr(connection, "registry") else connection, call)
    elif _commits_itself(connection):
        call()


def _listen(session: Any, call: Callable[[], object]) -> None:
    if session not in _waiting:
        from sqlalchemy import event

        event.listen(session, "after_commit", _committed)
    _waiting[session] = call


def _committed(session: Any) -> None:
    # The end of a savepoint is told in the same way, but makes nothing visible.
    if session.in_nested_transaction():
        return
    call, _waiting[session] = _waiting.get(session), None
    if call is not None:
        call()


def _commits_itself(connection: Any) -> bool:
    """Whether a PEP 249 connection commits each statement; false if it cannot be asked."""
    in_transaction = getattr(connection, "in_transaction", None)
    if isinstance(in_transaction, bool):
        return not in_transaction
    get_autocommit = getattr(connection, "get_autocommit", None)
    return bool(get_autocommit()) if callable(get_autocommit) else False


# The caller's own database connection, used for one statement inside the caller's own transaction.
#
# Any PEP 249 connection to MySQL or MariaDB, a sqlite3 connection, a SQLAlchemy connection or session.
# Nothing is begun, committed or rolled back here, and the driver's errors are the caller's.
#


class _Way(NamedTuple):
    """How to speak to a connection: its engine, its parameter style, and who executes."""

    engine: Engine
    style: str
    execute: Callable[[str, Params], tuple[int, list[Row]]]


class ForeignSession(Session):
    """A Session on a connection of the caller's. Raises TypeError if it is none that is known."""

    server_version = ""
    max_packet: int | None = None

    def __init__(self, connection: Any) -> None:
        self._way = _sqlalchemy(connection) or _pep249(connection)
        self.engine: Engine = self._way.engine

    def begin(self, write: bool) -> None:
        """The caller has begun."""

    def commit(self) -> None:
        """The caller commits."""

    def rollback(self) -> None:
        """The caller rolls back."""

    def close(self) -> None:
        """The caller closes."""

    def execute(self, sql: str, params: Params = ()) -> int:
        return self._way.execute(self._styled(sql), params)[0]

    def query(self, sql: str, params: Params = ()) -> list[Row]:
        if self.engine == "mysql" and "FROM workerd_jobs" in sql:
            # The caller's snapshot may be older than the row that holds a key; a locking read sees it.
            sql += " LOCK IN SHARE MODE"
        rows = self._way.execute(self._styled(sql), params)[1]
        return [tuple(map(_stored, row)) for row in rows]

    def clock(self) -> int:
        if self.engine == "sqlite":
            return clock.now_us()
        ((now,),) = self.query("SELECT CAST(UTC_TIMESTAMP(6) AS CHAR)")
        return clock.from_text(now)

    def _styled(self, sql: str) -> str:
        return sql.replace("%s", "?").replace("%%", "%") if self._way.style == "qmark" else sql


def _stored(value: Any) -> Any:
    """A column as the store's own sessions hand it over."""
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


def _pep249(connection: Any) -> _Way:
    module = type(connection).__module__
    root = module.partition(".")[0]
    if not callable(getattr(connection, "cursor", None)):
        raise TypeError(
            f"expected a PEP 249 connection to MySQL or SQLite, or a SQLAlchemy connection or session, "
            f"got {type(connection).__qualname__}"
        )
    engine: Engine = "sqlite" if root in ("sqlite3", "pysqlite3", "sqlcipher3") else "mysql"
    if engine == "mysql" and "mysql" not in module.lower() and "mariadb" not in module.lower():
        raise TypeError(f"expected a connection to MySQL, MariaDB or SQLite, got one of {module}")
    style = "qmark" if engine == "sqlite" else getattr(sys.modules.get(root), "paramstyle", "pyformat")

    def execute(sql: str, params: Params) -> tuple[int, list[Row]]:
        cursor = connection.cursor()
        try:
            return _run(cursor, sql, params)
        finally:
            cursor.close()

    return _Way(engine, style, execute)


def _is_async(connection: Any) -> bool:
    return inspect.iscoroutinefunction(connection.exec_driver_sql)


def _sqlalchemy(connection: Any) -> _Way | None:
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

    engine: Engine = "sqlite" if dialect.name == "sqlite" else "mysql"
    return _Way(engine, dialect.paramstyle, execute)


DEFAULT_RUNTIME = NodeConfig().runtime_dir
"""Where the local dispatcher listens unless its configuration says otherwise."""


def enqueue(
    connection: Any,
    handler: str,
    vars: Mapping[str, Any] | None = None,
    *,
    id: str | uuid.UUID | None = None,
    delay: Duration | None = None,
    run_at: datetime | str | None = None,
    priority: int = 0,
    unique_key: str | None = None,
    deadline: Duration | None = None,
    max_attempts: int | None = None,
    meta: Any = None,
) -> Enqueued:
    """Insert a job through `connection`, in the transaction that is open there; see JobSpec.

    `connection`: a PEP 249 connection to MySQL or MariaDB (PyMySQL, mysqlclient, …), a sqlite3 connection,
    a SQLAlchemy Connection or Session. Handler and vars are not looked up: the attempt checks them. Commit
    is yours; with SQLAlchemy the local dispatcher is woken after it, else call `workerd.wake()`, or the job
    starts within `dispatcher.poll`.

    Raises ValueError for a wrong argument, TypeError for another kind of connection, and the driver's errors.
    """
    spec = JobSpec(
        handler=handler,
        vars=vars or {},
        id=id,
        delay=delay,
        run_at=run_at,
        priority=priority,
        unique_key=unique_key,
        deadline=deadline,
        max_attempts=max_attempts,
        meta=meta,
    )
    checked, tx = check(spec), Tx(ForeignSession(connection))
    done = insert_alone(tx, checked) if checked.plain else insert(tx, [checked])[0]
    after_commit(connection, wake)
    return done


def wake(runtime_dir: Path | str | None = None) -> bool:
    """Tell this machine's dispatcher that there is work; false if none listens in `runtime_dir`."""
    folder = DEFAULT_RUNTIME if runtime_dir is None else Path(runtime_dir)
    return poke(Paths(NodeConfig(runtime_dir=folder)).wake)
