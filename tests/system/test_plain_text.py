"""A node whose connection to the store is not encrypted although its URL asks for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.servers import DatabaseServer
from workerd.config.model import StoreConfig
from workerd.store.engines import open_store


def test_the_log_says_that_the_store_cannot_encrypt(mysql_server: DatabaseServer, tmp_path: Path) -> None:
    """Once, with the server's address, and without the password."""
    name = mysql_server.new_database()
    url = mysql_server.url(name, tcp=True) + "?ssl=preferred"
    store = open_store(StoreConfig(url=url))
    store.migrate()
    store.check_version()
    if not store.plain_text:
        pytest.skip("this server encrypts by itself")
    store.close()
    daemon = Daemon(tmp_path / "node", url, "")
    try:
        daemon.start()
        eventually(lambda: "store.unencrypted" in daemon.logged())
        daemon.stop()
        assert daemon.logged().count("store.unencrypted") == 1
    finally:
        daemon.end()
        mysql_server.drop_database(name)
