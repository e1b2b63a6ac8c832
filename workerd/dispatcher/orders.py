"""What people ask for: cancels of this node's claims, and paused handlers; read at every poll."""

from __future__ import annotations

import time
from collections.abc import Callable

from workerd.dispatcher.agenda import Duty, jittered
from workerd.dispatcher.contact import Contact
from workerd.dispatcher.pools import PoolLink, Pools
from workerd.job import Key
from workerd.messages import Cancel, GiveBack
from workerd.store import handlers, jobs
from workerd.store.connection import Tx

REPEAT = 5.0
"""Seconds after which a cancel that was not obeyed is sent again: its claim may have been on its way."""


class Orders(Duty):
    """Passes cancels and pauses on to the pools. Which pool holds a claim is not kept: all are told."""

    name = "orders"

    def __init__(
        self,
        contact: Contact,
        pools: Pools,
        incarnation: bytes,
        handlers: tuple[str, ...],
        poll: float,
        on_paused: Callable[[frozenset[str]], None],
    ) -> None:
        super().__init__()
        self._contact = contact
        self._pools = pools
        self._incarnation = incarnation
        self._handlers = handlers
        self._poll = poll
        self._on_paused = on_paused
        self._told: dict[Key, float] = {}
        self.paused: frozenset[str] = frozenset()

    def on_pool_up(self, link: PoolLink) -> None:
        """A pool that connects has heard nothing yet."""
        self._told.clear()
        if self.paused:
            link.send(GiveBack(handlers=tuple(sorted(self.paused))))

    def work(self) -> float:
        """Read both in one transaction."""
        served = {name for link in self._pools.links.values() for name in link.handlers}
        names = served.union(self._handlers)
        cancels, paused = self._contact.read(lambda tx: self._read(tx, names))
        self._cancel(cancels)
        if paused != self.paused:
            new, self.paused = paused - self.paused, paused
            if new:
                self._pools.tell(GiveBack(handlers=tuple(sorted(new))))
            self._on_paused(paused)
        return jittered(self._poll)

    def _read(self, tx: Tx, names: set[str]) -> tuple[list[Key], frozenset[str]]:
        return jobs.cancel_requests(tx, self._incarnation), frozenset(handlers.paused(tx, names))

    def _cancel(self, keys: list[Key]) -> None:
        now = time.monotonic()
        self._told = {key: self._told[key] for key in keys if key in self._told}
        for key in keys:
            if now - self._told.get(key, -REPEAT) >= REPEAT:
                self._told[key] = now
                self._pools.tell(Cancel(key=key))
