"""Migrations: applied once, by one of several processes, and never backwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.eventually import eventually
from tests.support.servers import DatabaseServer
from tests.support.storing import claims, enqueue, sql, value
from workerd.errors import StoreAway, WrongVersion
from workerd.job import new_id
from workerd.store import base, migrations, schema, write_probe
from workerd.store import mysql as mysql_store
from workerd.store.base import Store, Tx
from workerd.store.claims import promote_due

TABLES = (
    "audit", "errors", "handlers", "jobs", "logs", "migrations", "nodes", "rates", "request_jobs",
    "request_needs", "requests", "revisions", "schedules", "signals", "slots", "ticks",
)  # fmt: skip
ALL = ["1: first tables", "2: capabilities"]


def test_privileges_are_tried_on_every_table(store: Store) -> None:
    """But the one of the versions, which has been read by then."""
    assert {f"workerd_{name}" for name in TABLES} - write_probe.STATEMENTS.keys() == {"workerd_migrations"}
    for statements in write_probe.STATEMENTS.values():
        for text in statements.values():
            store.run(partial(write_probe.run, sql=text))


def test_the_error_for_an_empty_store_names_the_remedy(store_url: str, opened: Callable[..., Store]) -> None:
    """It is empty, it is of the wrong version, and `migrate` mends that once."""
    store = opened(store_url)
    assert store.is_empty()
    with pytest.raises(WrongVersion, match="run `workerd migrate`"):
        store.check_version()
    assert store.migrate() == ALL
    assert not store.is_empty()
    store.check_version()
    assert store.migrate() == []


def test_a_newer_store_is_left_alone(store: Store) -> None:
    """Neither the check nor the migration touches what this version does not know."""
    sql(store, "INSERT INTO workerd_migrations (version, name) VALUES (99, 'from the future')")
    with pytest.raises(WrongVersion, match=r"schema 99.*newer workerd"):
        store.check_version()
    with pytest.raises(WrongVersion):
        store.migrate()


def test_an_older_store_names_the_command(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program is newer than the schema."""
    monkeypatch.setattr(migrations, "NEWEST", 3)
    with pytest.raises(WrongVersion, match="schema 2, this one needs 3; run `workerd migrate`"):
        store.check_version()


def test_several_nodes_migrate_at_once(store_url: str, opened: Callable[..., Store]) -> None:
    """All succeed, and one reports that it migrated."""
    together = threading.Barrier(4)
    applied: list[str] = []

    def work(store: Store) -> None:
        together.wait()
        applied.extend(store.migrate())

    threads = [threading.Thread(target=work, args=(opened(store_url),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(applied) == ALL
    opened(store_url).check_version()


def test_a_migration_that_was_cut_short_is_finished(mysql_url: str, opened: Callable[..., Store]) -> None:
    """MySQL commits each table separately: existing ones stay, missing ones are created."""
    store = opened(mysql_url)
    store.migrate()
    made = enqueue(store, "h")
    sql(store, "DELETE FROM workerd_migrations")
    sql(store, "DROP TABLE workerd_nodes")
    assert store.migrate() == ALL
    assert value(store, "SELECT COUNT(*) FROM workerd_nodes") == 0
    assert value(store, "SELECT COUNT(*) FROM workerd_jobs WHERE id = %s", made) == 1


def test_a_store_of_version_1_keeps_its_rows(
    store_url: str, opened: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that were inserted before the migration are claimed after it."""
    with monkeypatch.context() as before:
        before.setattr(migrations, "MIGRATIONS", schema.MIGRATIONS[:1])
        before.setattr(migrations, "NEWEST", 1)
        opened(store_url).migrate()
    store = opened(store_url)
    with pytest.raises(WrongVersion, match="schema 1, this one needs 2"):
        store.check_version()
    made = new_id()
    sql(store, "INSERT INTO workerd_jobs (id, handler) VALUES (%s, 'h')", made)
    assert store.migrate() == ALL[1:]
    assert [claim.id for claim in claims(store, "h")] == [made]


def of_version_1(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Makes it one of version 1 with a job in each of three statuses."""
    with monkeypatch.context() as before:
        before.setattr(migrations, "MIGRATIONS", schema.MIGRATIONS[:1])
        before.setattr(migrations, "NEWEST", 1)
        store.migrate()
    for state in ("new", "scheduled", "completed"):
        sql(store, "INSERT INTO workerd_jobs (id, handler, status) VALUES (%s, 'h', %s)", new_id(), state)
    return store


@pytest.mark.parametrize("invalid", ["0000-00-00 00:00:00", "2024-02-31 00:00:00"])
@pytest.mark.parametrize("column", ["run_at", "created_at", "finished_at"])
def test_a_date_of_no_calendar_does_not_stop_a_migration(
    mysql_url: str, opened: Callable[..., Store], monkeypatch: pytest.MonkeyPatch, column: str, invalid: str
) -> None:
    """Another program may have written one, which the copy of the table would refuse."""
    store = of_version_1(opened(mysql_url), monkeypatch)

    def write(tx: Tx) -> None:
        tx.execute("SET SESSION sql_mode = 'ALLOW_INVALID_DATES'")
        tx.execute(f"UPDATE workerd_jobs SET {column} = %s", (invalid,))

    store.run(write)
    store.close()
    assert store.migrate() == ALL[1:]
    assert value(store, "SELECT COUNT(*) FROM workerd_jobs") == 3


def test_the_limit_of_statements_is_none_of_migrations(
    tmp_path: Path, opened: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large embedded store each new column takes longer; who waits for its lock has the usual limit."""
    url = f"sqlite:///{tmp_path}/store.db"
    store = of_version_1(opened(url), monkeypatch)
    rows = [(new_id(),) for _ in range(20_000)]
    store.run(lambda tx: tx.execute_each("INSERT INTO workerd_jobs (id, handler) VALUES (%s, 'h')", rows))
    store.close()
    impatient = opened(url, timeout=0.0001)
    with pytest.raises(StoreAway, match="interrupted"):
        impatient.read(lambda tx: tx.query("SELECT COUNT(*) FROM workerd_jobs a JOIN workerd_jobs b"))
    impatient.close()
    writer = opened(url)

    def write(tx: Tx) -> None:
        tx.execute("UPDATE workerd_jobs SET priority = 1 WHERE attempt = 2")
        with pytest.raises(StoreAway, match="keeps a transaction open"):
            impatient.migrate()

    writer.run(write)
    assert impatient.migrate() == ALL[1:]
    assert value(store, "SELECT COUNT(*) FROM workerd_jobs") == 20_003


@pytest.fixture
def version_1(mysql_url: str, opened: Callable[..., Store], monkeypatch: pytest.MonkeyPatch) -> Store:
    return of_version_1(opened(mysql_url), monkeypatch)


def tables(store: Store) -> list[object]:
    """Each table with its columns and indexes, as the server writes it."""
    return [store.read(lambda tx, t=t: tx.one(f"SHOW CREATE TABLE workerd_{t}")) for t in TABLES]


@pytest.mark.slow
def test_a_migration_cut_short_at_any_statement_is_finished(
    mysql: Store, mysql_server: DatabaseServer, opened: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends as one that was not, and every job is found where it is looked for."""
    statements = schema.MIGRATIONS[1].mysql
    for done in range(1, len(statements) + 1):
        store = of_version_1(opened(mysql_server.url(mysql_server.new_database())), monkeypatch)
        for statement in statements[:done]:
            sql(store, statement)
        with pytest.raises(WrongVersion, match="schema 1"):
            store.check_version()
        assert store.migrate() == ALL[1:]
        assert tables(store) == tables(mysql)
        assert len(claims(store, "h")) == 1
        assert store.run(lambda tx: promote_due(tx, 10)).count == 1


def test_nodes_migrate_at_once_while_others_write(
    version_1: Store, mysql_url: str, opened: Callable[..., Store]
) -> None:
    """No INSERT fails or is lost; its longest wait is printed."""
    for _ in range(12):
        sql(
            version_1,
            "INSERT INTO workerd_jobs (id, handler, status)"
            " SELECT UNHEX(REPLACE(UUID(), '-', '')), handler, status FROM workerd_jobs",
        )
    writer = opened(mysql_url)
    waits: list[float] = []
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            began = time.monotonic()
            sql(writer, "INSERT INTO workerd_jobs (id, handler) VALUES (%s, 'written')", new_id())
            waits.append(time.monotonic() - began)

    applied: list[str] = []
    stores = [opened(mysql_url), opened(mysql_url)]
    nodes = [threading.Thread(target=lambda s=store: applied.extend(s.migrate())) for store in stores]
    writing = threading.Thread(target=write)
    writing.start()
    for node in nodes:
        node.start()
    for node in nodes:
        node.join()
    over.set()
    writing.join()
    assert applied == ALL[1:]
    print(f"{len(waits)} INSERTs during the migration of 12,288 rows; the longest took {max(waits):.3f} s")
    counted = (
        "SELECT COUNT(*) FROM workerd_jobs FORCE INDEX (workerd_holder) WHERE status = 'new' AND holder = %s"
    )
    assert value(version_1, counted, "written") == len(waits)
    assert value(version_1, counted, "h") == 4096


@pytest.mark.slow
def test_a_migration_keeps_no_writer_waiting_behind_an_open_transaction(
    version_1: Store, mysql_server: DatabaseServer, mysql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of the table waits for it a moment at a time, and lets pass who came behind."""
    monkeypatch.setattr(mysql_store, "MIGRATION_LOCK_WAIT_S", 1)
    monkeypatch.setattr(mysql_store, "MIGRATION_PAUSE_S", 0.2)
    monkeypatch.setattr(base, "MAX_TRIES", 1)
    database = urlsplit(mysql_url).path[1:]
    with mysql_server.root(database) as reader, reader.cursor() as cursor:
        reader.begin()
        cursor.execute("SELECT COUNT(*) FROM workerd_jobs")
        migration = threading.Thread(target=version_1.migrate)
        migration.start()
        with mysql_server.root(database) as writer, writer.cursor() as insert:
            while version_1.stats.errors[1205] < 3:
                insert.execute("INSERT INTO workerd_jobs (id, handler) VALUES (%s, 'written')", (new_id(),))
        reader.rollback()
    migration.join()
    version_1.check_version()


def test_every_table_is_there(store: Store) -> None:
    """With both engines agreeing on the columns, but for the generated one that MySQL needs."""
    for table in TABLES:
        assert value(store, f"SELECT COUNT(*) FROM workerd_{table}") is not None


def test_both_engines_have_the_same_columns(
    mysql_url: str, opened: Callable[..., Store], tmp_path: object
) -> None:
    """Name by name, in the same order."""
    mysql, sqlite = opened(mysql_url), opened(f"sqlite:///{tmp_path}/s.db")
    mysql.migrate()
    sqlite.migrate()
    for table in TABLES:
        theirs = mysql.read(lambda tx, t=table: tx.query(f"SHOW COLUMNS FROM workerd_{t}"))
        ours = sqlite.read(lambda tx, t=table: tx.query(f"PRAGMA table_xinfo(workerd_{t})"))
        assert [row[0] for row in theirs if row[0] != b"live_key"] == [row[1] for row in ours]


@pytest.mark.parametrize(
    ("version", "good"),
    [
        ("8.0.13", True),
        ("8.0.12", False),
        ("5.7.44-log", False),
        ("9.1.0", True),
        ("8.0.11-TiDB-v7.5.0", True),
        ("10.6.0-MariaDB", True),
        ("10.5.23-MariaDB-1:10.5.23", False),
        ("5.5.5-10.11.6-MariaDB", True),
        ("11.8.6-MariaDB-0+deb13u1", True),
        ("SQLite 3.35.0", True),
        ("SQLite 3.34.1", False),
    ],
)
def test_a_server_that_is_too_old_is_named(version: str, good: bool) -> None:
    """Missing features must be reported at start, not by a failing statement later."""
    if good:
        migrations.require_version(version)
    else:
        with pytest.raises(WrongVersion, match="or newer; upgrade it"):
            migrations.require_version(version)


def test_a_migration_runs_again_after_it_lost_its_locks(
    mysql_server: DatabaseServer, mysql_url: str, opened: Callable[..., Store]
) -> None:
    """As after a lost certification of a cluster: 1205 from another's transaction, then it is applied."""
    database = urlsplit(mysql_url).path[1:]
    mysql_server.sql(schema.MYSQL_MIGRATIONS, database)
    store = opened(mysql_url)
    with mysql_server.root(database) as other:
        other.begin()
        with other.cursor() as cursor:
            cursor.execute("INSERT INTO workerd_migrations (version, name) VALUES (1, 'held')")
        migration = threading.Thread(target=store.migrate)
        migration.start()
        eventually(lambda: store.stats.retries)
        other.rollback()
    migration.join()
    assert store.stats.errors[1205]
    store.check_version()
