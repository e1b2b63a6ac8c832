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


class Shutdown:
    """Ends all children; calls `on_done` when none is left.

    1. Claiming stops: the dispatcher drains, and renews the lease until the last pool is gone.
    2. The gateway takes nothing new, and says so; it answers everything else.
    3. Pools end: they release what waits, finish what runs, hand over every outcome. Then the gateway.
    4. The dispatcher settles what is left and ends.
    5. The ingester writes or spools everything and ends.
    """

    def __init__(self, loop: Loop, children: Children, drain_s: float, on_done: Callable[[], None]) -> None:
        self._loop = loop
        self._children = children
        self._drain_s = drain_s
        self._on_done = on_done
        self._log = log.get_logger("supervisor")

    def start(self) -> None:
        """Begin; the loop carries it on."""
        self._log.info("node.draining", drain_s=self._drain_s)
        self._loop.run_steps(self._run(), POLL_INTERVAL_S)

    def hasten(self) -> None:
        """Do not wait for running jobs: they are killed and recorded as interrupted."""
        self._drain_s = 0.0
        for pool in list(self._children.all_pools()):
            if pool.alive:
                pool.stop(Drain(seconds=0.0), KILL_AFTER_S)

    def _run(self) -> Iterator[None]:
        children, drain = self._children, Drain(seconds=self._drain_s)
        children.draining = True
        for pool in list(children.all_pools()):
            pool.stop(drain, self._drain_s + KILL_AFTER_S)
        for name, role in children.roles.items():
            if name != "ingester":
                role.send(drain)
                role.greeting = drain  # it is needed until the end, so it is restarted if it dies
        yield from self._wait_for_all_but(*children.roles)
        self._stop_role("gateway")
        yield from self._wait_for_all_but("dispatcher", "ingester")
        self._stop_role("dispatcher")
        yield from self._wait_for_all_but("ingester")
        self._stop_role("ingester")
        yield from self._wait_for_all_but()
        children.orphan_reaper.sweep_once()
        self._on_done()

    def _stop_role(self, name: str) -> None:
        role = self._children.roles.get(name)
        if role is not None:
            role.stop(Stop(), KILL_AFTER_S)

    def _wait_for_all_but(self, *needed: str) -> Iterator[None]:
        while any(c.state is not ChildState.EMPTY for c in self._children if c.name not in needed):
            yield
