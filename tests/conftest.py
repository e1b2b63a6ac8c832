"""Shared fixtures: one database server per session, a new store per test, no WORKERD_* variables."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import servers
from tests.support.galera import Galera
from workerd.config.model import StoreConfig
from workerd.store.base import Store
from workerd.store.engines import open_store

for _name in [name for name in os.environ if name.startswith("WORKERD_")]:
    del os.environ[_name]

with contextlib.suppress(ImportError):  # absent in the venv that has only what tests of Django 6 need
    import hypothesis

    # A stall of the machine is no failure of a property.
    hypothesis.settings.register_profile(
        "suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("suite")

# A background job of a shell ignores SIGINT, and every command under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _remove_server_template() -> Iterator[None]:
    """Delete the data directory that private servers are copied from."""
    yield
    servers.template.remove()


@pytest.fixture(scope="session")
def mysql_server() -> Iterator[servers.DatabaseServer]:
    """The server of the session: a private MariaDB, or the one that the environment names."""
    server = servers.session_server()
    yield server
    server.remove()


@pytest.fixture
def own_server() -> Iterator[servers.DatabaseServer]:
    """A private server that this test may kill, stop and freeze."""
    server = servers.DatabaseServer()
    try:
        yield server.start()
    finally:
        server.remove()


@pytest.fixture
def durable_server() -> Iterator[servers.DatabaseServer]:
    """A private server whose commits survive its kill."""
    server = servers.DatabaseServer(servers.DURABLE)
    try:
        yield server.start()
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.thaw()
        server.remove()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Galera]:
    """A Galera cluster of two servers."""
    galera = Galera(2)
    try:
        yield galera.start()
    finally:
        galera.remove()


@pytest.fixture
def mysql_url(mysql_server: servers.DatabaseServer) -> Iterator[str]:
    """The URL of an empty database on the shared server."""
    name = mysql_server.new_database()
    yield mysql_server.url(name)
    mysql_server.drop_database(name)


@pytest.fixture(scope="module", params=["mysql", "sqlite"])
def module_store_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """As `store_url`, one for all tests of a file."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('store')}/store.db"
        return
    server = request.getfixturevalue("mysql_server")
    name = server.new_database()
    yield server.url(name)
    server.drop_database(name)


@pytest.fixture(params=["mysql", "sqlite"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store; each test that uses it runs once on each engine."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    url: str = request.getfixturevalue("mysql_url")
    return url


@pytest.fixture
def opened() -> Iterator[Callable[..., Store]]:
    """Opens stores by URL and closes them after the test."""
    stores: list[Store] = []

    def opening(url: str, *, timeout: float = 5.0, password_file: str = "") -> Store:
        stores.append(open_store(StoreConfig(url=url, password_file=password_file), timeout=timeout))
        return stores[-1]

    yield opening
    for store in stores:
        store.close()


@pytest.fixture
def tcp_url(mysql_server: servers.DatabaseServer) -> Iterator[str]:
    """The URL of a migrated database over TCP."""
    if not mysql_server.private:
        pytest.skip("another's server need not listen here")
    name = mysql_server.new_database()
    yield mysql_server.url(name, tcp=True)
    mysql_server.drop_database(name)


@pytest.fixture
def store(store_url: str, opened: Callable[..., Store]) -> Store:
    """A migrated, empty store."""
    result = opened(store_url)
    result.migrate()
    return result


@pytest.fixture
def mysql(mysql_url: str, opened: Callable[..., Store]) -> Store:
    """A migrated store on the session's server."""
    store = opened(mysql_url)
    store.migrate()
    return store


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    """A folder in which handlers create a file for each step they reach."""
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder
