"""Enqueue inside the caller's transaction, through every supported driver and SQLAlchemy."""

from __future__ import annotations

import importlib
import sqlite3
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pymysql
import pytest
import sqlalchemy
import uuid_utils
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import workerd
from tests.support.daemon import ROOT, Daemon
from tests.support.datagrams import received
from tests.support.eventually import eventually
from tests.support.rows import Rows
from workerd.document_types import Enqueued
from workerd.runtime.sockets import bind_datagram
from workerd.transaction import wake

DEBIAN = "/usr/lib/python3/dist-packages"
"""Where Debian installs python3-mysqldb: building mysqlclient needs a compiler and the server's headers."""


def mysqldb() -> Any:
    """The module of mysqlclient, from the venv or from Debian; skips the test if neither has it."""
    try:
        return importlib.import_module("MySQLdb")
    except ImportError:
        sys.path.append(DEBIAN)
        try:
            return importlib.import_module("MySQLdb")
        except ImportError:
            pytest.skip("mysqlclient is not installed (Debian: python3-mysqldb)")
        finally:
            sys.path.remove(DEBIAN)


def arguments(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    found = {
        "user": unquote(parts.username or ""), "password": unquote(parts.password or ""),
        "host": parts.hostname or "localhost", "port": parts.port or 3306, "database": parts.path[1:],
        "charset": "utf8mb4",
    }  # fmt: skip
    return found | ({"unix_socket": query["unix_socket"][0]} if "unix_socket" in query else {})


def by_pymysql(url: str, **more: Any) -> Any:
    given = arguments(url)
    # As text it would be taken for Latin-1.
    return pymysql.connect(**{**given, "password": given["password"].encode()}, **more)


def by_pymysql_dicts(url: str) -> Any:
    """FOUND_ROWS, as Django and SQLAlchemy set it, and rows as dictionaries."""
    flags = pymysql.constants.CLIENT.FOUND_ROWS
    return by_pymysql(url, client_flag=flags, cursorclass=pymysql.cursors.DictCursor)


def by_mysqldb(url: str) -> Any:
    return mysqldb().connect(**arguments(url))


def by_sqlite(url: str) -> Any:
    return sqlite3.connect(url.removeprefix("sqlite:///"), timeout=10)


def engine_of(url: str) -> sqlalchemy.Engine:
    if url.startswith("sqlite"):
        return sqlalchemy.create_engine("sqlite://", creator=lambda: by_sqlite(url))
    return sqlalchemy.create_engine("mysql+pymysql://", creator=lambda: by_pymysql(url))


def by_sqlalchemy(url: str) -> Any:
    return engine_of(url).connect()


def by_session(url: str) -> Any:
    return Session(engine_of(url))


def by_scoped_session(url: str) -> Any:
    session = scoped_session(sessionmaker(engine_of(url)))
    session()
    return session


CONNECTORS = {
    "PyMySQL": ("mysql", by_pymysql),
    "PyMySQL, found rows": ("mysql", by_pymysql_dicts),
    "mysqlclient": ("mysql", by_mysqldb),
    "sqlite3": ("sqlite", by_sqlite),
    "SQLAlchemy connection, MySQL": ("mysql", by_sqlalchemy),
    "SQLAlchemy connection, SQLite": ("sqlite", by_sqlalchemy),
    "SQLAlchemy session, MySQL": ("mysql", by_session),
    "SQLAlchemy session, SQLite": ("sqlite", by_session),
    "SQLAlchemy scoped session": ("mysql", by_scoped_session),
}


@pytest.fixture(params=CONNECTORS)
def connector(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Callable[[str], Any]]:
    """The URL of an empty store, and how to connect to it."""
    engine, connect = CONNECTORS[request.param]
    if engine == "sqlite":
        return f"sqlite:///{tmp_path}/store.db", connect
    return request.getfixturevalue("mysql_url"), connect


@pytest.fixture
def url(connector: tuple[str, Callable[[str], Any]], opened: Any) -> str:
    opened(connector[0]).migrate()
    return connector[0]


@pytest.fixture
def connection(url: str, connector: tuple[str, Callable[[str], Any]]) -> Iterator[Any]:
    connection = connector[1](url)
    yield connection
    connection.rollback()
    if isinstance(connection, scoped_session):
        connection.remove()
    else:
        connection.close()


def jobs(url: str) -> list[dict[str, Any]]:
    return Rows(url).sql("SELECT * FROM workerd_jobs ORDER BY id")


def test_a_job_is_rolled_back_with_the_transaction(connection: Any, url: str) -> None:
    """No row is left."""
    workerd.enqueue(connection, "mail", {"to": "a@b"})
    connection.rollback()
    assert jobs(url) == []


def test_a_job_is_visible_after_the_commit_only(connection: Any, url: str) -> None:
    """Every option is in its column."""
    done = workerd.enqueue(
        connection, "mail", {"to": "é%s😀", "n": [1, None]}, priority=-3, unique_key="k%s'", meta={"x": 1},
        deadline="1.5s", max_attempts=2, delay="1h",
    )  # fmt: skip
    assert done.created
    assert jobs(url) == []
    connection.commit()
    (row,) = jobs(url)
    assert row["id"] == uuid.UUID(done.id).bytes
    assert row["vars"] == '{"to":"é%s😀","n":[1,null]}'
    assert (row["status"], row["handler"], row["priority"]) == ("scheduled", "mail", -3)
    assert (row["unique_key"], row["meta"]) == ("k%s'", '{"x":1}')
    assert (row["deadline_ms"], row["max_attempts"]) == (1500, 2)


def test_the_holder_of_a_unique_key_is_found_despite_an_older_snapshot(
    connection: Any, url: str, connector: tuple[str, Callable[[str], Any]]
) -> None:
    """Also by a transaction that began before the holder was committed."""
    first = workerd.enqueue(connection, "mail", unique_key="k")
    assert workerd.enqueue(connection, "mail", unique_key="k") == Enqueued(first.id, False)
    connection.rollback()
    if url.startswith("mysql"):
        run = getattr(connection, "execute", None)
        statement: Any = "SELECT COUNT(*) FROM workerd_jobs"  # begins the snapshot
        if run is not None:
            run(sqlalchemy.text(statement))
        else:
            with closing(connection.cursor()) as cursor:
                cursor.execute(statement)
                cursor.fetchall()
    other = by_pymysql(url) if url.startswith("mysql") else by_sqlite(url)
    with closing(other):
        held = workerd.enqueue(other, "mail", unique_key="k")
        other.commit()
    assert workerd.enqueue(connection, "mail", unique_key="k") == Enqueued(held.id, False)
    connection.commit()
    assert len(jobs(url)) == 1


def test_enqueue_is_idempotent_by_id(connection: Any, url: str) -> None:
    """Also in a later transaction."""
    mine = "0198f0a0-0000-7000-8000-000000000001"
    assert workerd.enqueue(connection, "mail", id=mine) == Enqueued(mine, True)
    connection.commit()
    assert workerd.enqueue(connection, "mail", id=mine) == Enqueued(mine, False)
    connection.commit()
    assert len(jobs(url)) == 1


@pytest.mark.parametrize("keyed", [False, True])
def test_enqueues_by_id_in_concurrent_transactions_do_not_deadlock(
    mysql_url: str, keyed: bool, opened: Any
) -> None:
    """At REPEATABLE READ, where looking for an id that does not exist locks the place of all new ones."""
    opened(mysql_url).migrate()

    def enqueue_many(number: int) -> int:
        with closing(by_pymysql(mysql_url)) as connection:
            for n in range(50):
                key = f"{number}-{n}" if keyed else None
                workerd.enqueue(connection, "mail", id=str(uuid_utils.uuid7()), unique_key=key)
                connection.commit()
        return number

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(enqueue_many, range(4))) == [0, 1, 2, 3]
    assert len(jobs(mysql_url)) == 200


@pytest.mark.parametrize("keyed", [False, True])
def test_an_open_transaction_keeps_no_other_from_enqueueing(mysql_url: str, keyed: bool, opened: Any) -> None:
    """Neither with an id of its own nor with a new key."""
    opened(mysql_url).migrate()
    with closing(by_pymysql(mysql_url)) as open_one, closing(by_pymysql(mysql_url)) as other:
        workerd.enqueue(open_one, "mail", id=str(uuid_utils.uuid7()), unique_key="open" if keyed else None)
        with closing(other.cursor()) as cursor:
            cursor.execute("SET innodb_lock_wait_timeout = 1")
        for n in range(20):
            workerd.enqueue(other, "mail", unique_key=f"other-{n}" if n % 2 else None)
            workerd.enqueue(other, "mail", id=str(uuid_utils.uuid7()))
            other.commit()
        open_one.commit()
    assert len(jobs(mysql_url)) == 41


def test_a_wrong_option_leaves_the_transaction_usable(connection: Any, url: str) -> None:
    """It is rejected before the connection is used."""
    with pytest.raises(ValueError, match="priority"):
        workerd.enqueue(connection, "mail", priority=1 << 40)
    workerd.enqueue(connection, "mail")
    connection.commit()
    assert len(jobs(url)) == 1


@pytest.mark.parametrize("wrong", [object(), None, "mysql://x/y", sqlalchemy.create_engine("sqlite://")])
def test_an_unsupported_connection_is_rejected(wrong: Any) -> None:
    """The message lists the supported kinds."""
    with pytest.raises(TypeError, match="expected a"):
        workerd.enqueue(wrong, "mail")


CONFIG = f"""
[dispatcher]
poll = "30s"

[handlers.add]
path = ["{ROOT}"]
call = "tests.support.handlers:add"
"""


def test_the_dispatcher_is_woken_after_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Any
) -> None:
    """A session: after the outer commit, not after a savepoint or rollback; autocommit: at once."""
    monkeypatch.setattr("workerd.config.runtime_dir.SYSTEM_RUNTIME_DIR", tmp_path)
    url = f"sqlite:///{tmp_path}/store.db"
    opened(url).migrate()
    with closing(bind_datagram(tmp_path / "wake")) as sock:
        with Session(engine_of(url)) as session:
            workerd.enqueue(session, "mail")
            session.rollback()
            with session.begin_nested():
                workerd.enqueue(session, "mail")
            workerd.enqueue(session, "mail")
            assert received(sock) == 0
            session.commit()
            assert received(sock) == 1
            session.execute(sqlalchemy.text("SELECT 1"))
            session.commit()
            assert received(sock) == 0
        with closing(by_sqlite(url)) as connection:
            workerd.enqueue(connection, "mail")
            assert received(sock) == 0
            connection.commit()
            connection.isolation_level = None
            workerd.enqueue(connection, "mail")
            assert received(sock) == 1
        assert wake()
        assert received(sock) == 1
    assert not wake(tmp_path / "absent")


def test_a_wake_up_that_cannot_be_sent_is_no_error_of_the_enqueue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Any
) -> None:
    """The row is committed: a caller that sees an error enqueues once more."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / ("x" * 300)))
    url = f"sqlite:///{tmp_path}/store.db"
    opened(url).migrate()
    with closing(by_sqlite(url)) as connection:
        connection.isolation_level = None
        assert workerd.enqueue(connection, "mail").created
    with Session(engine_of(url)) as session:
        assert workerd.enqueue(session, "mail").created
        session.commit()
    assert len(jobs(url)) == 2


def test_a_woken_dispatcher_starts_the_job_before_its_next_poll(tmp_path: Path) -> None:
    """It polls every 30 s here."""
    with Daemon(tmp_path / "node", f"sqlite:///{tmp_path}/store.db", CONFIG) as daemon:
        with closing(by_sqlite(daemon.url)) as connection:
            done = workerd.enqueue(connection, "add", {"a": 1})
            connection.commit()
        assert workerd.wake(daemon.folder / "run")
        eventually(lambda: jobs(daemon.url)[0]["status"] == "completed", within=15)
        assert done.created
