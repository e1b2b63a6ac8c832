"""Handlers as the store and the configuration know them, paused and resumed; and the nodes that run them."""

from __future__ import annotations

from workerd import documents
from workerd.config.model import Config
from workerd.documents import Document
from workerd.operations.actor import Actor
from workerd.operations.enqueue import check_handlers
from workerd.store import handlers, nodes
from workerd.store.base import Tx
from workerd.store.handlers import HandlerRow


def list_(tx: Tx, config: Config) -> list[Document]:
    """All handlers: those of the store, and those configured here that no pool has announced yet."""
    rows = handlers.list_(tx)
    names = {row.name for row in rows}
    rows += [HandlerRow(name=name, known=True) for name in config.handlers if name not in names]
    return [documents.handler(row) for row in sorted(rows, key=lambda row: row.name)]


def find(tx: Tx, config: Config, name: str) -> Document:
    """One handler; `known` is false if neither store nor configuration has it."""
    row = handlers.find(tx, name) or HandlerRow(name=name, known=name in config.handlers)
    return documents.handler(row)


def pause(tx: Tx, actor: Actor, config: Config, name: str, reason: str | None = None) -> None:
    """Hold a handler back: no node claims its jobs after the commit. Raises HandlerNotFound."""
    check_handlers([name], handlers.known(tx), config)
    handlers.pause(tx, name, actor.name, reason)


def resume(tx: Tx, actor: Actor, config: Config, name: str) -> bool:
    """Let a handler be claimed again; false if it was not paused. Raises HandlerNotFound."""
    if handlers.find(tx, name) is None:
        check_handlers([name], handlers.known(tx), config)
        return False
    return handlers.resume(tx, name)


def list_nodes(tx: Tx) -> list[Document]:
    """All nodes, with whether their lease is valid."""
    return [documents.node(row, tx.now) for row in nodes.list_(tx)]
