"""`POST /jobs` of plain jobs: sent by the event loop while what it knows is recent, else by a thread."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pymysql
import pytest

from tests.support.gateway_state import ask, gateway_state, post_together
from tests.support.servers import DatabaseServer
from workerd.config.handler_config import HandlerConfig, PoolConfig
from workerd.config.model import Config, GatewayConfig, NodeConfig, StoreConfig
from workerd.errors import StoreAway
from workerd.gateway.backend import Backend
from workerd.gateway.posted_enqueue import PostedEnqueue
from workerd.gateway.state import GatewayState
from workerd.job import parse_id
from workerd.messages import Inserting
from workerd.operations.access import Store
from workerd.operations.enqueue import KnownHandlers
from workerd.operations.rules import HandlerRules
from workerd.runtime import wake_ups
from workerd.runtime.sockets import bind_datagram
from workerd.runtime.wake_ups import MAX_DATAGRAM_BYTES, new_row, new_rows
from workerd.store import servers
from workerd.store.engines import open_store

HANDLER = HandlerConfig(name="noop", call="x:y", pool="noop", redact=("card",))
BAD = {"handler": "noop", "meta": {"is": "bad"}}


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


@pytest.fixture
def refusing(gateway: GatewayState, mysql_server: DatabaseServer) -> GatewayState:
    """One whose store refuses BAD."""
    mysql_server.sql(
        "CREATE TRIGGER refuse BEFORE INSERT ON workerd_jobs FOR EACH ROW BEGIN"
        " IF NEW.meta LIKE '%bad%' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no'; END IF; END",
        gateway.config.store.url.partition("?")[0].rpartition("/")[2],
    )
    return gateway


def enqueue(gateway: GatewayState, **more: Any) -> tuple[int, dict[str, Any]]:
    answer = ask(gateway, "/jobs", {"handler": "noop", **more})
    return answer.status_code, answer.json()


def no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever needs a thread to write fails from here on."""

    async def fail(self: Backend, *_: object, **__: object) -> None:
        raise StoreAway("a thread was asked")

    for name in ("write", "call"):
        monkeypatch.setattr(Backend, name, fail)


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


def test_the_times_of_a_job_beside_a_trigger(refusing: GatewayState) -> None:
    """A trigger hides them from the answer to an INSERT: the document is what a look-up shows, also then."""
    assert enqueue(refusing)[0] == 201
    for answer in post_together(refusing, "/jobs", [{"handler": "noop"}] * 3):
        document = answer.json()
        assert (document.pop("created"), document.pop("replaced")) == (True, False)
        assert ask(refusing, f"/jobs/{document['id']}").json() == document


def kill_connections(server: DatabaseServer) -> None:
    for (connection,) in server.sql("SELECT id FROM information_schema.processlist WHERE user = 'app'"):
        with contextlib.suppress(pymysql.Error):  # it may have ended by itself
            server.sql(f"KILL {connection}")


def test_a_connection_that_was_lost_is_replaced(gateway: GatewayState, mysql_server: DatabaseServer) -> None:
    """Nobody notices: what could not be sent is enqueued by a thread, on another connection."""
    assert enqueue(gateway)[0] == 201
    kill_connections(mysql_server)
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


@pytest.mark.parametrize("is_bad", [lambda n: n % 4 == 1, lambda n: n == 7, lambda n: n > 0])
def test_a_refused_job_is_refused_alone(
    refusing: GatewayState, mysql_server: DatabaseServer, is_bad: Callable[[int], bool]
) -> None:
    """Those of its batch are in the store before they are answered, and those after it, too."""
    sent = [BAD if is_bad(n) else {"handler": "noop"} for n in range(20)]
    answers = [answer for _ in range(3) for answer in post_together(refusing, "/jobs", sent)]
    assert [answer.status_code for answer in answers] == [422 if is_bad(n) else 201 for n in range(20)] * 3
    answers += post_together(refusing, "/jobs", [{"handler": "noop"}] * 3)
    made = {parse_id(answer.json()["id"]) for answer in answers if answer.status_code == 201}
    other = refusing.backend.open()
    assert {row[0] for row in other.read(lambda tx: tx.query("SELECT id FROM workerd_jobs"))} == made
    other.close()
    # The connection is lost where nothing is under way, and the next POST finds it closed.
    post_together(refusing, "/jobs", sent)
    kill_connections(mysql_server)
    assert [enqueue(refusing)[0] for _ in range(2)] == [201, 201]


def test_each_request_is_answered_while_the_store_is_away(
    refusing: GatewayState, mysql_server: DatabaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And those after it is back."""
    assert enqueue(refusing)[0] == 201

    def away(_: Backend) -> Store:
        raise StoreAway("it is away")

    monkeypatch.setattr(type(refusing.batch_enqueue._posted._store), "_connect", away)
    kill_connections(mysql_server)
    answers = post_together(refusing, "/jobs", [{"handler": "noop"}, BAD] * 3)
    assert [answer.status_code for answer in answers] == [503] * 6
    monkeypatch.undo()
    answers = post_together(refusing, "/jobs", [{"handler": "noop"}, BAD] * 3)
    assert [answer.status_code for answer in answers] == [201, 422] * 3


def test_an_unforeseen_error_of_one_batch_does_not_stop_the_next(
    gateway: GatewayState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is raised in the thread, or after the store has answered the event loop."""
    assert enqueue(gateway)[0] == 201

    def fail(*_: object) -> None:
        raise RuntimeError("unforeseen")

    with monkeypatch.context() as patch:
        patch.setattr(KnownHandlers, "is_recent", False)
        patch.setattr(PostedEnqueue, "_use", fail)
        assert enqueue(gateway)[0] == 500
    assert enqueue(gateway)[0] == 201
    with monkeypatch.context() as patch:
        patch.setattr(Backend, "wake_for", fail)
        assert enqueue(gateway)[0] == 201
    assert enqueue(gateway)[0] == 201
