"""Several servers: the first that may be written is used, and one that may not is left."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.eventually import eventually
from tests.support.servers import DatabaseServer, free_port
from tests.support.storing import enqueue, status, value
from workerd.errors import StoreAway
from workerd.operations.access import ConnectionPool
from workerd.store import base
from workerd.store.base import Store
from workerd.store.servers import lost_majority
from workerd.store.session import ServerRole

Opened = Callable[..., Store]


@pytest.fixture
def url(own_server: DatabaseServer, opened: Opened) -> str:
    """A migrated store; its user has all rights, so that it may write on a read-only server."""
    url = own_server.url(own_server.new_database(), tcp=True)
    opened(url).migrate()
    return url


@pytest.fixture
def always_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is asked before every transaction, not only when it was not asked of late."""
    monkeypatch.setattr(base, "SERVER_CHECK_AGE_S", -1.0)


def beside(url: str, server: DatabaseServer, *hosts: str) -> str:
    """The URL with further hosts; `{}` stands for the server itself."""
    own = f"127.0.0.1:{server.port}"
    return url.replace(own, ",".join(host.format(own) for host in hosts))


def test_the_first_server_that_answers_is_used(own_server: DatabaseServer, url: str, opened: Opened) -> None:
    """In the order of the URL; what is in use is named with its version and id."""
    store = opened(beside(url, own_server, f"127.0.0.1:{free_port()}", "localhost.invalid", "{}"))
    assert status(store, enqueue(store, "h")) == "new"
    version = value(store, "SELECT VERSION()").decode()
    assert store.server.startswith(f"127.0.0.1:{own_server.port} ({version}, server id ")


def test_each_address_of_a_name_is_tried(own_server: DatabaseServer, url: str, opened: Opened) -> None:
    """`localhost` may be ::1 first, where this server does not listen."""
    store = opened(url.replace("127.0.0.1", "localhost"))
    assert status(store, enqueue(store, "h")) == "new"


def test_a_frozen_server_leaves_time_for_the_next(
    durable_server: DatabaseServer, url: str, own_server: DatabaseServer, opened: Opened
) -> None:
    """Its kernel accepts the connection, and nobody greets."""
    durable_server.freeze()
    store = opened(beside(url, own_server, f"127.0.0.1:{durable_server.port}", "{}"), timeout=3.0)
    assert status(store, enqueue(store, "h")) == "new"


def test_an_error_names_every_server(own_server: DatabaseServer, url: str, opened: Opened) -> None:
    """One is down and one read-only: what each of them does, and the code of the one that answered."""
    own_server.sql("SET GLOBAL read_only = 1")
    closed = free_port()
    store = opened(beside(url, own_server, f"127.0.0.1:{closed}", "{}"))
    with pytest.raises(StoreAway) as caught:
        store.check_version()
    message = str(caught.value)
    assert message.startswith("The store has no server that can be written: ")
    assert f"127.0.0.1:{closed} does not answer: " in message
    assert f"127.0.0.1:{own_server.port} (" in message
    assert "is read-only: a replica or a demoted primary" in message
    assert caught.value.code == 1290
    assert caught.value.answered


@pytest.mark.usefixtures("always_asked")
def test_a_server_that_became_read_only_is_left(own_server: DatabaseServer, url: str, opened: Opened) -> None:
    """By who only reads too, and although the user may write there; it is used again once it is primary."""
    store = opened(url)
    assert value(store, "SELECT 1") == 1
    own_server.sql("SET GLOBAL read_only = 1")
    for _ in range(2):
        with pytest.raises(StoreAway, match="is read-only: a replica or a demoted primary"):
            value(store, "SELECT 1")
    own_server.sql("SET GLOBAL read_only = 0")
    enqueue(store, "h")


@pytest.mark.usefixtures("always_asked")
def test_a_pool_leaves_with_all_connections(own_server: DatabaseServer, url: str, opened: Opened) -> None:
    """Those in use when they are released, and nobody connects to a server that is read-only."""
    pool = ConnectionPool(lambda: opened(url), 3, 1.0)
    count = "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE USER = 'app'"

    def sessions() -> int:
        return int(own_server.sql(count)[0][0])

    with pool.connection() as one, pool.connection() as two:
        with pool.connection() as three:
            for store in (one, two, three):
                assert value(store, "SELECT 1") == 1
        before = sessions()
        own_server.sql("SET GLOBAL read_only = 1")
        with pytest.raises(StoreAway), pool.connection() as three:
            value(three, "SELECT 1")
    eventually(lambda: sessions() == before - 3)
    own_server.sql("SET GLOBAL read_only = 0")
    with pool.connection() as store:
        assert value(store, "SELECT 1") == 1


@pytest.mark.usefixtures("always_asked")
def test_idle_connections_are_asked_too(own_server: DatabaseServer, url: str, opened: Opened) -> None:
    """A pool that nobody uses does not stay on a server that was demoted, and keeps its size."""
    pool = ConnectionPool(lambda: opened(url), 2, 1.0)
    with pool.connection() as one, pool.connection() as two:
        ids = {value(store, "SELECT CONNECTION_ID()") for store in (one, two)}
    pool.refresh()
    with pool.connection() as one, pool.connection() as two:
        assert {value(store, "SELECT CONNECTION_ID()") for store in (one, two)} == ids
    own_server.sql("SET GLOBAL read_only = 1")
    pool.refresh()
    ours = ", ".join(map(str, ids))
    query = f"SELECT 1 FROM information_schema.PROCESSLIST WHERE ID IN ({ours})"
    eventually(lambda: not own_server.sql(query))


def test_what_each_server_is(own_server: DatabaseServer, url: str, opened: Opened) -> None:
    """Version and role, and why one is not writable."""
    down = f"127.0.0.1:{free_port()}"
    store = opened(beside(url, own_server, down, "{}"))
    away, writable = store.server_states()
    assert (away.host, away.version, away.role) == (down, "", ServerRole.AWAY)
    assert "refused" in away.reason
    version = value(store, "SELECT VERSION()").decode()
    assert writable == (f"127.0.0.1:{own_server.port}", version, ServerRole.WRITABLE, "")
    own_server.sql("SET GLOBAL read_only = 1")
    assert store.server_states()[1].role is ServerRole.READ_ONLY


@pytest.mark.parametrize(
    ("states", "lost"),
    [
        ([], False),
        (["ONLINE"], False),
        (["ONLINE", "ONLINE", "UNREACHABLE"], False),
        (["ONLINE", "RECOVERING", "ONLINE"], False),
        (["ONLINE", "UNREACHABLE", "UNREACHABLE"], True),
        (["ONLINE", "UNREACHABLE"], True),
    ],
)
def test_a_group_without_its_majority(states: list[str], lost: bool) -> None:
    """As one of its members sees it: half of the group is no majority."""
    assert bool(lost_majority(states)) is lost
