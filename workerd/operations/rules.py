"""What of each handler's jobs is not shown: by the configuration, and by the stored signatures."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Protocol

from workerd.config.model import Config
from workerd.redaction import NOTHING, Redaction
from workerd.signature import redaction_of
from workerd.store import handlers
from workerd.store.base import Tx
from workerd.workflow import graph_of


class Rules(Protocol):
    """Says what is redacted."""

    def of(self, tx: Tx, handler: str) -> Redaction:
        """What is redacted in jobs of this handler."""

    def of_request(self, tx: Tx, handlers: Iterable[str] | None) -> Redaction:
        """What is redacted in a request with jobs of these handlers; None if they are not known."""


class Unredacted:
    """Everything is shown: to a program with the store's password, or to an operator who asks for it."""

    def of(self, tx: Tx, handler: str) -> Redaction:
        """Nothing."""
        return NOTHING

    def of_request(self, tx: Tx, handlers: Iterable[str] | None) -> Redaction:
        """Nothing."""
        return NOTHING


UNREDACTED = Unredacted()


class HandlerRules:
    """The rules of all handlers; those of the stored signatures are read again after TTL_S."""

    TTL_S = 1.0

    def __init__(self, config: Config) -> None:
        self._config = config
        self._defaults = Redaction(config.redact)
        self._stored: Mapping[str, tuple[str, ...]] = {}
        self._of_all: Redaction | None = None
        self._until = 0.0

    def of(self, tx: Tx, handler: str) -> Redaction:
        """What is redacted in jobs of this handler."""
        return self._of(handler, self._signatures(tx).get(handler, ()))

    def _of(self, handler: str, stored: tuple[str, ...]) -> Redaction:
        own = self._config.handlers.get(handler)
        if not stored and (own is None or not own.redact):
            return self._defaults
        return Redaction((*self._config.redact, *(own.redact if own is not None else ()), *stored))

    def recent(self, handler: str) -> Redaction | None:
        """The same without the store; None if that must be asked again."""
        return None if time.monotonic() >= self._until else self._of(handler, self._stored.get(handler, ()))

    def of_request(self, tx: Tx, handlers: Iterable[str] | None) -> Redaction:
        """What is redacted in a request with jobs of these handlers.

        If they are not known (None): what any handler redacts, as one of them may be its.
        """
        stored = self._signatures(tx)
        if handlers is not None:
            return self._union(handlers)
        if self._of_all is None:
            self._of_all = self._union({*self._config.handlers, *stored})
        return self._of_all

    def of_workflow(self, tx: Tx, workflow: str) -> Redaction:
        """What is redacted in requests of this workflow."""
        flow = self._config.workflows.get(workflow)
        return self.of_request(tx, [job.handler for job in graph_of(flow).all_jobs] if flow else None)

    def _union(self, handlers: Iterable[str]) -> Redaction:
        names = sorted(set(handlers))
        paths = [path for name in names for path in self._of(name, self._stored.get(name, ())).paths]
        return Redaction(paths) if paths else self._defaults

    def _signatures(self, tx: Tx) -> Mapping[str, tuple[str, ...]]:
        if time.monotonic() >= self._until:
            self._stored = {
                name: redaction_of(signature).paths for name, signature in handlers.redacting(tx).items()
            }
            self._of_all = None
            self._until = time.monotonic() + self.TTL_S
        return self._stored
