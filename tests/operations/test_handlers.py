"""Handlers are listed, paused and resumed on both engines."""

from __future__ import annotations

import pytest

from tests.support import storing
from workerd.config.model import Config
from workerd.errors import HandlerNotFound
from workerd.operations import handlers
from workerd.operations.actor import Actor
from workerd.store import handlers as stored_handlers
from workerd.store import nodes
from workerd.store.base import Store


def test_configured_handlers_are_listed_with_stored_ones(store: Store, config: Config) -> None:
    """Sorted by name; a configured handler is known before any pool has registered it."""
    store.run(lambda tx: stored_handlers.seen(tx, "other", b'{"a": "int"}', "one"))
    found = store.read(lambda tx: handlers.list_(tx, config))
    assert [row["name"] for row in found] == ["beat", "bounded", "mail", "other"]
    assert all(row["known"] for row in found)
    assert not store.read(lambda tx: handlers.find(tx, config, "nope"))["known"]


def test_a_pause_names_its_actor_and_reason(store: Store, config: Config, actor: Actor) -> None:
    """Resuming returns whether the handler was paused."""
    store.run(lambda tx: handlers.pause(tx, actor, config, "mail", "maintenance"))
    mail = store.read(lambda tx: handlers.find(tx, config, "mail"))
    assert (mail["paused_by"], mail["pause_reason"]) == ("me", "maintenance")
    assert mail["paused_at"] is not None
    assert store.run(lambda tx: handlers.resume(tx, actor, config, "mail"))
    assert not store.run(lambda tx: handlers.resume(tx, actor, config, "mail"))
    assert not store.run(lambda tx: handlers.resume(tx, actor, config, "beat"))


def test_an_unknown_handler_cannot_be_paused(store: Store, config: Config, actor: Actor) -> None:
    """The error lists the known ones."""
    with pytest.raises(HandlerNotFound, match="known are: beat, bounded, mail"):
        store.run(lambda tx: handlers.pause(tx, actor, config, "nope"))
    with pytest.raises(HandlerNotFound):
        store.run(lambda tx: handlers.resume(tx, actor, config, "nope"))


def test_a_node_is_up_while_its_lease_is_valid(store: Store) -> None:
    """Afterwards it is lost."""
    store.run(lambda tx: nodes.register(tx, nodes.NodeRecord(id=storing.NODE.id, name="one"), 60.0))
    (node,) = store.read(handlers.list_nodes)
    assert (node["name"], node["state"]) == ("one", "up")
    store.run(lambda tx: nodes.register(tx, nodes.NodeRecord(id=storing.NODE.id, name="one"), 0.0))
    (node,) = store.read(handlers.list_nodes)
    assert node["state"] == "lost"
