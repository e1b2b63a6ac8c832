"""Reload: restart what a new configuration changes, one after the other, each draining."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from workerd import log
from workerd.config.model import Config
from workerd.messages import Drain, Stop
from workerd.runtime.loop import Loop
from workerd.supervisor.children import POOL_PREFIX, Children
from workerd.supervisor.shutdown import KILL_AFTER
from workerd.supervisor.supervised_child import ChildState, SupervisedChild

# Reload: only what a new configuration changes is restarted, one after the other, each draining.
#
# The configuration was checked as a whole before a Reload is made. A pool whose handler code changed on
# disk counts as changed.
#

LOOK_EVERY = 0.02
START_LIMIT = 120.0
"""Seconds to wait for a restarted child to be up, or to fail, before the next one is taken."""

# Which sections a role reads; a change in one of them restarts it.
SECTIONS: dict[str, tuple[str, ...]] = {
    "ingester": ("ingester", "pickup", "log", "supervisor"),
    "dispatcher": ("dispatcher", "pickup", "retention", "pools", "workflows", "log", "supervisor"),
    "gateway": ("gateway", "ingester", "pools", "workflows", "log", "supervisor"),
}
EVERY_POOL = ("log", "supervisor")
# What a running node cannot change: its identity and its files.
FIXED = ("node",)


def differs(old: Config, new: Config, sections: tuple[str, ...]) -> bool:
    """Whether any of these sections changed."""
    return any(getattr(old, name) != getattr(new, name) for name in sections)


@dataclass(frozen=True)
class Plan:
    """The names of roles and pools to restart, to add and to remove."""

    roles: list[str]
    changed: list[str]
    added: list[str]
    removed: list[str]

    @property
    def names(self) -> list[str]:
        """What is touched, for the log and for whoever asked."""
        return [*self.roles, *(POOL_PREFIX + name for name in (*self.changed, *self.added, *self.removed))]


def plan(old: Config, new: Config, roles: Iterable[str], *, store_changed: bool, stale: set[str]) -> Plan:
    """What must be restarted, of these roles and all pools. `stale`: pools whose code changed on disk."""
    every_pool = differs(old, new, EVERY_POOL)
    return Plan(
        roles=[name for name in roles if store_changed or differs(old, new, SECTIONS[name])],
        changed=[
            name
            for name in new.pools
            if name in old.pools and (every_pool or name in stale or old.pools[name] != new.pools[name])
        ],
        added=[name for name in new.pools if name not in old.pools],
        removed=[name for name in old.pools if name not in new.pools],
    )


class Reload:
    """Carries a Plan out; `done` is called at its end."""

    def __init__(self, loop: Loop, tree: Children, new: Config, what: Plan, done: Callable[[], None]) -> None:
        self._loop = loop
        self._tree = tree
        self._new = new
        self._done = done
        self._log = log.get_logger("supervisor")
        self._steps: list[Callable[[], None]] = [
            *(lambda name=name: self._restart_role(name) for name in what.roles),
            *(lambda name=name: self._add_pool(name) for name in what.added),
            *(lambda name=name: self._restart_pool(name) for name in what.changed),
            *(lambda name=name: self._remove_pool(name) for name in what.removed),
        ]

    def begin(self) -> None:
        """Take the new configuration and go through the steps."""
        self._tree.config = self._new
        self._next()

    def _next(self) -> None:
        if not self._tree.restarting:  # a shutdown has begun: it ends what is there
            return
        if not self._steps:
            self._done()
            return
        self._steps.pop(0)()

    # -- steps

    def _restart_role(self, name: str) -> None:
        def start() -> None:
            self._tree.roles.pop(name, None)
            if name == "gateway" and not self._new.gateway.listen:
                self._next()
                return
            self._tree.add_role(name)
            self._when_up(self._tree.roles[name])

        slot = self._tree.roles.get(name)
        if slot is None:
            start()
            return
        self._tree.stop(slot, Stop(), KILL_AFTER)
        self._when_empty(slot, start)

    def _add_pool(self, name: str) -> None:
        self._tree.add_pool(self._new.pools[name])
        self._when_up(self._tree.pools[name])

    def _restart_pool(self, name: str) -> None:
        def start() -> None:
            self._tree.pools.pop(name, None)
            self._add_pool(name)

        self._drain_pool(name, start)

    def _remove_pool(self, name: str) -> None:
        def forget() -> None:
            self._tree.forget_pool(name)
            self._next()

        self._drain_pool(name, forget)

    def _drain_pool(self, name: str, then: Callable[[], None]) -> None:
        drain = self._new.shutdown.drain
        slot = self._tree.pools[name]
        self._tree.stop(slot, Drain(seconds=drain), drain + KILL_AFTER)
        self._when_empty(slot, then)

    # -- waiting

    def _when_empty(self, slot: SupervisedChild, then: Callable[[], None]) -> None:
        if slot.state is ChildState.EMPTY:
            then()
        else:
            self._loop.call_later(LOOK_EVERY, lambda: self._when_empty(slot, then))

    def _when_up(self, slot: SupervisedChild, tries: int = int(START_LIMIT / LOOK_EVERY)) -> None:
        if slot.state is ChildState.STARTING and tries > 0:
            self._loop.call_later(LOOK_EVERY, lambda: self._when_up(slot, tries - 1))
        else:
            self._next()
