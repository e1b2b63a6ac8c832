"""Every role and pool: started, watched, restarted when it dies, killed when it hangs."""

from __future__ import annotations

import itertools
import socket
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from workerd import log
from workerd.config.model import Config, PoolConfig
from workerd.messages import Beat, DeadPool, Report, Roster
from workerd.runtime.cgroup import Delegation
from workerd.runtime.child import CRASH_LOOP_EXIT_STATUS, CrashLoopPolicy
from workerd.runtime.loop import Loop
from workerd.runtime.paths import RoleContext
from workerd.runtime.reaper import Strangers
from workerd.supervisor.supervised_child import ChildState, Main, SupervisedChild, death_sentence

# The tree: every role and pool has a slot; who dies is restarted, who is silent is killed.
#
# Depends on nothing that can break (law 5): no store, no network, no user code, no threads.
#

PROVED = 10.0
"""Seconds that a process must be up until its former deaths are forgotten (or `restart.period`)."""
DEAD_REMEMBERED = 100
"""Deaths of a pool in the Roster; older claims than that are long settled."""
POOL_PREFIX = "pool:"
GROUP_EVERY, GROUP_TRIES = 0.1, 100
"""Seconds between two looks whether a former pool's processes are gone from its group, and how many."""

RoleMain = Callable[[RoleContext], int]
PoolMain = Callable[[RoleContext, str, int], int]


@dataclass(frozen=True)
class Mains:
    """What the children run, given by the one module that knows every role, in starting order."""

    roles: dict[str, RoleMain]
    pool: PoolMain


class Children:
    """The supervisor's children.

    `config` has no store section. `sealed` and `lock`: descriptors that store roles, and every role and
    pool, inherit. `delegation`: where the pools have their groups. `on_state`: called after any child
    changed its state. `on_fatal`: a role asked to stop the node with this exit status.
    """

    def __init__(
        self,
        loop: Loop,
        config: Config,
        mains: Mains,
        incarnation: bytes,
        *,
        sealed: int,
        lock: int,
        unseal: Callable[[int, Config], Config],
        delegation: Delegation | None,
        on_state: Callable[[], None],
        on_fatal: Callable[[int, str], None],
    ) -> None:
        self.config = config
        self.sealed = sealed
        self.roles: dict[str, SupervisedChild] = {}
        self.pools: dict[str, SupervisedChild] = {}
        self.on_start: Callable[[SupervisedChild], None] = lambda slot: None
        self.restarting = True
        self._looked = 0.0
        self._loop = loop
        self._mains = mains
        self._incarnation = incarnation
        self._lock = lock
        self._unseal = unseal
        self._delegation = delegation
        self._on_state = on_state
        self._on_fatal = on_fatal
        self._lives = itertools.count(1)
        self._tokens = itertools.count(1)
        self._waiting: dict[int, tuple[set[str], Callable[[], None]]] = {}
        self._dead: dict[str, deque[DeadPool]] = defaultdict(lambda: deque(maxlen=DEAD_REMEMBERED))
        self.log = log.get_logger("supervisor")
        self.strangers = Strangers(loop, lambda: {slot.pid for slot in self.slots() if slot.pid})

    def slots(self) -> Iterator[SupervisedChild]:
        """Every slot, roles first."""
        yield from self.roles.values()
        yield from self.pools.values()

    def start(self) -> None:
        """Fork every role and pool, and begin to watch them."""
        for name in self._mains.roles:
            if name != "gateway" or self.config.gateway.listen:
                self.add_role(name)
        for pool in self.config.pools.values():
            self.add_pool(pool)
        self._looked = time.monotonic()
        self._loop.call_later(self._look_every, self._look)

    # -- slots

    def add_role(self, name: str) -> None:
        """A slot for a role, started at once."""
        main = self._mains.roles[name]

        def run(control: socket.socket, life: int) -> int:
            config = self._unseal(self.sealed, self.config)
            return main(RoleContext(config, self._incarnation, control, life))

        slot = self._slot(
            name, run, CrashLoopPolicy(), keep=lambda: [self.sealed, self._lock], start_silence=0
        )
        self.roles[name] = slot
        self._start(slot)

    def add_pool(self, pool: PoolConfig) -> None:
        """A slot for a pool, started at once."""

        def run(control: socket.socket, life: int) -> int:
            return self._mains.pool(
                RoleContext(self.config, self._incarnation, control, life), pool.name, life
            )

        slot = self._slot(
            POOL_PREFIX + pool.name,
            run,
            CrashLoopPolicy(pool.restart),
            keep=lambda: [self._lock],
            start_silence=pool.load_timeout,
        )
        self.pools[pool.name] = slot
        self._start(slot)

    def _slot(
        self,
        name: str,
        main: Main,
        policy: CrashLoopPolicy,
        keep: Callable[[], list[int]],
        start_silence: float,
    ) -> SupervisedChild:
        silence = self.config.supervisor.watchdog
        return SupervisedChild(
            self._loop,
            name,
            main,
            silence=silence,
            start_silence=silence + start_silence,
            policy=policy,
            keep=keep,
            on_change=lambda slot: self._on_state(),
            on_death=self._on_death,
            on_beat=self._on_beat,
        )

    def _start(self, slot: SupervisedChild) -> None:
        slot.start(next(self._lives))
        self.log.debug("started", child=slot.name, pid=slot.pid)
        self.tell_roster()
        self.on_start(slot)

    def forget_pool(self, name: str) -> None:
        """A pool that has ended and is not configured any more: nothing of it stays."""
        self.pools.pop(name, None)
        self.tell_roster()
        self._remove_group(name, GROUP_TRIES)

    def _remove_group(self, name: str, tries: int) -> None:
        # A reload may have added the pool again; then the group is the new one's.
        if name in self.pools or self._delegation is None or self._delegation.kill_pool(name):
            return
        if tries:
            self._loop.call_later(GROUP_EVERY, lambda: self._remove_group(name, tries - 1))
        else:
            self.log.warning("the control group of a former pool could not be removed", pool=name)

    # -- deaths

    def _on_death(self, slot: SupervisedChild, status: int) -> None:
        self._note_dead_pool(slot)
        self.strangers.look()
        self._forget_asked(slot)
        if slot.state is ChildState.STOPPING:
            slot.move(ChildState.EMPTY)
            self.tell_roster()
            return
        reason, words = death_sentence(status, slot.kill_reason)
        slot.deaths[reason] += 1
        was_quarantined = slot.policy.exceeded
        pause = slot.policy.record_death(
            slot.started,
            time.monotonic(),
            crash_loop=status == CRASH_LOOP_EXIT_STATUS,
            blameless=slot.was_killed_at_work(status),
        )
        if not slot.trouble or slot.said.state not in ("starting", "failed"):
            slot.trouble = f"{slot.name} {words}"
        self.log.warning(
            f"{slot.name} {words}; "
            + (f"restarted in {pause:.1f} s" if self.restarting else "not restarted"),
            trouble=slot.trouble,
        )
        if not self.restarting and slot.name.startswith(POOL_PREFIX):
            slot.move(ChildState.EMPTY)
        elif slot.policy.exceeded:
            slot.move(ChildState.QUARANTINED)
            if not was_quarantined:
                self.log.error(f"{slot.name} is quarantined; its jobs stay new", trouble=slot.trouble)
        else:
            slot.move(ChildState.BACKOFF)
        self.tell_roster()
        if slot.state is not ChildState.EMPTY:
            slot.start_later(pause, lambda: self._start(slot))

    def _note_dead_pool(self, slot: SupervisedChild) -> None:
        if not slot.name.startswith(POOL_PREFIX):
            return
        name = slot.name.removeprefix(POOL_PREFIX)
        pool = self.config.pools.get(name)
        handlers = tuple(h.name for h in pool.handlers) if pool is not None else ()
        self._dead[name].append(DeadPool(name, slot.life, handlers, time.monotonic_ns()))

    def tell_roster(self) -> None:
        """Say to every role who lives and who died."""
        roster = Roster(
            pools={name: slot.life for name, slot in self.pools.items() if slot.child is not None},
            dead=tuple(dead for deads in self._dead.values() for dead in deads),
        )
        for slot in self.roles.values():
            slot.send(roster)

    # -- watching

    @property
    def _look_every(self) -> float:
        return min(1.0, self.config.supervisor.watchdog / 10)

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked > self.config.supervisor.watchdog / 2:
            # It was this process that stood still; what the others said meanwhile is not read yet.
            for slot in self.slots():
                slot.excuse()
        self._looked = now
        for slot in self.slots():
            if slot.overdue(now):
                slot.kill(f"made no progress for {self.config.supervisor.watchdog:g} s")
            elif slot.state is ChildState.UP and now - slot.started > max(
                PROVED, slot.policy.restart.period if slot.policy.restart else 0
            ):
                slot.policy.reset()
        self._loop.call_later(self._look_every, self._look)

    def _on_beat(self, slot: SupervisedChild, beat: Beat) -> None:
        if beat.fatal and slot.state is not ChildState.STOPPING:
            self._on_fatal(beat.fatal, beat.trouble)
        if beat.token:
            self._answered(beat.token, slot)

    def fresh(self) -> bool:
        """Whether no child is overdue: what the service manager's watchdog is fed with."""
        now = time.monotonic()
        return not any(slot.overdue(now) for slot in self.slots())

    @property
    def roles_are_up(self) -> bool:
        """Every role is up."""
        return all(slot.state is ChildState.UP for slot in self.roles.values())

    @property
    def settled(self) -> bool:
        """Every role is up and every pool up or quarantined, also while it is tried again."""
        return self.roles_are_up and all(
            slot.state is ChildState.UP or slot.policy.exceeded for slot in self.pools.values()
        )

    # -- asking everyone for fresh numbers

    def refresh(self, then: Callable[[], None], limit: float = 0.3) -> None:
        """Ask all for a Beat and call `then` when they came, or after `limit` seconds."""
        token = next(self._tokens)
        asked = {slot.name for slot in self.slots() if slot.child is not None}
        self._waiting[token] = (asked, then)
        for slot in self.slots():
            slot.send(Report(token=token))
        self._loop.call_later(limit, lambda: self._finish(token))
        if not asked:
            self._finish(token)

    def _answered(self, token: int, slot: SupervisedChild) -> None:
        if token in self._waiting:
            self._waiting[token][0].discard(slot.name)
            if not self._waiting[token][0]:
                self._finish(token)

    def _forget_asked(self, slot: SupervisedChild) -> None:
        for token in list(self._waiting):
            self._answered(token, slot)

    def _finish(self, token: int) -> None:
        waiting = self._waiting.pop(token, None)
        if waiting is not None:
            waiting[1]()

    # -- ending

    def stop(self, slot: SupervisedChild, message: msgspec.Struct, limit: float) -> None:
        """Tell a child to end with `message`; it is killed after `limit` seconds. It is not restarted."""
        if slot.child is None:
            slot.retire()
            return
        if slot.state is not ChildState.STOPPING:
            slot.move(ChildState.STOPPING)
        slot.send(message)
        life = slot.life
        self._loop.call_later(
            limit, lambda: slot.kill(f"did not end within {limit:g} s") if slot.life == life else None
        )
