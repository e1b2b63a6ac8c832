"""Other transactions in the way: the work fails for now, but the store is not away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.servers import DatabaseServer
from tests.support.storing import enqueue, sql, value
from workerd.dispatcher.lease import Contact
from workerd.errors import StoreAway, StoreBusy
from workerd.store.base import Store

Opened = Callable[..., Store]


def test_a_row_that_another_holds(mysql: Store, mysql_url: str, opened: Opened) -> None:
    """1205 to the end: busy, with the server's code; the connection and its next transaction are good."""
    made = enqueue(mysql, "h")
    other = opened(mysql_url)
    link = value(other, "SELECT CONNECTION_ID()")

    def holding(tx: Any) -> None:
        tx.execute("UPDATE workerd_jobs SET priority = 1 WHERE id = %s", (made,))
        with pytest.raises(StoreBusy) as caught:
            sql(other, "UPDATE workerd_jobs SET priority = 2 WHERE id = %s", made)
        assert caught.value.code == 1205

    mysql.run(holding)
    assert value(other, "SELECT CONNECTION_ID()") == link
    sql(other, "UPDATE workerd_jobs SET priority = 2 WHERE id = %s", made)


def test_a_statement_that_the_server_stopped(mysql_url: str, opened: Opened) -> None:
    """Its time limit is told by a server that answers."""
    store = opened(mysql_url, timeout=1.0)
    endless = "SELECT COUNT(*) FROM " + ", ".join(f"information_schema.columns AS c{n}" for n in range(4))
    link = value(store, "SELECT CONNECTION_ID()")
    with pytest.raises(StoreBusy):
        value(store, endless)
    assert value(store, "SELECT CONNECTION_ID()") == link


def test_busy_is_not_away(mysql: Store, mysql_url: str, opened: Opened) -> None:
    """The dispatcher's books still say that the store answers, since when it did."""
    made = enqueue(mysql, "h")
    contact = Contact(opened(mysql_url), gap=60.0)
    assert contact.read(lambda tx: tx.one("SELECT 1")) == (1,)
    since = contact.changed_at

    def holding(tx: Any) -> None:
        tx.execute("UPDATE workerd_jobs SET priority = 1 WHERE id = %s", (made,))
        with pytest.raises(StoreBusy):
            contact.run(lambda tx: tx.execute("UPDATE workerd_jobs SET priority = 2 WHERE id = %s", (made,)))

    mysql.run(holding)
    assert contact.away is None
    assert contact.changed_at == since
    assert contact.unknown_commits == 0


def test_a_store_that_is_gone_is_away_not_busy(own_server: DatabaseServer, opened: Opened) -> None:
    """Nobody answers: no other transaction is to blame."""
    store = opened(own_server.url(own_server.new_database()))
    contact = Contact(store, gap=60.0)
    contact.read(lambda tx: tx.one("SELECT 1"))
    own_server.kill9()
    with pytest.raises(StoreAway) as caught:
        contact.read(lambda tx: tx.one("SELECT 1"))
    assert not isinstance(caught.value, StoreBusy)
    assert contact.away is caught.value
