"""Shutdown: senders stop before receivers (law 10), each phase with its limit."""

from __future__ import annotations

from collections.abc import Callable

from workerd import log
from workerd.messages import Drain, Stop
from workerd.runtime.loop import Loop
from workerd.supervisor.children import POOL_PREFIX, Children
from workerd.supervisor.supervised_child import ChildState, SupervisedChild

KILL_AFTER = 10.0
"""Seconds beyond the drain that a child gets for its last words."""
LOOK_EVERY = 0.01


class Shutdown:
    """The phases of an ordered end, in this order:

    1. claiming stops: the dispatcher drains, and renews the lease until the last pool is gone;
    2. gateway and pools end: pools give back what waits, finish what runs, hand over every outcome;
    3. the dispatcher settles what is left and ends;
    4. the ingester writes or spools everything and ends.
    """

    def __init__(self, loop: Loop, tree: Children, drain: float, done: Callable[[], None]) -> None:
        self._loop = loop
        self._tree = tree
        self._drain = drain
        self._done = done
        self._phases = [self._stop_dispatcher, self._stop_ingester]
        self._log = log.get_logger("supervisor")

    def begin(self) -> None:
        """Phase 1 and 2; the others follow as their children end."""
        self._log.info("draining", limit=f"{self._drain:g} s")
        self._tree.restarting = False
        # A dispatcher or ingester that dies now is restarted, for they are needed to the end.
        self._tree.on_start = self._tell_restarted
        for slot in self._tree.pools.values():
            self._tree.stop(slot, Drain(seconds=self._drain), self._drain + KILL_AFTER)
        for name, slot in self._tree.roles.items():
            if name == "dispatcher":
                slot.send(Drain(seconds=self._drain))
            elif name != "ingester":
                self._tree.stop(slot, Stop(), KILL_AFTER)
        self._wait()

    def hasten(self) -> None:
        """Do not wait for what runs: it is killed and recorded as interrupted."""
        self._drain = 0.0
        for slot in self._tree.pools.values():
            if slot.child is not None:
                self._tree.stop(slot, Drain(seconds=0.0), KILL_AFTER)

    def _tell_restarted(self, slot: SupervisedChild) -> None:
        if slot.name == "dispatcher":
            slot.send(Drain(seconds=self._drain))
        elif slot.name.startswith(POOL_PREFIX):
            self._tree.stop(slot, Drain(seconds=0.0), KILL_AFTER)

    def _wait(self) -> None:
        if self._phase_is_over():
            if not self._phases:
                self._tree.strangers.end_all()
                self._done()
                return
            self._phases.pop(0)()
        self._loop.call_later(LOOK_EVERY, self._wait)

    def _phase_is_over(self) -> bool:
        needed = (
            {"dispatcher", "ingester"} if len(self._phases) == 2 else {"ingester"} if self._phases else set()
        )
        return all(slot.state is ChildState.EMPTY for slot in self._tree.slots() if slot.name not in needed)

    def _stop_dispatcher(self) -> None:
        self._stop("dispatcher")

    def _stop_ingester(self) -> None:
        self._stop("ingester")

    def _stop(self, name: str) -> None:
        slot = self._tree.roles.get(name)
        if slot is not None:
            self._tree.stop(slot, Stop(), KILL_AFTER)
