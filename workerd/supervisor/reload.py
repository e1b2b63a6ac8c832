"""Reload: only what a new configuration changes is restarted, one child after the other.

A pool drains before it is started again; with `reload.overlap` its new processes take over at once, and the
old ones end when their runs have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass

from workerd.config.model import Config
from workerd.messages import Drain, Stop
from workerd.runtime.loop import Loop
from workerd.supervisor.children import POOL_PREFIX, Children
from workerd.supervisor.shutdown import KILL_AFTER_S
from workerd.supervisor.supervised_child import ChildState, SupervisedChild
from workerd.text import word

POLL_INTERVAL_S = 0.02
START_LIMIT_S = 120.0
"""How long a restarted child may take, beyond a pool's `load_timeout`, to be up before it has failed."""
TROUBLE_LIMIT_S = 5.0
"""How long it may report that it is waiting or failing before it has failed."""
ANSWER_LIMIT_S = 5.0
"""How long a pool may take to say whether its code changed: shorter than the default watchdog."""
SETTLE_S = 0.5
"""How long all restarted children must stay up at the end."""

ROLE_SECTIONS: dict[str, tuple[str, ...]] = {
    "ingester": (
        "ingester",
        "pickup",
        "limits",
        "webhooks",
        "webhook_redactions",
        "redact",
        "otel",
        "log",
        "supervisor",
    ),
    "dispatcher": (
        "dispatcher",
        "pickup",
        "retention",
        "pools",
        "workflows",
        "schedules",
        "limits",
        "groups",
        "webhooks",
        "redact",
        "log",
        "supervisor",
    ),
    "gateway": (
        "gateway",
        "ingester",
        "pools",
        "workflows",
        "schedules",
        "limits",
        "redact",
        "otel",
        "log",
        "supervisor",
    ),
}
"""The sections that each role reads; a change in one of them restarts it."""
POOL_SECTIONS = ("log", "supervisor")
"""A change in these restarts every pool."""
FIXED_SECTIONS = ("node",)
"""A running node cannot change these: its identity and its files."""


def differs(old: Config, new: Config, sections: tuple[str, ...]) -> bool:
    """Whether any of these sections changed."""
    return any(getattr(old, name) != getattr(new, name) for name in sections)


@dataclass(frozen=True)
class ReloadPlan:
    """The roles to restart, and the pools to restart, add, try again and remove, by name.

    `unknown`: pools that run on, and did not answer whether their code changed.
    """

    roles: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    retried: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    @property
    def children(self) -> list[str]:
        """The displayed names of all children that it touches."""
        pools = (*self.changed, *self.retried, *self.added, *self.removed)
        return [*self.roles, *(POOL_PREFIX + name for name in pools)]


def make_plan(
    old: Config,
    new: Config,
    roles: Iterable[str],
    *,
    store_changed: bool,
    stale: Set[str],
    unknown: Set[str] = frozenset(),
    quarantined: Set[str] = frozenset(),
) -> ReloadPlan:
    """What must be restarted, of these roles and all pools.

    `stale`: pools whose code changed on disk; `unknown`: those that did not say; `quarantined`: those that
    wait for their next try.
    """
    every_pool = differs(old, new, POOL_SECTIONS)
    kept = [name for name in new.pools if name in old.pools]
    changed = tuple(
        name for name in kept if every_pool or name in stale or old.pools[name] != new.pools[name]
    )
    return ReloadPlan(
        roles=tuple(name for name in roles if store_changed or differs(old, new, ROLE_SECTIONS[name])),
        changed=changed,
        retried=tuple(name for name in kept if name in quarantined and name not in changed),
        unknown=tuple(name for name in kept if name in unknown and name not in changed),
        added=tuple(name for name in new.pools if name not in old.pools),
        removed=tuple(name for name in old.pools if name not in new.pools),
    )


class Reload:
    """Carries a plan out with a configuration that is valid as a whole.

    A child that does not come up is reported and does not keep the others from being restarted.
    `overlap_s`: how long the runs of a replaced pool may go on beside its new processes. `on_done` gets the
    failures: child -> one sentence. It is not called when a shutdown begins meanwhile.
    """

    def __init__(
        self,
        loop: Loop,
        children: Children,
        config: Config,
        plan: ReloadPlan,
        overlap_s: float,
        on_done: Callable[[dict[str, str]], None],
    ) -> None:
        self._overlap_s = overlap_s
        self._loop = loop
        self._children = children
        self._config = config
        self._plan = plan
        self._on_done = on_done
        self._failures = {POOL_PREFIX + name: _unanswered(name) for name in plan.unknown}
        self._started: list[tuple[SupervisedChild, int]] = []  # with the life of each

    def start(self) -> None:
        """Take over the configuration and begin; the loop carries it on."""
        self._children.config = self._config
        self._loop.run_steps(self._run(), POLL_INTERVAL_S)

    def _run(self) -> Iterator[None]:
        try:
            for _ in self._steps():
                yield
                if self._children.draining:  # the shutdown ends what is there
                    return
        except Exception as error:
            # A bug: the loop logs it. Without an answer no later reload would begin.
            self._failures["supervisor"] = f"unexpected {type(error).__name__}: its log has the traceback"
            self._on_done(self._failures)
            raise
        self._on_done(self._failures)

    def _steps(self) -> Iterator[None]:
        for name in self._plan.roles:
            yield from self._restart_role(name)
        for name in self._plan.added:
            yield from self._start_pool(name)
        for name in self._plan.changed:
            if self._overlap_s and self._children.pools[name].state is ChildState.UP:
                yield from self._replace_pool(name)
                continue
            yield from self._drain_pool(name)
            yield from self._start_pool(name)
        for name in self._plan.retried:
            pool = self._children.retry_pool(name)
            yield from self._wait_up(pool, START_LIMIT_S + self._config.pools[name].load_timeout)
        for name in self._plan.removed:
            if self._overlap_s and self._children.pools[name].state is ChildState.UP:
                self._retire(self._children.set_aside(name))
                continue
            yield from self._drain_pool(name)
            self._children.remove_pool(name)
        yield from self._wait_settled()

    def _restart_role(self, name: str) -> Iterator[None]:
        role = self._children.roles.get(name)
        if role is not None:
            role.stop(Stop(), KILL_AFTER_S)
            yield from _wait_empty(role)
            del self._children.roles[name]
        if name != "gateway" or self._config.gateway.listen:
            yield from self._wait_up(self._children.add_role(name), START_LIMIT_S)

    def _start_pool(self, name: str) -> Iterator[None]:
        pool = self._config.pools[name]
        yield from self._wait_up(self._children.add_pool(pool), START_LIMIT_S + pool.load_timeout)

    def _replace_pool(self, name: str) -> Iterator[None]:
        pool, old = self._config.pools[name], self._children.pools[name]
        yield from self._wait_up(self._children.replace_pool(pool), START_LIMIT_S + pool.load_timeout)
        # Until here it has taken new jobs: imports may take a while.
        self._retire(old)

    def _retire(self, old: SupervisedChild) -> None:
        old.stop(Drain(seconds=self._overlap_s, overlap=True), self._overlap_s + KILL_AFTER_S)

    def _drain_pool(self, name: str) -> Iterator[None]:
        drain = self._config.shutdown.drain
        pool = self._children.pools[name]
        pool.stop(Drain(seconds=drain), drain + KILL_AFTER_S)
        yield from _wait_empty(pool)

    # -- waiting

    def _wait_up(self, child: SupervisedChild, limit: float) -> Iterator[None]:
        life = child.life
        self._started.append((child, life))
        now = started = healthy = time.monotonic()
        while child.state is ChildState.STARTING and child.life == life:
            now = time.monotonic()
            if child.last_beat.state not in ("waiting", "failed"):
                healthy = now
            if now - started > limit or now - healthy > TROUBLE_LIMIT_S:
                break
            yield
        if child.state is not ChildState.UP or child.life != life:
            self._failures[child.name] = (
                child.trouble or f"{child.name} is not up after {now - started:.0f} s"
            )

    def _wait_settled(self) -> Iterator[None]:
        end = time.monotonic() + SETTLE_S
        while self._started and time.monotonic() < end:
            yield
        for child, life in self._started:
            if child.life == life and child.state is ChildState.UP:
                self._failures.pop(child.name, None)  # it came up after all
            else:
                self._failures.setdefault(child.name, child.trouble or child.last_death)


def _unanswered(pool: str) -> str:
    return (
        f"it did not answer within {ANSWER_LIMIT_S:g} s whether its code changed, and runs on with what it "
        f"has loaded; `workerd restart {word(pool)}` restarts it"
    )


def _wait_empty(child: SupervisedChild) -> Iterator[None]:
    while child.state is not ChildState.EMPTY:
        yield
