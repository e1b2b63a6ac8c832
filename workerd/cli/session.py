"""The configuration and the store, opened for one command."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from workerd.config.build import load
from workerd.config.model import Config
from workerd.operations import audit
from workerd.operations.access import Store, Tx, open_checked
from workerd.operations.actor import Actor, of_command
from workerd.operations.rules import UNREDACTED, HandlerRules, Rules
from workerd.runtime.paths import Paths
from workerd.runtime.sockets import poke

T = TypeVar("T")

PAGE_ROWS = 200
"""Of a list, read in one transaction."""


@dataclass(frozen=True)
class CommandSession:
    """What one command works with: its configuration, the store, and who runs it."""

    config: Config
    store: Store

    @cached_property
    def actor(self) -> Actor:
        """The user at this host."""
        return of_command()

    @cached_property
    def rules(self) -> HandlerRules:
        """What is redacted."""
        return HandlerRules(self.config)

    def look_up(self, read: Callable[[Tx, Rules], T], target: str | None, *, reveal: bool) -> T:
        """What `read` finds, redacted by the rules that it gets; `reveal`: unredacted, which is recorded."""
        if not reveal:
            return self.read(lambda tx: read(tx, self.rules))

        def revealed(tx: Tx) -> T:
            found = read(tx, UNREDACTED)
            audit.reveal(tx, self.actor, target)
            return found

        return self.store.run(revealed)

    def revealing(self, handler: str | None, query: Mapping[str, Any]) -> Rules:
        """Rules that show everything in a list; recorded before it is read."""
        self.store.run(lambda tx: audit.reveal(tx, self.actor, handler, query))
        return UNREDACTED

    def read(self, operation: Callable[[Tx], T]) -> T:
        """Run an operation that only reads. Raises StoreError and what the operation raises."""
        return self.store.read(operation)

    def run(self, operation: Callable[[Tx], T]) -> T:
        """Run an operation in a transaction, then wake this host's dispatcher. Raises as `read`."""
        result = self.store.run(operation)
        poke(Paths(self.config.node).wake)
        return result

    def pages(
        self,
        list_: Callable[..., tuple[list[T], str | None]],
        limit: float,
        page_rows: int = PAGE_ROWS,
        **filters: Any,
    ) -> Iterator[tuple[list[T], str | None]]:
        """Pages of what `list_` finds with the filters, at most `limit` rows; each with the next cursor."""
        cursor: str | None = None
        while limit > 0:
            size = int(min(page_rows, limit))
            rows, cursor = self.read(partial(list_, **filters, limit=size, after=cursor))
            yield rows, cursor
            limit = limit - len(rows) if cursor is not None else 0


def load_config(path: Path | None) -> Config:
    """The configuration at `path`, else $WORKERD_CONFIG, else /etc/workerd. Raises ConfigError."""
    return load(path, os.environ)


@contextmanager
def open_session(path: Path | None) -> Iterator[CommandSession]:
    """A session on the store of the configuration at `path`. Raises ConfigError, StoreError."""
    config = load_config(path)
    with closing(open_checked(config)) as store:
        yield CommandSession(config, store)
