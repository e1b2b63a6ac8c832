"""Other transactions in the way: the work fails for now, but the store is not away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.storing import enqueue, sql, value
from workerd.errors import StoreBusy
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
