"""All roles and pools under the supervisor: started, watched, restarted when dead, killed when silent.

Depends on nothing that can break (law 5): no store, no network, no user code, no threads.
"""

from __future__ import annotations

import itertools
import socket
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from workerd import log
from workerd.config.handler_config import PoolConfig
from workerd.config.model import Config
from workerd.messages import Beat, DeadPool, LivePool, QuarantinedPool, Report, RoleLife, Roster
from workerd.metrics.series import SeriesSums
from workerd.runtime.cgroup import Delegation
from workerd.runtime.child import CRASH_LOOP_EXIT_STATUS, CrashLoopPolicy
from workerd.runtime.loop import Loop
from workerd.runtime.paths import RoleContext, pool_instance
from workerd.runtime.reaper import OrphanReaper
from workerd.supervisor.live_logs import LiveLogs
from workerd.supervisor.sealed_config import unseal
from workerd.supervisor.supervised_child import ChildState, Main, SupervisedChild

START_PATIENCE_FACTOR = 4
"""How many times as long as later a child may be silent while it starts: imports are slow on a full machine,
and one that is killed begins them anew."""
PROVEN_AFTER_S = 10.0
"""A child that is up for so long (at least `restart.period`) has its former deaths forgotten."""
MAX_DEAD_IN_ROSTER = 100
"""Deaths of a pool that the Roster names; older claims were settled long ago."""
MAX_DEAD_ROLES_IN_ROSTER = 10
"""Dead lives of roles that it names, whose last words may not be read yet."""
POOL_PREFIX = "pool:"
FORK_RETRY_S = 1.0
CGROUP_RETRY_S = 0.1
MAX_CGROUP_TRIES = 100
"""How often it is tried to remove the control group of a removed pool while its processes are dying."""
BEAT_REQUEST_TIMEOUT_S = 0.3
"""For numbers that are shown: older ones are better than none."""

RoleMain = Callable[[RoleContext], int]
PoolMain = Callable[[RoleContext, str, int], int]


@dataclass(frozen=True)
class Mains:
    """What the children run; `roles` in the order in which they are started."""

    roles: dict[str, RoleMain]
    pool: PoolMain


@dataclass
class _BeatRequest:
    missing: set[str]
    on_done: Callable[[set[str]], None]


class Children:
    """The supervisor's children by name.

    `former`: generations of pools that another one has replaced, as long as their runs go on.
    `config` has no store section: only roles get it, from the descriptor `sealed`. `lock`: a descriptor
    that every child inherits. `delegation`: where pools have their control groups. `draining`: the node
    is shutting down, dead pools are not restarted. `on_change` is called after a child changed its state,
    `on_fatal` with the exit status and the sentence of a child that cannot work on this node.
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
        delegation: Delegation | None,
        on_change: Callable[[], None],
        on_fatal: Callable[[int, str], None],
    ) -> None:
        self.config = config
        self.sealed = sealed
        self.roles: dict[str, SupervisedChild] = {}
        self.pools: dict[str, SupervisedChild] = {}
        self.former: list[SupervisedChild] = []
        self.draining = False
        self._store_was_used = False
        self._store_changed = False
        self._loop = loop
        self._mains = mains
        self._incarnation = incarnation
        self._lock = lock
        self._delegation = delegation
        self._on_change = on_change
        self._on_fatal = on_fatal
        self._checked_at = 0.0
        self._lives = itertools.count(1)
        self._tokens = itertools.count(1)
        self.counted = SeriesSums()
        self._beat_requests: dict[int, _BeatRequest] = {}
        self._quarantined: dict[str, QuarantinedPool] = {}
        self._dead: dict[str, deque[DeadPool]] = defaultdict(lambda: deque(maxlen=MAX_DEAD_IN_ROSTER))
        self._dead_roles: deque[RoleLife] = deque(maxlen=MAX_DEAD_ROLES_IN_ROSTER)
        self._log = log.get_logger("supervisor")
        self.live_logs = LiveLogs(loop, self.pools.values)
        self.orphan_reaper = OrphanReaper(loop, lambda: {child.pid for child in self if child.alive})

    def __iter__(self) -> Iterator[SupervisedChild]:
        """Every child, roles first."""
        yield from self.roles.values()
        yield from self.all_pools()

    def all_pools(self) -> Iterator[SupervisedChild]:
        """Every pool, with the former generations."""
        yield from self.pools.values()
        yield from self.former

    def start(self, *, pools: bool = True) -> None:
        """Fork every role and pool, and begin to watch them; without `pools`, only what settles."""
        for name in self._mains.roles:
            if name != "gateway" or (self.config.gateway.listen and pools):
                self.add_role(name)
        for pool in self.config.pools.values() if pools else ():
            self.add_pool(pool)
        self._checked_at = time.monotonic()
        self._loop.call_later(self._check_interval_s, self._check_progress)

    def use_store(self, sealed: int, *, changed: bool) -> None:
        """Give the roles that start from now on this store section; `changed`: another one than before."""
        self.sealed = sealed
        self._store_changed |= changed

    # -- starting

    def add_role(self, name: str) -> SupervisedChild:
        """Add a role and start it."""
        main = self._mains.roles[name]
        if name == "dispatcher" and self._store_changed:
            self._store_was_used = self._store_changed = False

        def run(control: socket.socket, life: int) -> int:
            config = unseal(self.sealed, self.config)
            used = self._store_was_used
            return main(RoleContext(config, self._incarnation, control, life, store_was_used=used))

        child = self.roles[name] = self._make(name, run, CrashLoopPolicy())
        self._start(child)
        return child

    def add_pool(self, pool: PoolConfig, generation: int = 1) -> SupervisedChild:
        """Add a pool and start it."""

        def run(control: socket.socket, life: int) -> int:
            context = RoleContext(self.config, self._incarnation, control, life, generation)
            return self._mains.pool(context, pool.name, life)

        child = self.pools[pool.name] = self._make(
            POOL_PREFIX + pool.name,
            run,
            CrashLoopPolicy(pool.restart),
            pool=pool.name,
            generation=generation,
            load_timeout=pool.load_timeout,
        )
        self._start(child)
        return child

    def replace_pool(self, pool: PoolConfig) -> SupervisedChild:
        """Start a new generation of a pool; the present one becomes a former one and runs on."""
        old = self.set_aside(pool.name)
        return self.add_pool(pool, old.generation + 1)

    def set_aside(self, name: str) -> SupervisedChild:
        """Make the present generation of a pool a former one, which is not restarted when it dies."""
        old = self.pools.pop(name)
        old.name = f"{POOL_PREFIX}{old.pool}\N{MIDDLE DOT}{old.generation}"
        self.former.append(old)
        return old

    def _make(
        self,
        name: str,
        main: Main,
        crash_loop: CrashLoopPolicy,
        *,
        pool: str = "",
        generation: int = 1,
        load_timeout: float = 0.0,
    ) -> SupervisedChild:
        watchdog = self.config.supervisor.watchdog
        return SupervisedChild(
            self._loop,
            name,
            main,
            pool=pool,
            generation=generation,
            silence_s=watchdog,
            start_silence_s=watchdog * START_PATIENCE_FACTOR + load_timeout,
            crash_loop=crash_loop,
            on_change=self._on_change,
            on_death=self._on_death,
            on_beat=self._on_beat,
            on_log=self.live_logs.on_log,
        )

    def _start(self, child: SupervisedChild) -> None:
        keep = (self._lock,) if child.pool else (self._lock, self.sealed)
        try:
            child.start(next(self._lives), keep)
        except OSError as error:
            child.trouble = f"{child.name} cannot be forked: {error.strerror}"
            self._log.error(
                "child.fork_failed", child=child.name, error=str(error), restart_in_s=FORK_RETRY_S
            )
            child.restart_later(FORK_RETRY_S, self._start)
            return
        self._log.debug("child.started", child=child.name, pid=child.pid)
        self.send_roster()

    def retry_pool(self, name: str) -> SupervisedChild:
        """Start a quarantined pool now, not at the end of its pause; it stays quarantined until it works."""
        pool = self.pools[name]
        if not pool.alive:
            self._start(pool)
        return pool

    @property
    def quarantined(self) -> set[str]:
        """Pools that died too often and are not up."""
        return {
            name
            for name, pool in self.pools.items()
            if pool.crash_loop.exceeded and pool.state is not ChildState.UP
        }

    # -- removing

    def remove_pool(self, name: str) -> None:
        """Forget a pool that has ended and is no longer configured, and remove its control group."""
        pool = self.pools.pop(name, None)
        self.send_roster()
        if pool is not None:
            self._remove_cgroup(pool_instance(name, pool.generation), MAX_CGROUP_TRIES)

    def _remove_cgroup(self, instance: str, tries: int) -> None:
        # A reload may have added the pool again; then the group is the new one's.
        used = {pool_instance(pool.pool, pool.generation) for pool in self.all_pools()}
        if instance in used or self._delegation is None or self._delegation.kill_pool(instance):
            return
        if tries:
            self._loop.call_later(CGROUP_RETRY_S, lambda: self._remove_cgroup(instance, tries - 1))
        else:
            self._log.warning("cgroup.not_removed", pool=instance)

    # -- deaths

    def _on_death(self, child: SupervisedChild, status: int) -> None:
        self._record_death(child)
        self.orphan_reaper.sweep()
        self._leave_dead(child, status)
        # Last: the requester of Beats may start the child again.
        for token in list(self._beat_requests):
            self._answered(token, child)

    def _leave_dead(self, child: SupervisedChild, status: int) -> None:
        """Move a dead child to what follows: forgotten, or started again after a pause."""
        if child.state is ChildState.STOPPING:
            if child.was_killed_by_us(status):
                self._log.warning(
                    "child.exited", child=child.name, exit_status=status, death=child.last_death
                )
            child.move(ChildState.EMPTY)
            self._forget_former(child)
            self.send_roster()
            return
        was_quarantined = child.crash_loop.exceeded
        pause = child.crash_loop.record_death(
            child.started_at,
            time.monotonic(),
            crash_loop=status == CRASH_LOOP_EXIT_STATUS,
            blameless=child.was_killed_at_work(status),
        )
        restarts = not (child.pool and (self.draining or child in self.former))
        self._log.warning(
            "child.exited",
            child=child.name,
            exit_status=status,
            death=child.last_death,
            error=child.trouble if child.trouble != child.last_death else None,
            restart_in_s=round(pause, 1) if restarts else None,
        )
        if not restarts:
            child.move(ChildState.EMPTY)
            self._forget_former(child)
        elif child.crash_loop.exceeded:
            child.move(ChildState.QUARANTINED)
            if not was_quarantined:
                self._quarantined[child.pool] = QuarantinedPool(child.pool, child.life, child.trouble)
                self._log.error("pool.quarantined", pool=child.pool, error=child.trouble)
        else:
            child.move(ChildState.BACKOFF)
        self.send_roster()
        if restarts:
            child.restart_later(pause, self._start)

    def _forget_former(self, child: SupervisedChild) -> None:
        if child in self.former:
            self.former.remove(child)
            self._remove_cgroup(pool_instance(child.pool, child.generation), MAX_CGROUP_TRIES)

    def _record_death(self, child: SupervisedChild) -> None:
        if not child.pool:
            self._dead_roles.append(_life_of(child))
            return
        pool = self.config.pools.get(child.pool)
        handlers = tuple(handler.name for handler in pool.handlers) if pool is not None else ()
        self._dead[child.pool].append(
            DeadPool(child.pool, child.generation, child.life, child.last_pid, handlers, time.monotonic_ns())
        )

    def send_roster(self) -> None:
        """Send every role which pools live and which died."""
        roster = Roster(
            pools=tuple(
                LivePool(pool.pool, pool.generation, pool.life, pool.pid)
                for pool in self.all_pools()
                if pool.alive
            ),
            dead=tuple(dead for deaths in self._dead.values() for dead in deaths),
            roles=(*self._dead_roles, *(_life_of(role) for role in self.roles.values() if role.alive)),
            quarantined=tuple(
                self._quarantined[name] for name in sorted(self.quarantined & self._quarantined.keys())
            ),
        )
        for role in self.roles.values():
            role.send(roster)

    # -- watching

    @property
    def _check_interval_s(self) -> float:
        return min(1.0, self.config.supervisor.watchdog / 10)

    def _check_progress(self) -> None:
        # First, as the loop goes on after an error here.
        self._loop.call_later(self._check_interval_s, self._check_progress)
        now = time.monotonic()
        watchdog = self.config.supervisor.watchdog
        lateness = max(0.0, now - self._checked_at - self._check_interval_s)
        if lateness > watchdog / 2:
            # It was this process that stood still; what the children sent meanwhile is not read yet.
            for child in self:
                child.excuse()
        self._checked_at = now
        for child in self:
            child.watch(lateness)
            if child.overdue(now):
                child.kill(f"made no progress for {child.silence_limit_s:g} s")
            elif child.state is ChildState.UP:
                restart = child.crash_loop.restart
                if now - child.started_at > max(PROVEN_AFTER_S, restart.period if restart else 0):
                    child.crash_loop.reset()

    def _on_beat(self, child: SupervisedChild, beat: Beat) -> None:
        self.counted.add(beat.counted)
        if child.name == "dispatcher" and beat.state == "up":
            self._store_was_used = True
        if beat.fatal and child.state is not ChildState.STOPPING:
            self._on_fatal(beat.fatal, beat.trouble)
        if beat.token:
            self._answered(beat.token, child)

    @property
    def running_jobs(self) -> int:
        """Jobs that ran at the last Beats of their pools."""
        return sum(
            bool(worker.get("job"))
            for pool in self.all_pools()
            if pool.alive
            for worker in pool.last_beat.info.get("workers") or ()
        )

    @property
    def progressing(self) -> bool:
        """Whether no child is overdue: what the service manager's watchdog is fed with."""
        now = time.monotonic()
        return not any(child.overdue(now) for child in self)

    @property
    def roles_are_up(self) -> bool:
        return all(role.state is ChildState.UP for role in self.roles.values())

    @property
    def settled(self) -> bool:
        """Whether every role is up and every pool is up or quarantined, also while it is tried again."""
        return self.roles_are_up and all(
            pool.state is ChildState.UP or pool.crash_loop.exceeded for pool in self.pools.values()
        )

    # -- fresh numbers

    def request_beats(
        self,
        on_done: Callable[[set[str]], None],
        *,
        timeout_s: float = BEAT_REQUEST_TIMEOUT_S,
        pools_only: bool = False,
    ) -> None:
        """Ask every child for a Beat; call `on_done` when all came, or in `timeout_s` at the latest.

        It gets the names of those that did not answer.
        """
        token = next(self._tokens)
        children = [child for child in self if child.alive and (child.pool or not pools_only)]
        self._beat_requests[token] = _BeatRequest({child.name for child in children}, on_done)
        for child in children:
            child.send(Report(token=token))
        self._loop.call_later(timeout_s, lambda: self._finish(token))
        if not children:
            self._finish(token)

    def _answered(self, token: int, child: SupervisedChild) -> None:
        request = self._beat_requests.get(token)
        if request is not None:
            request.missing.discard(child.name)
            if not request.missing:
                self._finish(token)

    def _finish(self, token: int) -> None:
        request = self._beat_requests.pop(token, None)
        if request is not None:
            request.on_done(request.missing)


def _life_of(role: SupervisedChild) -> RoleLife:
    return RoleLife(role.name, role.life, role.last_pid)
