"""Handlers in the store: who has them, pauses that hold, names that only jobs know."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from tests.support import storing as s
from tests.support.eventually import eventually
from workerd.config.schedule_config import ScheduleConfig
from workerd.errors import NotFound
from workerd.store import claims, handlers, intervals, nodes, schedule_control
from workerd.store.base import Store, Tx
from workerd.store.polls import poll


def register(store: Store, name: str, lease: float = 60.0) -> None:
    record = nodes.NodeRecord(id=name.encode().ljust(16, b"-"), name=name)
    store.run(lambda tx: nodes.register(tx, record, lease))


def seen(store: Store, handler: str, node: str, signature: bytes | None = None) -> None:
    store.run(lambda tx: handlers.seen(tx, handler, signature, node))


def listed(store: Store) -> dict[str, handlers.HandlerRow]:
    return {row.name: row for row in store.read(handlers.list_)}


def test_a_handler_is_on_the_live_nodes_that_loaded_it(store: Store) -> None:
    """Nodes whose lease is over are not shown, nodes that are gone are forgotten."""
    register(store, "one")
    register(store, "two")
    seen(store, "mail", "one", b'{"to":"str"}')
    seen(store, "mail", "two", b'{"to":"str"}')
    assert listed(store)["mail"].nodes == ["one", "two"]
    s.sql(store, "UPDATE workerd_nodes SET lease_until = '2020-01-01 00:00:00' WHERE name = 'two'")
    found = listed(store)["mail"]
    assert found is not None
    assert (found.nodes, found.signature, found.known) == (["one"], b'{"to":"str"}', True)
    s.sql(store, "DELETE FROM workerd_nodes WHERE name = 'two'")
    seen(store, "mail", "one", None)
    assert s.value(store, "SELECT nodes FROM workerd_handlers") == b'["one"]'
    assert store.read(handlers.known) == {"mail": None}


def test_handlers_that_only_jobs_name_are_listed(store: Store) -> None:
    """A job for a handler without a node stays visible; the rows of a schedule's chain are not a handler."""
    for name in ("thumb", "thumb", "a'b\"c\n", "ünï🎈", "mail"):
        s.enqueue(store, name)
    register(store, "one")
    seen(store, "mail", "one")
    store.run(lambda tx: schedule_control.upsert(tx, {"sync": ScheduleConfig(cooler=1.0)}))
    store.run(lambda tx: intervals.ensure_next(tx, "sync", 1.0))
    found = listed(store)
    assert sorted(found) == sorted(["a'b\"c\n", "mail", "thumb", "ünï🎈"])
    assert [name for name, row in found.items() if not row.known] == sorted({*found} - {"mail"})


def test_a_pause_records_who_and_why_and_holds(store: Store) -> None:
    """A paused handler is not claimed until it is resumed; the first pause keeps its time."""
    s.enqueue(store, "mail")
    store.run(lambda tx: handlers.pause(tx, "mail", "ann", "the server is down"))
    first = listed(store)["mail"]
    store.run(lambda tx: handlers.pause(tx, "mail", "bob", None))
    row = listed(store)["mail"]
    assert (row.paused_at, row.paused_by, row.pause_reason) == (first.paused_at, "bob", None)
    assert first.pause_reason == "the server is down"
    assert store.alone(lambda tx: poll(tx, s.NODE.id, []), write=False).paused == {"mail"}
    assert s.claims(store, "mail") == []
    assert store.run(lambda tx: handlers.resume(tx, "mail")) is True
    assert store.run(lambda tx: handlers.resume(tx, "mail")) is False
    assert len(s.claims(store, "mail")) == 1


def test_resuming_an_unknown_handler_is_an_error(store: Store) -> None:
    """A name with a slip in it is not taken silently."""
    with pytest.raises(NotFound, match="workerd handlers"):
        store.run(lambda tx: handlers.resume(tx, "mial"))


def test_a_pause_waits_for_the_claims_under_way(store: Store, store_url: str, opened: s.Opening) -> None:
    """No claim commits after the pause has returned, even if it started before."""
    s.enqueue(store, "mail")
    other = opened(store_url)
    looked, go_on = threading.Event(), threading.Event()
    order: list[str] = []

    def claim_slowly() -> None:
        def work(tx: object) -> object:
            batch = claims.claim(tx, "mail", 1, s.NODE)  # type: ignore[arg-type]
            looked.set()
            go_on.wait(10)
            order.append("claimed")
            return batch

        other.run(work)

    claimer = threading.Thread(target=claim_slowly)
    claimer.start()
    assert looked.wait(10)
    pauser = threading.Thread(
        target=lambda: (store.run(lambda tx: handlers.pause(tx, "mail", "ann", None)), order.append("paused"))
    )
    pauser.start()
    go_on.set()
    claimer.join()
    pauser.join()
    assert order == ["claimed", "paused"]
    eventually(lambda: listed(store)["mail"].paused_at)


def test_a_node_withdraws_what_it_serves_no_more(store: Store) -> None:
    """One that no other node has becomes unknown, with its pause kept; nodes that are gone do not count."""
    register(store, "one")
    register(store, "two")
    for handler, node in (
        ("mail", "one"),
        ("mail", "two"),
        ("thumb", "gone"),
        ("thumb", "one"),
        ("kept", "one"),
    ):
        seen(store, handler, node, b"{}")
    store.run(lambda tx: handlers.pause(tx, "thumb", "ann", None))
    assert store.run(lambda tx: handlers.withdraw(tx, "one", {"kept"})) == ["mail", "thumb"]
    assert store.read(handlers.known) == {"kept": b"{}", "mail": b"{}"}
    found = listed(store)
    assert {name: row.nodes for name, row in found.items()} == {"kept": ["one"], "mail": ["two"], "thumb": []}
    assert found["thumb"].paused_by == "ann"
    assert not found["thumb"].known
    assert store.run(lambda tx: handlers.withdraw(tx, "one", {"kept"})) == []


def test_what_another_node_announces_meanwhile_stays(
    mysql: Store, mysql_url: str, opened: s.Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a handler moves from one node to another: the old one withdraws what the new one has loaded."""
    old, new = mysql, opened(mysql_url)
    register(old, "old")
    register(old, "new")
    seen(old, "mail", "old", b'{"s":1}')
    locked = handlers._locked

    def announced_before(tx: Tx, names: Sequence[str], node: str) -> list[tuple[str, set[str]]]:
        seen(new, "mail", "new", b'{"s":1}')
        return locked(tx, names, node)

    monkeypatch.setattr(handlers, "_locked", announced_before)
    assert old.run(lambda tx: handlers.withdraw(tx, "old", ())) == ["mail"]
    found = old.read(lambda tx: handlers.find(tx, "mail"))
    assert (found.nodes, found.known, found.signature) == (["new"], True, b'{"s":1}')


def test_what_the_store_has_lost_of_a_node_is_unannounced(store: Store) -> None:
    """A handler without a row, without this node, or with another signature."""
    register(store, "one")
    register(store, "two")
    seen(store, "same", "one", b'{"a":1}')
    seen(store, "elsewhere", "two", b"{}")
    seen(store, "changed", "one", b"{}")
    wanted = {"same": b'{"a":1}', "elsewhere": b"{}", "changed": b'{"b":2}', "gone": None}
    assert store.read(lambda tx: handlers.unannounced(tx, wanted, "one")) == ["changed", "elsewhere", "gone"]
