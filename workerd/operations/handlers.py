"""List, pause and resume handlers, stored and configured ones; list the nodes that run them."""

from __future__ import annotations

from workerd import documents
from workerd.config.model import Config
from workerd.document_types import Document
from workerd.operations import audit
from workerd.operations.actor import Actor
from workerd.operations.audit import Action
from workerd.operations.enqueue import check_handlers
from workerd.signature import Signature, parse
from workerd.store import handlers, nodes
from workerd.store.base import Tx
from workerd.store.handlers import HandlerRow


def list_(tx: Tx, config: Config) -> list[Document]:
    """Stored handlers, and configured ones that no pool has registered yet, by name."""
    rows = handlers.list_(tx)
    names = {row.name for row in rows}
    for row in rows:
        # A pool that never loaded, such as a quarantined one, has not registered its handlers in the store.
        row.known = row.known or row.name in config.handlers
    rows += [HandlerRow(name=name, known=True) for name in config.handlers if name not in names]
    return [documents.handler(row) for row in sorted(rows, key=lambda row: row.name)]


def find(tx: Tx, config: Config, name: str) -> Document:
    """One handler; `known` is false if neither store nor configuration has it."""
    row = handlers.find(tx, name) or HandlerRow(name=name, known=False)
    row.known = row.known or name in config.handlers
    return documents.handler(row)


def signature_of(tx: Tx, name: str) -> Signature | None:
    """What vars a handler takes; None if no node has loaded it, or it takes any."""
    stored = handlers.known(tx).get(name)
    return None if stored is None else parse(stored)


def pause(tx: Tx, actor: Actor, config: Config, name: str, reason: str | None = None) -> None:
    """Pause a handler: after the commit no node claims its jobs. Raises HandlerNotFound."""
    check_handlers([name], handlers.known(tx), config)
    handlers.pause(tx, name, actor.name, reason)
    audit.record(tx, actor, Action.PAUSE, name, {"reason": reason} if reason else None)


def resume(tx: Tx, actor: Actor, config: Config, name: str) -> bool:
    """Resume a handler; false if it was not paused. Raises HandlerNotFound."""
    if handlers.find(tx, name) is None:
        check_handlers([name], handlers.known(tx), config)
        return False
    was_paused = handlers.resume(tx, name)
    if was_paused:
        audit.record(tx, actor, Action.RESUME, name)
    return was_paused


def list_nodes(tx: Tx) -> list[Document]:
    """All nodes; `state` is `up` while the lease is valid."""
    return [documents.node(row, tx.now) for row in nodes.list_(tx)]
