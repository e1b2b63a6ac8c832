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


class Rules(Protocol):
    """Says what is redacted."""

    def of(self, tx: Tx, handler: str) -> Redaction:
        """What is redacted in jobs of this handler."""

    def of_workflow(self, tx: Tx, workflow: str, handlers: Iterable[str]) -> Redaction:
        """What is redacted in a request of this workflow, which has jobs of these handlers, too."""


class Unredacted:
    """Everything is shown: to a program with the store's password, or to an operator who asks for it."""

    def of(self, tx: Tx, handler: str) -> Redaction:
        """Nothing."""
        return NOTHING

    def of_workflow(self, tx: Tx, workflow: str, handlers: Iterable[str]) -> Redaction:
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

    def of_workflow(self, tx: Tx, workflow: str, handlers: Iterable[str]) -> Redaction:
        """What is redacted in a request of this workflow, which has jobs of these handlers, too."""
        flow = self._config.workflows.get(workflow)
        names = {*handlers, *(job.handler for job in (flow.jobs if flow is not None else ()))}
        paths = [path for name in sorted(names) for path in self.of(tx, name).paths]
        return Redaction(paths) if paths else self._defaults

    def _signatures(self, tx: Tx) -> Mapping[str, tuple[str, ...]]:
        if time.monotonic() >= self._until:
            self._stored = {
                name: redaction_of(signature).paths for name, signature in handlers.redacting(tx).items()
            }
            self._until = time.monotonic() + self.TTL_S
        return self._stored
