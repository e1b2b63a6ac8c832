"""The store of a chaos run: killed now and then, and watched for outages."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.galera import Galera
from tests.support.servers import DURABLE, DatabaseServer

STALL = 0.25
"""Seconds; a plain INSERT that takes longer counts as an outage, whatever the cause."""


class Absences:
    """Outages of the store, as seen without workerd; monotonic seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[object, float] = {}
        self._over: list[tuple[float, float]] = []

    @contextlib.contextmanager
    def known(self) -> Iterator[None]:
        """The store is down while the block runs."""
        mark, began = object(), time.monotonic()
        with self._lock:
            self._open[mark] = began
        try:
            yield
        finally:
            with self._lock:
                del self._open[mark]
                self._over.append((began, time.monotonic()))

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """The block is one short statement: if it is slow or fails, that is an outage."""
        began = time.monotonic()
        failed = True
        try:
            yield
            failed = False
        finally:
            end = time.monotonic()
            if failed or end - began > STALL:
                with self._lock:
                    self._over.append((began, end))

    def met(self, began: float, end: float) -> bool:
        """Whether an outage overlaps this span."""
        with self._lock:
            spans = [*self._over, *((since, end) for since in self._open.values())]
        return any(a < end and b > began for a, b in spans)


class Target:
    """The store under test; `kill` and `revive` one server of it."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.server: DatabaseServer | None = None
        self.galera: Galera | None = None
        if kind == "sqlite":
            self.urls = [f"sqlite:///{folder}/store.db"]
        elif kind == "mariadb":
            self.server = DatabaseServer(DURABLE).start()
            self.urls = [self.server.url(self.server.new_database())]
        else:
            self.galera = Galera(3).start()
            self.urls = self.galera.urls("chaos")

    def kill(self, chance: random.Random) -> None:
        """Kill a server of the store, if it is one."""
        if self.server is not None:
            self.server.kill9()
        if self.galera is not None:
            self.galera.kill9(chance.randrange(1, 3))  # the first node stays, for plain SQL

    def revive(self) -> None:
        """Restart the killed server."""
        if self.server is not None:
            self.server.start()
        if self.galera is not None:
            self.galera.restart_killed()

    def remove(self) -> None:
        """Stop all servers and remove their files."""
        if self.server is not None:
            self.server.remove()
        if self.galera is not None:
            self.galera.remove()
