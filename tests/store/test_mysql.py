"""The connection to MySQL and MariaDB: sessions, errors by kind, whole transactions again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pymysql
import pytest

from tests.support.eventually import eventually
from tests.support.servers import FAST, PASSWORD, USER, DatabaseServer
from tests.support.storing import claims, close, enqueue, outcome, sql, status, value
from workerd.config.model import StoreConfig
from workerd.errors import CommitUnknown, StoreAway, StoreRefused
from workerd.job import Status, id_text
from workerd.store import jobs
from workerd.store.base import RETRY_FOR_S, Store, Tx
from workerd.store.engines import open_store

Opened = Callable[..., Store]


def test_the_session_is_as_the_rules_want_it(mysql: Store) -> None:
    """READ COMMITTED, strict, UTC, utf8mb4, short lock waits and a limit for every statement."""
    sql(mysql, "UPDATE workerd_jobs SET status = 'new' WHERE id = 'x'")
    isolation = "tx_isolation" if "MariaDB" in mysql.server_version else "transaction_isolation"
    limit = "max_statement_time" if "MariaDB" in mysql.server_version else "max_execution_time"
    names = (
        isolation,
        "time_zone",
        "innodb_lock_wait_timeout",
        "autocommit",
        "character_set_connection",
        limit,
    )
    row = mysql.read(lambda tx: tx.one("SELECT " + ", ".join(f"@@SESSION.{n}" for n in names)))
    assert row is not None
    assert row[:5] == (b"READ-COMMITTED", b"+00:00", 1, 0, b"utf8mb4")
    assert 0 < row[5] <= 4000
    assert b"STRICT_ALL_TABLES" in value(mysql, "SELECT @@SESSION.sql_mode")


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_a_password_of_any_characters(mysql_server: DatabaseServer, opened: Opened, tcp: bool) -> None:
    """Percent-encoded in the URL, over a Unix socket and over TCP."""
    name = mysql_server.new_database()
    try:
        assert opened(mysql_server.url(name, tcp=tcp)).is_empty()
    finally:
        mysql_server.drop_database(name)


def test_a_password_from_a_file_is_read_at_every_connect(
    mysql_server: DatabaseServer, mysql_url: str, opened: Opened, tmp_path: Path
) -> None:
    """It may change or appear later; until it exists the store is away and the message names the cause."""
    if not mysql_server.private:
        pytest.skip("the password of another's server is not ours to take away")
    secret = tmp_path / "secret"
    url = mysql_url.replace(quote(PASSWORD, safe=""), "")
    store = opened(url, password_file=str(secret))
    with pytest.raises(StoreAway, match=r"password_file .*secret cannot be read .*make it readable"):
        store.is_empty()
    secret.write_text(PASSWORD + "\n")
    assert store.is_empty()


def test_no_error_repeats_the_password(mysql_server: DatabaseServer, mysql_url: str, opened: Opened) -> None:
    """It is in no message of a refused login, a wrong database, host or packet."""
    if not mysql_server.private:
        pytest.skip("another's server may have any password")
    wrong = "Wr0ng-s3cret"
    encoded = quote(PASSWORD, safe="")
    urls = [
        mysql_url.replace(encoded, wrong),
        mysql_server.url("nowhere"),
        mysql_url.replace("unix_socket=", "unix_socket=/nonexistent"),
        f"mysql://{USER}:{wrong}@127.0.0.1:1/x",
    ]
    for url in urls:
        store = opened(url)
        with pytest.raises(StoreAway) as caught:
            store.is_empty()
        shown = "".join([str(caught.value), repr(caught.value), repr(store), str(caught.value.__cause__)])
        assert wrong not in shown
        assert PASSWORD not in shown
        assert encoded not in shown
        assert caught.value.code
        assert store.stats.errors[caught.value.code] == 1


def test_too_many_connections_is_away(own_server: DatabaseServer, opened: Opened) -> None:
    """1040: it is not the statement's fault, and goes by itself."""
    store = opened(own_server.url(own_server.new_database()))
    own_server.sql("SET GLOBAL max_connections = 10")
    held: list[pymysql.Connection[Any]] = []
    try:
        with suppress(pymysql.OperationalError):
            held.extend(_connect(own_server) for _ in range(20))
        with pytest.raises(StoreAway) as caught:
            store.is_empty()
        assert caught.value.code == 1040
    finally:
        for connection in held:
            connection.close()
    eventually(lambda: _answers(store))


def _answers(store: Store) -> bool:
    try:
        return store.is_empty()
    except StoreAway:
        return False


def _connect(server: DatabaseServer) -> pymysql.Connection[Any]:
    return pymysql.connect(
        user=USER, password=PASSWORD.encode(), unix_socket=str(server.socket), ssl_disabled=True
    )


def _plain_url(server: DatabaseServer) -> str:
    """The URL of a migrated store and a user that may not write on a read-only server."""
    name = server.new_database()
    with closing(open_store(StoreConfig(url=server.url(name)))) as store:
        store.migrate()
    server.sql("CREATE USER plain@'%' IDENTIFIED BY 'plain'")
    server.sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {name}.* TO plain@'%'")
    return server.url(name).replace(f"{USER}:{quote(PASSWORD, safe='')}@", "plain:plain@")


def test_a_read_only_server_is_away(own_server: DatabaseServer, opened: Opened) -> None:
    """Error 1290: the server accepts writes again once it is the primary."""
    store = opened(_plain_url(own_server))
    own_server.sql("SET GLOBAL read_only = 1")
    with pytest.raises(StoreAway) as caught:
        enqueue(store, "h")
    assert caught.value.code == 1290
    own_server.sql("SET GLOBAL read_only = 0")
    enqueue(store, "h")


@pytest.mark.parametrize("sync", [0, 1])
def test_nothing_is_announced_before_the_binary_log_is_synced(opened: Opened, sync: int) -> None:
    """Others do not see it earlier; without a sync they do."""
    server = DatabaseServer((*FAST, "--log-bin=bin", "--server-id=1", f"--sync-binlog={sync}")).start()
    try:
        store = opened(server.url(server.new_database()))
        store.migrate()
        sent: list[bool] = []
        store.alone(lambda tx: jobs.insert_alone(tx, jobs.NewJob(handler="h"), lambda: sent.append(True)))
        assert len(sent) == 1 - sync
    finally:
        server.remove()


def test_a_server_that_becomes_read_only_before_commit_refuses_it(
    own_server: DatabaseServer, opened: Opened
) -> None:
    """1290 at COMMIT: nothing was committed, and nobody is told that it may have been."""
    store = opened(_plain_url(own_server))

    def work(tx: Any) -> None:
        jobs.insert(tx, [jobs.NewJob(handler="h")])
        own_server.sql("SET GLOBAL read_only = 1")

    with pytest.raises(StoreAway) as caught:
        store.run(work)
    assert caught.value.code == 1290
    assert not isinstance(caught.value, CommitUnknown)
    own_server.sql("SET GLOBAL read_only = 0")
    assert value(store, "SELECT COUNT(*) FROM workerd_jobs") == 0


def test_a_missing_table_is_away_not_a_rows_fault(mysql: Store) -> None:
    """Otherwise every outcome would be refused one by one during the restore of a backup."""
    sql(mysql, "RENAME TABLE workerd_jobs TO elsewhere")
    with pytest.raises(StoreAway) as caught:
        enqueue(mysql, "h")
    assert caught.value.code == 1146
    sql(mysql, "RENAME TABLE elsewhere TO workerd_jobs")
    enqueue(mysql, "h")


def test_a_killed_server_is_away_until_it_is_back(own_server: DatabaseServer, opened: Opened) -> None:
    """In a transaction, between two, and on connecting; then the next use connects again."""
    store = opened(own_server.url(own_server.new_database()))
    store.migrate()

    def killing(tx: Any) -> None:
        tx.execute("UPDATE workerd_jobs SET priority = 1")
        own_server.kill9()
        tx.execute("UPDATE workerd_jobs SET priority = 2")

    with pytest.raises(StoreAway) as caught:
        store.run(killing)
    assert not isinstance(caught.value, CommitUnknown)
    with pytest.raises(StoreAway):
        enqueue(store, "h")
    own_server.start()
    assert status(store, enqueue(store, "h")) == "new"


def test_a_connection_that_was_killed_between_two_transactions(
    mysql: Store, mysql_server: DatabaseServer
) -> None:
    """Nothing can have happened on it: the next transaction has a new one at once."""
    for use in (
        lambda: enqueue(mysql, "h"),
        lambda: mysql.read(lambda tx: tx.now),
        lambda: mysql.alone(lambda tx: jobs.insert_alone(tx, jobs.NewJob(handler="h"))),
    ):
        killed = value(mysql, "SELECT CONNECTION_ID()")
        mysql_server.sql(f"KILL {killed}")
        gone = f"SELECT COUNT(*) FROM information_schema.processlist WHERE id = {killed}"
        eventually(lambda gone=gone: mysql_server.sql(gone)[0][0] == 0)
        use()
    assert value(mysql, "SELECT COUNT(*) FROM workerd_jobs") == 2


def test_a_connection_that_the_server_closed_for_idleness(mysql: Store) -> None:
    """As after `wait_timeout`: no call fails for it."""
    first = value(mysql, "SELECT CONNECTION_ID()")
    sql(mysql, "SET SESSION wait_timeout = 1")
    assert mysql._session is not None
    eventually(mysql._session.is_dead)
    enqueue(mysql, "h")
    assert value(mysql, "SELECT CONNECTION_ID()") != first


def test_a_role_learns_of_a_connection_that_the_server_closed(mysql: Store) -> None:
    """One use fails: the role compares what it holds with the next server, which may lack commits."""
    mysql.reports_loss = True
    sql(mysql, "SET SESSION wait_timeout = 1")
    assert mysql._session is not None
    eventually(mysql._session.is_dead)
    with pytest.raises(StoreAway):
        enqueue(mysql, "h")
    enqueue(mysql, "h")


def test_a_transaction_that_is_left_idle_keeps_no_locks(
    mysql: Store, mysql_server: DatabaseServer, mysql_url: str, opened: Opened
) -> None:
    """As of a process that is frozen: the server ends it, and what it held is free."""
    job = enqueue(mysql, "h")
    table = value(mysql, "SELECT DATABASE()").decode() + ".workerd_jobs"
    frozen = opened(mysql_url)
    frozen.idle_limit_s = 1.0

    def hold(tx: Tx) -> None:
        tx.execute("UPDATE workerd_jobs SET priority = 7")
        mysql_server.sql(f"UPDATE {table} SET priority = 5")
        tx.execute("UPDATE workerd_jobs SET priority = 8")

    with pytest.raises(StoreAway):
        frozen.run(hold)
    assert mysql.read(lambda tx: tx.one("SELECT priority FROM workerd_jobs WHERE id = %s", (job,))) == (5,)
    frozen.run(lambda tx: tx.execute("UPDATE workerd_jobs SET priority = 6"))


def test_a_connection_to_a_server_that_was_restarted(own_server: DatabaseServer, opened: Opened) -> None:
    """No call fails for it, whether it reads or writes."""
    store = opened(own_server.url(own_server.new_database()))
    store.migrate()
    for use in (lambda: store.read(lambda tx: tx.now), lambda: enqueue(store, "h")):
        own_server.kill9()
        own_server.start()
        use()


def test_a_commit_without_an_answer_is_unknown(own_server: DatabaseServer, opened: Opened) -> None:
    """The connection breaks after the work and before the answer: it may be there or not."""
    store = opened(own_server.url(own_server.new_database()))
    store.migrate()

    made: list[str] = []

    def work(tx: Any) -> None:
        made.extend(id_text(one.id) for one in jobs.insert(tx, [jobs.NewJob(handler="h")] * 2))
        own_server.kill9()

    with pytest.raises(CommitUnknown) as caught:
        store.run(work)
    assert caught.value.code in (2006, 2013)
    assert caught.value.ids == tuple(made)
    own_server.start()
    assert value(store, "SELECT COUNT(*) FROM workerd_jobs") == 0


@pytest.mark.slow
def test_a_frozen_server_is_away_after_the_timeout(own_server: DatabaseServer, opened: Opened) -> None:
    """No statement, COMMIT or connect waits without a limit."""
    store = opened(own_server.url(own_server.new_database()), timeout=1.5)
    store.migrate()
    own_server.freeze()
    try:
        with pytest.raises(StoreAway):
            enqueue(store, "h")
        with pytest.raises(StoreAway):
            enqueue(store, "h")
    finally:
        own_server.thaw()
    enqueue(store, "h")

    def freezing(tx: Any) -> None:
        jobs.insert(tx, [jobs.NewJob(handler="h")])
        own_server.freeze()

    try:
        with pytest.raises(CommitUnknown):
            store.run(freezing)
    finally:
        own_server.thaw()


def test_a_statement_that_takes_too_long_is_stopped(mysql_url: str, opened: Opened) -> None:
    """By the server, where it can, else by the socket's limit; the next transaction works."""
    store = opened(mysql_url, timeout=1.0)
    endless = "SELECT COUNT(*) FROM " + ", ".join(f"information_schema.columns AS c{n}" for n in range(4))
    with pytest.raises(StoreAway):
        value(store, endless)
    assert value(store, "SELECT 1") == 1


def test_a_deadlock_retries_the_whole_transaction(mysql: Store, mysql_url: str, opened: Opened) -> None:
    """Two transactions that lock two rows in opposite order both come through."""
    one, two = enqueue(mysql, "h"), enqueue(mysql, "h")
    stores = [opened(mysql_url), opened(mysql_url)]
    met = threading.Barrier(2)
    runs: list[int] = []

    def work(store: Store, first: bytes, second: bytes) -> None:
        tries = 0

        def crossing(tx: Any) -> None:
            nonlocal tries
            tries += 1
            tx.execute("UPDATE workerd_jobs SET priority = priority + 1 WHERE id = %s", (first,))
            if tries == 1:
                met.wait()
            tx.execute("UPDATE workerd_jobs SET priority = priority + 1 WHERE id = %s", (second,))

        store.run(crossing)
        runs.append(tries)

    threads = [
        threading.Thread(target=work, args=(store, *order))
        for store, order in zip(stores, [(one, two), (two, one)], strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(runs) == [1, 2]
    assert sum(s.stats.retries for s in stores) == 1
    assert sum(s.stats.errors[1213] for s in stores) == 1
    assert mysql.read(lambda tx: tx.query("SELECT priority FROM workerd_jobs")) == [(2,), (2,)]


def test_a_lock_that_is_never_released_is_away(mysql: Store, mysql_url: str, opened: Opened) -> None:
    """1205 again and again: given up after a bounded time, and the row is as it was."""
    made = enqueue(mysql, "h")

    def holding(tx: Any) -> None:
        tx.execute("UPDATE workerd_jobs SET priority = 1 WHERE id = %s", (made,))
        with pytest.raises(StoreAway) as caught:
            sql(opened(mysql_url), "UPDATE workerd_jobs SET priority = 2 WHERE id = %s", made)
        assert caught.value.code == 1205

    mysql.run(holding)
    assert value(mysql, "SELECT priority FROM workerd_jobs") == 1
    assert RETRY_FOR_S < 5


def test_a_refused_statement_rolls_back_and_keeps_the_connection(mysql: Store) -> None:
    """Earlier statements of the same transaction are rolled back."""
    before = value(mysql, "SELECT CONNECTION_ID()")

    def work(tx: Any) -> None:
        jobs.insert(tx, [jobs.NewJob(handler="h")])
        tx.execute(
            "INSERT INTO workerd_jobs (id, handler, status) VALUES (%s, 'h', 'nonsense')", (b"i" * 16,)
        )

    with pytest.raises(StoreRefused) as caught:
        mysql.run(work)
    assert caught.value.code == 1265
    assert value(mysql, "SELECT COUNT(*) FROM workerd_jobs") == 0
    assert value(mysql, "SELECT CONNECTION_ID()") == before


def test_an_error_of_the_caller_rolls_back(mysql: Store) -> None:
    """Any exception of `work` propagates, and nothing is stored."""

    def work(tx: Any) -> None:
        jobs.insert(tx, [jobs.NewJob(handler="h")])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        mysql.run(work)
    assert value(mysql, "SELECT COUNT(*) FROM workerd_jobs") == 0


def test_closing_in_opposite_orders_never_deadlocks(mysql: Store, mysql_url: str, opened: Opened) -> None:
    """Two that close overlapping batches, given in opposite order, lock in one order."""
    mysql.run(lambda tx: jobs.insert(tx, [jobs.NewJob(handler="h") for _ in range(200)]))
    taken = claims(mysql, "h", 200)
    told = [outcome(c, Status.RETRY) for c in taken]
    stores = [opened(mysql_url), opened(mysql_url)]
    closed: list[int] = []
    threads = [
        threading.Thread(target=lambda s=s, t=t: closed.append(close(s, t)))
        for s, t in zip(stores, (told, told[::-1]), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(closed) == [0, 200]
    assert sum(s.stats.errors[1213] for s in stores) == 0
    assert value(mysql, "SELECT COUNT(*) FROM workerd_jobs WHERE attempt = 2") == 200
