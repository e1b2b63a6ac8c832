"""`POST /jobs` of plain jobs: sent by the event loop while what it knows is recent, else by a thread."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.gateway_state import ask, gateway_state
from tests.support.servers import DatabaseServer
from workerd.config.handler_config import HandlerConfig, PoolConfig
from workerd.config.model import Config, GatewayConfig, NodeConfig, StoreConfig
from workerd.errors import StoreAway
from workerd.gateway.backend import Backend
from workerd.gateway.state import GatewayState
from workerd.job import parse_id
from workerd.messages import Inserting
from workerd.operations.enqueue import KnownHandlers
from workerd.operations.rules import HandlerRules
from workerd.runtime import wake_ups
from workerd.runtime.sockets import bind_datagram
from workerd.runtime.wake_ups import MAX_DATAGRAM_BYTES, new_row, new_rows
from workerd.store import servers
from workerd.store.engines import open_store

HANDLER = HandlerConfig(name="noop", call="x:y", pool="noop", redact=("card",))


@pytest.fixture
def gateway(
    mysql_server: DatabaseServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[GatewayState]:
    """A gateway in this process, whose caches stay recent for as long as a test runs."""
    monkeypatch.setattr(KnownHandlers, "TTL_S", 600.0)
    monkeypatch.setattr(HandlerRules, "TTL_S", 600.0)
    name = mysql_server.new_database()
    config = Config(
        node=NodeConfig(runtime_dir=tmp_path / "run", state_dir=tmp_path),
        store=StoreConfig(url=mysql_server.url(name)),
        gateway=GatewayConfig(listen="unix:/unused"),
        pools={"noop": PoolConfig(name="noop", handlers=(HANDLER,))},
    )
    store = open_store(config.store)
    store.migrate()
    store.close()
    yield gateway_state(config)
    mysql_server.drop_database(name)


def enqueue(gateway: GatewayState, **more: Any) -> tuple[int, dict[str, Any]]:
    answer = ask(gateway, "/jobs", {"handler": "noop", **more})
    return answer.status_code, answer.json()


def no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever needs a thread to write fails from here on."""

    async def fail(self: Backend, *_: object, **__: object) -> None:
        raise StoreAway("a thread was asked")

    monkeypatch.setattr(Backend, "write", fail)


def test_the_loop_enqueues_without_a_thread(gateway: GatewayState, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a thread has asked for the handlers; the answer is what a look-up shows, redacted as that."""
    assert enqueue(gateway)[0] == 201
    with monkeypatch.context() as patch:
        no_thread(patch)
        status, document = enqueue(gateway, vars={"card": "4711", "n": 1}, meta={"a": 1}, priority=3)
        # What existing rows may prevent, or needs the time before it is inserted, is a thread's.
        assert enqueue(gateway, delay="1h")[0] == 503
        assert enqueue(gateway, unique_key="k")[0] == 503
    assert status == 201
    assert document.pop("created") is True
    assert document.pop("replaced") is False
    assert document["vars"]["card"] != "4711"
    assert ask(gateway, f"/jobs/{document['id']}").json() == document


def test_the_dispatcher_is_told_of_which_handler_there_are_new_rows(
    gateway: GatewayState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has inserted them: a thread, the loop, or a thread for what needs the store first.

    The loop says so before the store has answered, too.
    """
    monkeypatch.setattr(wake_ups, "AWAKE_S", 0.0)
    monkeypatch.setattr(servers, "shows_early", lambda *_: True)
    path = gateway.backend.paths.wake
    path.parent.mkdir()
    with bind_datagram(path) as sock:
        _, second, _ = [enqueue(gateway, **more)[1] for more in ({}, {}, {"unique_key": "k"})]
        assert ask(gateway, "/jobs/bulk", {"jobs": [{"handler": "noop"}] * 2}).status_code == 201
        of_second = [msgspec.msgpack.encode(Inserting(("noop",))), new_row("noop", parse_id(second["id"]))]
        assert [sock.recv(MAX_DATAGRAM_BYTES) for _ in range(5)] == [
            new_rows(["noop"]), *of_second, *[new_rows(["noop"])] * 2
        ]  # fmt: skip


def test_a_connection_that_was_lost_is_replaced(gateway: GatewayState, mysql_server: DatabaseServer) -> None:
    """Nobody notices: what could not be sent is enqueued by a thread, on another connection."""
    assert enqueue(gateway)[0] == 201
    for (connection,) in mysql_server.sql("SELECT id FROM information_schema.processlist WHERE user = 'app'"):
        mysql_server.sql(f"KILL {connection}")
    assert [enqueue(gateway)[0] for _ in range(3)] == [201, 201, 201]


def test_a_node_that_drains_enqueues_nothing(gateway: GatewayState) -> None:
    """By neither way."""
    assert enqueue(gateway)[0] == 201
    gateway.backend.draining = True
    assert enqueue(gateway)[0] == 503


def test_an_error_on_the_way_is_one_requests_alone(
    gateway: GatewayState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that nobody foresaw answers 500; requests after it do not wait for a batch that never ends."""
    assert enqueue(gateway)[0] == 201

    def fail(self: KnownHandlers, *_: object) -> bool:
        raise RuntimeError("unforeseen")

    with monkeypatch.context() as patch:
        patch.setattr(KnownHandlers, "admits", fail)
        assert [enqueue(gateway)[0] for _ in range(2)] == [500, 500]
    assert enqueue(gateway)[0] == 201
