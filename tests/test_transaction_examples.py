"""The examples of docs/how-to/transactions.md, as they stand: the job is there, and goes with a rollback."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import django
import pymysql
import pytest
import sqlalchemy
from django.conf import settings as django_settings
from django.db import connections, transaction
from sqlalchemy.orm import Session

import workerd
from tests.support.daemon import ROOT
from tests.support.rows import Rows
from tests.test_transaction import arguments, engine_of, mysqldb

TEXT = (ROOT / "docs" / "how-to" / "transactions.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
TITLES = ("PyMySQL", "mysqlclient", "sqlite3", "SQLAlchemy", "SQLAlchemy session", "Django")
IMAGES = "CREATE TABLE images (name VARCHAR(50))"


def test_each_example_is_run() -> None:
    """None was added without a title here."""
    assert len(BLOCKS) == len(TITLES)


@pytest.fixture(params=["mysql", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path, opened: Any) -> str:
    """A migrated store with a table of the caller."""
    url: str = (
        request.getfixturevalue("mysql_url") if request.param == "mysql" else f"sqlite:///{tmp_path}/s.db"
    )
    opened(url).migrate()
    Rows(url).sql(IMAGES)
    return url


@pytest.fixture
def django_connection(url: str) -> Iterator[Any]:
    """`django.db.connection` to the store."""
    if not django_settings.configured:
        django_settings.configure(USE_TZ=True, DATABASES={})
        django.setup()
    if url.startswith("sqlite"):
        database: dict[str, Any] = {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": url.removeprefix("sqlite:///"),
        }
    else:
        mysqldb()
        given = arguments(url)
        database = {
            "ENGINE": "django.db.backends.mysql", "NAME": given["database"], "USER": given["user"],
            "PASSWORD": given["password"], "HOST": given.get("unix_socket", given["host"]),
            "PORT": "" if "unix_socket" in given else given["port"],
        }  # fmt: skip
    connections.databases["workerd"] = connections.configure_settings({"default": {}, "workerd": database})[
        "workerd"
    ]
    yield connections["workerd"]
    connections["workerd"].close()
    del connections["workerd"]
    del connections.databases["workerd"]


def names(title: str, url: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the block of this title uses."""
    sqlite = url.startswith("sqlite")
    if (title in ("PyMySQL", "mysqlclient") and sqlite) or (title == "sqlite3" and not sqlite):
        pytest.skip("another engine")
    found: dict[str, Any] = {"workerd": workerd}
    if title == "PyMySQL":
        given = arguments(url)
        return found | {"pymysql": pymysql, "settings": {**given, "password": given["password"].encode()}}
    if title == "mysqlclient":
        return found | {"MySQLdb": mysqldb(), "settings": arguments(url)}
    if title == "sqlite3":
        return found | {"sqlite3": sqlite3, "path": url.removeprefix("sqlite:///")}
    if title.startswith("SQLAlchemy"):
        return found | {"sqlalchemy": sqlalchemy, "Session": Session, "engine": engine_of(url)}
    connection = request.getfixturevalue("django_connection")
    return found | {"transaction": Atomic(connection), "connection": connection}


class Atomic:
    """`django.db.transaction`, of the test's connection."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def atomic(self) -> Any:
        return transaction.atomic(using=self._connection.alias)


def close(made: dict[str, Any]) -> None:
    for name in ("cursor", "session", "connection"):
        if hasattr(made.get(name), "close"):
            made[name].close()
    if "engine" in made:
        made["engine"].dispose()


@pytest.mark.parametrize("title", TITLES)
def test_an_example_leaves_both_rows(title: str, url: str, request: pytest.FixtureRequest) -> None:
    """The caller's and the job's."""
    made = names(title, url, request)
    exec(compile(BLOCKS[TITLES.index(title)], title, "exec"), made)
    close(made)
    (job,) = Rows(url).sql("SELECT handler, vars FROM workerd_jobs")
    assert (job["handler"], job["vars"]) == ("thumbnail", '{"image":"cat.png"}')
    assert len(Rows(url).sql("SELECT * FROM images")) == 1


@pytest.mark.parametrize("title", ["SQLAlchemy", "sqlite3", "Django"])
def test_an_exception_in_an_example_leaves_neither(
    title: str, url: str, request: pytest.FixtureRequest
) -> None:
    """Where `with` ends the transaction."""
    made = names(title, url, request)
    block = re.sub(
        r"\n(    workerd\.enqueue.*)\n", r"\n\1\n    raise KeyError\n", BLOCKS[TITLES.index(title)]
    )
    with pytest.raises(KeyError):
        exec(compile(block, title, "exec"), made)
    close(made)
    assert Rows(url).sql("SELECT * FROM workerd_jobs") == []
    assert Rows(url).sql("SELECT * FROM images") == []
