"""What this node publishes of each handler for the store's figures: its workers, and what came and ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from workerd.config.handler_config import PoolConfig
from workerd.dispatcher.lease import Lease
from workerd.messages import Throughput
from workerd.runtime.loop import Loop, Timer
from workerd.store.nodes import HandlerFigures

FORGET_AFTER_S = 60.0
"""Figures of a replaced ingester expire after this."""


class NodeFigures:
    """Publishes, with the node's lease, the workers of connected pools and what the ingester recorded.

    `pools`: those of the configuration; `takes_jobs`: whether this node claims any.
    """

    def __init__(
        self, loop: Loop, lease: Lease, pools: Mapping[str, PoolConfig], *, takes_jobs: bool
    ) -> None:
        self._loop = loop
        self._lease = lease
        self._pools = pools if takes_jobs else {}
        self._workers: dict[str, int] = {}
        self._throughput: Mapping[str, tuple[int, int]] = {}
        self._timer: Timer | None = None

    def on_pools(self, connected: Iterable[str]) -> None:
        """These pools are connected."""
        pools = [self._pools[name] for name in set(connected) if name in self._pools]
        self._workers = {handler.name: pool.workers for pool in pools for handler in pool.handlers}
        self._publish()

    def on_throughput(self, throughput: Throughput) -> None:
        """The ingester recorded this within the last minute."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(FORGET_AFTER_S, self._forget)
        self._throughput = throughput.handlers
        self._publish()

    def _forget(self) -> None:
        self._timer = None
        self._throughput = {}
        self._publish()

    def _publish(self) -> None:
        figures = {}
        for name in sorted(self._workers.keys() | self._throughput.keys()):
            came, ended = self._throughput.get(name, (0, 0))
            figures[name] = HandlerFigures(self._workers.get(name, 0), came, ended)
        self._lease.publish(msgspec.structs.replace(self._lease.published, handlers=figures))
