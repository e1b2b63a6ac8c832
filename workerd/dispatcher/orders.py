"""What people ask for: cancels of this node's claims, and paused handlers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Set

from workerd.dispatcher.pools import PoolLink, Pools
from workerd.job import Key
from workerd.messages import Cancel, GiveBack

REPEAT = 5.0
"""Seconds after which a cancel that was not obeyed is sent again: its claim may have been on its way."""


class Orders:
    """Passes cancels and pauses on to the pools. Which pool holds a claim is not kept: all are told."""

    def __init__(
        self, pools: Pools, handlers: Iterable[str], on_paused: Callable[[frozenset[str]], None]
    ) -> None:
        self._pools = pools
        self._handlers = frozenset(handlers)
        self._on_paused = on_paused
        self._told: dict[Key, float] = {}
        self.paused: frozenset[str] = frozenset()

    def on_pool_up(self, link: PoolLink) -> None:
        """A pool that connects has heard nothing yet."""
        self._told.clear()
        if self.paused:
            link.send(GiveBack(handlers=tuple(sorted(self.paused))))

    def heard(self, cancels: list[Key], paused: Set[str]) -> None:
        """What the store says now."""
        self._cancel(cancels)
        served = {name for link in self._pools.links.values() for name in link.handlers}
        ours = paused & (served | self._handlers)
        if ours != self.paused:
            new, self.paused = ours - self.paused, frozenset(ours)
            if new:
                self._pools.tell(GiveBack(handlers=tuple(sorted(new))))
            self._on_paused(self.paused)

    def _cancel(self, keys: list[Key]) -> None:
        now = time.monotonic()
        self._told = {key: self._told[key] for key in keys if key in self._told}
        for key in keys:
            if now - self._told.get(key, -REPEAT) >= REPEAT:
                self._told[key] = now
                self._pools.tell(Cancel(key=key))
