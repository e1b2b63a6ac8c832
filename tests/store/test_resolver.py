"""Names to addresses: within a limit, while the name server is silent too."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.name_server import NameServer, may_mount
from tests.support.servers import DatabaseServer
from workerd.config.model import StoreConfig
from workerd.store.engines import open_store
from workerd.store.resolver import Resolver

CONFIG = """
[supervisor]
watchdog = "3s"
[dispatcher]
lease = "3s"
"""


def test_a_literal_address_needs_no_lookup() -> None:
    """Of either family."""
    resolver = Resolver()
    assert resolver.addresses("127.0.0.1", 3306) == [(socket.AF_INET, ("127.0.0.1", 3306))]
    assert resolver.addresses("::1", 3307) == [(socket.AF_INET6, ("::1", 3307, 0, 0))]


def test_a_name_has_all_its_addresses() -> None:
    """Each with the port."""
    found = Resolver().addresses("localhost", 3306)
    assert (socket.AF_INET, ("127.0.0.1", 3306)) in found


@pytest.mark.parametrize("name", ["no such host", "a" * 300, "host.invalid."])
def test_what_is_no_name_is_an_os_error(name: str) -> None:
    """As a server that does not answer, not a crash."""
    with pytest.raises(OSError, match=r".+"):
        Resolver().addresses(name, 3306)


@pytest.fixture
def name_server() -> Iterator[NameServer]:
    """The one that the daemon under test asks."""
    if os.getuid() != 0 or not may_mount():
        pytest.skip("only root may listen on port 53 and mount another /etc/resolv.conf")
    server = NameServer()
    yield server
    server.close()


@pytest.mark.slow
def test_a_silent_name_server_wedges_nobody(
    tmp_path: Path, own_server: DatabaseServer, name_server: NameServer
) -> None:
    """The watchdog ends no role; the store is up when names have addresses, and the last ones serve on."""
    database = own_server.new_database()
    direct = own_server.url(database, tcp=True)
    with closing(open_store(StoreConfig(url=direct))) as store:
        store.migrate()
    url = direct.replace("127.0.0.1", "db.test")
    name_server.silent = True
    daemon = Daemon(tmp_path / "node", url, CONFIG, prefix=name_server.prefix(tmp_path))
    try:
        daemon.spawn()
        eventually(lambda: sum(daemon.status().get("store", {}).get("errors", {}).values()) >= 3)
        roles = {name: daemon.pid(name) for name in ("dispatcher", "ingester")}
        assert "name server has not answered for db.test" in daemon.status()["store"]["error"]
        name_server.silent = False
        eventually(daemon.ready, state=daemon.tail)
        name_server.silent = True
        own_server.kill9()
        eventually(lambda: daemon.status()["store"]["state"] == "away", state=daemon.tail)
        own_server.start()
        eventually(lambda: daemon.status()["store"]["state"] == "up", state=daemon.tail)
        assert {name: daemon.pid(name) for name in roles} == roles
        assert "watchdog" not in daemon.logged()
        assert daemon.stop() == 0
    finally:
        daemon.end()


def test_without_a_thread_the_last_addresses_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """As while the name server is silent; without any it is an error of the connection."""
    resolver = Resolver()
    known = resolver.addresses("localhost", 3306)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert resolver.addresses("localhost", 3306) == known
    with pytest.raises(OSError, match="can't start new thread"):
        resolver.addresses("db.example", 3306)
