"""Shutdown: senders stop before receivers (law 10), each phase with its limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from workerd import log
from workerd.messages import Drain, Stop
from workerd.runtime.loop import Loop
from workerd.supervisor.children import Children
from workerd.supervisor.supervised_child import ChildState

KILL_AFTER_S = 10.0
"""How long beyond the drain a child may take to hand over what it has."""
POLL_INTERVAL_S = 0.01


UNLIMITED_S = 366 * 86400.0
"""What a superseded daemon has for its runs, unless `reload.overlap` says less."""


class Shutdown:
    """Ends all children; calls `on_done` when none is left.

    `superseded`: another generation of the daemon serves. Then there is no hurry: runs are not asked to stop,
    and the spool is written to the store before the end. The gateway goes first, whose address the other has.

    1. Claiming stops: the dispatcher drains, and renews the lease until the last pool is gone.
    2. The gateway takes nothing new, and says so; it answers everything else.
    3. Pools end: they release what waits, finish what runs, hand over every outcome. Then the gateway.
    4. The dispatcher settles what is left and ends.
    5. The ingester writes or spools everything and ends.
    """

    def __init__(
        self,
        loop: Loop,
        children: Children,
        drain_s: float,
        on_done: Callable[[], None],
        *,
        superseded: bool = False,
    ) -> None:
        self._superseded = superseded
        self._loop = loop
        self._children = children
        self._drain_s = drain_s
        self._on_done = on_done
        self._log = log.get_logger("supervisor")

    def start(self) -> None:
        """Begin; the loop carries it on."""
        self._log.info("node.draining", drain_s=self._drain_s)
        self._loop.run_steps(self._run(), POLL_INTERVAL_S)

    def hasten(self, drain_s: float = 0.0) -> None:
        """Wait for running jobs for no longer than that: then they are killed and recorded as interrupted."""
        self._superseded = False
        self._drain_s = drain_s
        for pool in list(self._children.all_pools()):
            if pool.alive:
                pool.stop(Drain(seconds=drain_s), drain_s + KILL_AFTER_S)

    def _run(self) -> Iterator[None]:
        children, drain = self._children, Drain(seconds=self._drain_s, overlap=self._superseded)
        children.draining = True
        if self._superseded:
            self._stop_role("gateway")
        for pool in list(children.all_pools()):
            pool.stop(drain, self._drain_s + KILL_AFTER_S)
        for name, role in children.roles.items():
            if name != "ingester" and role.state is not ChildState.STOPPING:
                role.send(drain)
                role.greeting = drain  # it is needed until the end, so it is restarted if it dies
        yield from self._wait_for_all_but(*children.roles)
        while self._superseded and self._has_spooled():
            yield
        self._stop_role("gateway")
        yield from self._wait_for_all_but("dispatcher", "ingester")
        self._stop_role("dispatcher")
        yield from self._wait_for_all_but("ingester")
        self._stop_role("ingester")
        yield from self._wait_for_all_but()
        children.orphan_reaper.sweep_once()
        self._on_done()

    def _has_spooled(self) -> bool:
        ingester = self._children.roles["ingester"]
        spool = ingester.last_beat.info.get("spool") or {}
        return bool(not ingester.alive or ingester.state is not ChildState.UP or spool.get("rows"))

    def _stop_role(self, name: str) -> None:
        role = self._children.roles.get(name)
        if role is not None:
            role.stop(Stop(), KILL_AFTER_S)

    def _wait_for_all_but(self, *needed: str) -> Iterator[None]:
        while any(c.state is not ChildState.EMPTY for c in self._children if c.name not in needed):
            yield
