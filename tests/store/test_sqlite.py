"""The embedded store: its one lock, its checks, its times."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.storing import claims, enqueue, job, sql, status, value
from workerd import clock
from workerd.errors import CommitUnknown, StoreAway, StoreRefused, WrongVersion
from workerd.store import claims as store_claims
from workerd.store import jobs
from workerd.store.base import Store

Opened = Callable[..., Store]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a folder" / "store.db"


@pytest.fixture
def sqlite(path: Path, opened: Opened) -> Store:
    path.parent.mkdir()
    store = opened(f"sqlite:///{path}", timeout=1.0)
    store.migrate()
    return store


def test_a_commit_is_durable_and_readers_never_wait(sqlite: Store, path: Path) -> None:
    """WAL and full synchronisation, whatever the library's defaults are."""
    assert value(sqlite, "PRAGMA journal_mode") == b"wal"
    assert value(sqlite, "PRAGMA synchronous") == 2
    enqueue(sqlite, "h")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert value(sqlite, "SELECT COUNT(*) FROM workerd_jobs") == 1
    other.close()


def test_a_transaction_that_another_program_keeps_open(sqlite: Store, path: Path) -> None:
    """It stops the daemon there, with an error that names the remedy; afterwards work resumes."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreAway, match=r"another program keeps a transaction open.*end that transaction"):
        enqueue(sqlite, "h")
    other.execute("ROLLBACK")
    other.close()
    enqueue(sqlite, "h")


def test_writers_take_turns(sqlite: Store, path: Path, opened: Opened) -> None:
    """Eight writers at once all get their turn within the time limit."""
    stores = [opened(f"sqlite:///{path}") for _ in range(8)]

    def work(store: Store) -> None:
        for _ in range(10):
            enqueue(store, "h")

    threads = [threading.Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(sqlite, "SELECT COUNT(*) FROM workerd_jobs") == 80


def test_a_file_that_cannot_be_opened(opened: Opened, tmp_path: Path) -> None:
    """No folder, no database in it, no right to write: away, not a crash."""
    with pytest.raises(StoreAway, match="does not exist; `workerd migrate` creates it"):
        opened(f"sqlite:///{tmp_path}/nowhere/store.db").is_empty()
    text = tmp_path / "text.db"
    text.write_text("this is no database " * 100)
    with pytest.raises(StoreAway):
        opened(f"sqlite:///{text}").is_empty()


def test_a_missing_table_is_away(sqlite: Store) -> None:
    """It is the store's state, not a row's fault."""
    sql(sqlite, "ALTER TABLE workerd_jobs RENAME TO elsewhere")
    with pytest.raises(StoreAway):
        enqueue(sqlite, "h")
    sql(sqlite, "ALTER TABLE elsewhere RENAME TO workerd_jobs")
    enqueue(sqlite, "h")


def test_a_statement_that_takes_too_long_is_stopped(sqlite: Store) -> None:
    """After the time limit, as everywhere."""
    with pytest.raises(StoreAway):
        value(
            sqlite, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n"
        )
    assert value(sqlite, "SELECT 1") == 1


@pytest.mark.parametrize(
    ("column", "bad"),
    [
        ("id", b"short"),
        ("id", "0123456789abcdef"),
        ("attempt", 0),
        ("attempt", "one"),
        ("handler", b"bytes"),
        ("handler", "x" * 192),
        ("priority", "high"),
        ("status", "nonsense"),
        ("run_at", "2024-01-01T00:00:00"),
        ("run_at", "2024-01-01 00:00:00Z"),
        ("run_at", "2024-01-01 00:00:00.1234567"),
        ("run_at", "now"),
        ("run_at", 1700000000),
        ("vars", b"{}"),
        ("deadline_ms", -1),
        ("max_attempts", 1.5),
        ("unique_key", b"bytes"),
        ("request_id", b"short"),
        ("payload", "text"),
        ("payload_type", "xml"),
        ("cancel_requested_at", "soon"),
        ("node_id", "text"),
    ],
)
def test_a_foreign_insert_of_a_wrong_kind_is_refused(sqlite: Store, column: str, bad: object) -> None:
    """SQLite itself takes anything anywhere; the table does not."""
    with pytest.raises(StoreRefused, match="CHECK"):
        _insert(sqlite, **{column: bad})


def _insert(store: Store, **values: object) -> None:
    row = {"id": b"i" * 16, "handler": "h", **values}
    sql(
        store,
        f"INSERT INTO workerd_jobs ({', '.join(row)}) VALUES ({', '.join(['%s'] * len(row))})",
        *row.values(),
    )


@pytest.mark.parametrize(
    "text", ["2024-02-29 23:59:59", "2024-02-29 23:59:59.5", "2024-02-29 23:59:59.123456"]
)
def test_fewer_digits_are_read_too(sqlite: Store, text: str) -> None:
    """Times as SQLite's own functions and other programs write them."""
    _insert(sqlite, run_at=text)
    (claim,) = claims(sqlite, "h")
    assert claim.run_at == clock.from_text(text)


def test_an_invalid_date_blocks_no_other_row(sqlite: Store) -> None:
    """It has the form of a time but is invalid: the job fails with an error that names it."""
    _insert(sqlite, run_at="2024-02-31 00:00:00")
    good = enqueue(sqlite, "h")
    batch = sqlite.run(lambda tx: store_claims.claim(tx, "h", 9, store_claims.NodeIdent(b"n" * 16, "one")))
    assert [c.id for c in batch.claims] == [good]
    assert [o.id for o in batch.broken] == [b"i" * 16]


def test_work_that_raises_leaves_nothing(sqlite: Store) -> None:
    """The transaction is rolled back and the lock is free."""

    def work(tx: Any) -> None:
        jobs.insert(tx, [jobs.NewJob(handler="h")])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sqlite.run(work)
    made = enqueue(sqlite, "h")
    assert value(sqlite, "SELECT COUNT(*) FROM workerd_jobs") == 1
    assert status(sqlite, made) == "new"
    assert job(sqlite, made).row.created_at is not None


def test_a_removed_file_is_away_until_it_is_back(sqlite: Store, path: Path, tmp_path: Path) -> None:
    """Nothing is written into a deleted file, and no empty one is made in its place."""
    made = enqueue(sqlite, "h")
    path.rename(tmp_path / "aside")
    for _ in range(2):
        with pytest.raises(StoreAway, match="was removed; put its file back") as caught:
            enqueue(sqlite, "h")
        assert caught.value.answered
    assert not path.exists()
    (tmp_path / "aside").rename(path)
    enqueue(sqlite, "h")
    assert status(sqlite, made) == "new"
    assert value(sqlite, "SELECT COUNT(*) FROM workerd_jobs") == 2


def test_a_file_that_is_back_without_its_shared_memory_is_opened_again(
    sqlite: Store, path: Path, tmp_path: Path, opened: Opened
) -> None:
    """Else two processes would index one log in two places, and neither see what the other commits."""
    enqueue(sqlite, "h")
    files = [path, path.with_name(path.name + "-wal")]
    for file in (*files, path.with_name(path.name + "-shm")):
        file.rename(tmp_path / f"aside-{file.name}")
    for file in files:
        (tmp_path / f"aside-{file.name}").rename(file)
    other = opened(f"sqlite:///{path}")
    made = enqueue(other, "h")
    with pytest.raises(StoreAway, match="was replaced"):
        enqueue(sqlite, "h")
    assert status(sqlite, made) == "new"
    enqueue(sqlite, "h")
    assert value(other, "SELECT COUNT(*) FROM workerd_jobs") == 3


def test_a_file_removed_before_commit_takes_no_commit(sqlite: Store, path: Path, tmp_path: Path) -> None:
    """And the caller knows that nothing was done."""

    def work(tx: Any) -> None:
        jobs.insert(tx, [jobs.NewJob(handler="h")])
        path.rename(tmp_path / "aside")

    with pytest.raises(StoreAway) as caught:
        sqlite.run(work)
    assert not isinstance(caught.value, CommitUnknown)


def test_a_replaced_file_is_the_store_from_then_on(
    sqlite: Store, path: Path, tmp_path: Path, opened: Opened
) -> None:
    """As after the restore of a backup: the open connection is given up for the new file."""
    other = opened(f"sqlite:///{tmp_path}/other.db")
    other.migrate()
    made = enqueue(other, "h")
    other.close()
    enqueue(sqlite, "h")
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink()
    (tmp_path / "other.db").rename(path)
    with pytest.raises(StoreAway, match="was replaced by another file"):
        enqueue(sqlite, "h")
    assert status(sqlite, made) == "new"
    assert value(sqlite, "SELECT COUNT(*) FROM workerd_jobs") == 1


def test_a_store_is_made_by_migrate_alone(path: Path, opened: Opened) -> None:
    """Who only looks leaves no empty file behind."""
    path.parent.mkdir()
    store = opened(f"sqlite:///{path}")
    assert store.is_empty()
    with pytest.raises(WrongVersion, match="run `workerd migrate`"):
        store.check_version()
    assert not path.exists()
    store.migrate()
    store.check_version()


def test_a_full_disk_is_named(sqlite: Store, path: Path) -> None:
    """The error says what is full and what to do, and nothing is left of the transaction."""
    pages = value(sqlite, "PRAGMA page_count")
    value(sqlite, f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(StoreAway, match="its disk is full; make room") as caught:
        enqueue(sqlite, "h", vars=b'"' + b"x" * 1_000_000 + b'"')
    assert str(path) in str(caught.value)
    assert not isinstance(caught.value, CommitUnknown)
    assert value(sqlite, "SELECT COUNT(*) FROM workerd_jobs") == 0
