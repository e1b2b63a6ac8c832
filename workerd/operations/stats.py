"""The figures of all handlers, as scalers need them."""

from __future__ import annotations

from workerd import documents
from workerd.config.model import Config
from workerd.document_types import Document
from workerd.store import handlers, stats
from workerd.store.base import Tx
from workerd.store.nodes import HandlerFigures as HandlerFigures


def read(tx: Tx, config: Config) -> Document:
    """Waiting and running jobs, workers and rates of each handler; those of configured ones may all be 0."""
    names = {row.name for row in handlers.list_(tx)} | config.handlers.keys()
    found = stats.by_handler(tx, sorted(names))
    return {
        "at": documents.moment(tx.now),
        "handlers": {name: documents.handler_stats(one, tx.now) for name, one in found.items()},
    }


def of_nodes(tx: Tx) -> dict[str, HandlerFigures]:
    """Workers of living nodes, and jobs that ended within the last minute, by handler."""
    return stats.of_nodes(tx)
