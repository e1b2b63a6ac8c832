"""The node's lease: registered, renewed, given up in time, deregistered."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from workerd.clock import SECOND
from workerd.dispatcher.monitored_store import MonitoredStore
from workerd.dispatcher.settlement import Settlement
from workerd.dispatcher.tasks import TaskRunner
from workerd.errors import NodeNameTaken, StoreAway, StoreError, WrongVersion
from workerd.log import get_logger
from workerd.runtime.loop import Loop, Timer
from workerd.runtime.outcome_sender import OutcomeSender
from workerd.store import handlers, nodes, write_probe
from workerd.store.base import Tx
from workerd.store.nodes import ClockSetBack, NodeInfo, NodeRecord

GIVE_UP = 0.8
"""Part of the lease after which, unless renewed, nothing is started; the rest is for jobs in transit."""
INHERITED = 0.1
"""Part of the lease that a restarted dispatcher assumes to be left of what its predecessor renewed."""
OBSTACLE_PAUSE_S = 2.0
"""Pause after a wrong schema or a name that is taken: a person has to act first."""
MAX_UNPUBLISHED_S = 5.0
"""Until what the node says of itself is written, however long its lease is."""
DEREGISTRATION_TIMEOUT_S = 5.0
"""After which the node's row is left to the next start of this node."""

_log = get_logger("dispatcher")


class Lease:
    """Registers this incarnation, renews its lease, and probes the store while it is unavailable.

    held
        Whether work may be started.
    registered
        Whether the node's row is in the store; False again while an obstacle is there.
    obstacle
        The error that keeps this node from registering until a person acts: wrong schema, name taken.

    `served`: the handlers that this node is configured with; of all others it says that it has them no more.
    `makes_store`: an embedded store that is empty is given its tables, until it was used once.
    `on_change` is called when one of them or the availability of the store changed, `on_renewed` whenever the
    lease ends later than before.
    """

    def __init__(
        self,
        loop: Loop,
        tasks: TaskRunner,
        store: MonitoredStore,
        outcomes: OutcomeSender,
        node: NodeRecord,
        formers: list[bytes],
        lease_s: float,
        served: frozenset[str],
        on_change: Callable[[], None],
        *,
        on_renewed: Callable[[], None],
        makes_store: bool,
    ) -> None:
        self._loop = loop
        self._tasks = tasks
        self._store = store
        self._outcomes = outcomes
        self._makes_store = makes_store
        self._node = node
        self._formers = formers
        self._lease_s = lease_s
        self._served = served
        self._on_change = on_change
        self._on_renewed = on_renewed
        self._renewed_at = time.monotonic() - (GIVE_UP - INHERITED) * lease_s
        self._timer: Timer | None = None
        self._unpublished: bytes | None = None  # `info` that the node's row does not have yet
        self._announces = True
        self.registered = False
        self.ever_registered = False
        self.held = True
        self.obstacle: StoreError | NodeNameTaken | None = None

    @property
    def remaining_s(self) -> float:
        """Seconds until the lease ends as far as this process knows; negative once it has."""
        return self._renewed_at + self._lease_s - time.monotonic()

    @property
    def until_ns(self) -> int:
        """CLOCK_MONOTONIC nanoseconds until which work may be started."""
        return int(self._given_up_at * 1e9)

    @property
    def _given_up_at(self) -> float:
        return self._renewed_at + GIVE_UP * self._lease_s

    def publish(self, info: NodeInfo) -> None:
        """Write what the node says of itself with one of the next renewals."""
        if info != self._node.published:
            self._unpublished = msgspec.json.encode(info)
            self._node = msgspec.structs.replace(self._node, info=self._unpublished)
            self._tasks.wake(self.renew, MAX_UNPUBLISHED_S)

    def withdraw(self) -> None:
        """Another generation of this daemon serves: this one has schedules and handlers no more."""
        self._announces = False
        self.publish(msgspec.structs.replace(self.published, schedules=[]))

    @property
    def published(self) -> NodeInfo:
        """What the node says of itself."""
        return self._node.published

    def is_blocked(self) -> bool:
        """Whether the store is unavailable or this node not registered."""
        return not self._store.availability.available or not self.registered

    def start(self) -> None:
        """Register as soon as the store answers; from now on give the lease up in time."""
        self._set_timer()
        self._tasks.wake(self.renew)

    def renew(self) -> float | None:
        """Renew or register; seconds until the next try if it failed."""
        self.give_up_if_late()  # first of all: the process may have been stopped for long
        availability = self._store.availability
        former, was_available = availability.error, availability.available
        try:
            if not was_available or not self.registered:
                self._check_schema()
            else:
                self._store.call(self._store.store.check_server)
            self._write_lease()
        except StoreAway as error:  # StoreBusy too: a store that cannot renew the lease is no use
            self.obstacle = None
            self._store.lost(error)
            if former is None or not availability.is_as(former):
                self._on_change()
            return availability.probe_delay()
        except (WrongVersion, NodeNameTaken) as error:
            availability.restored()
            self._note_obstacle(error)
            return OBSTACLE_PAUSE_S
        self._note_renewed()
        return None

    def store_lost(self) -> None:
        """Another task found the store unavailable: probe it."""
        self.obstacle = None
        self._on_change()
        self._tasks.wake(self.renew, self._store.availability.probe_delay())

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._given_up_at, self.give_up_if_late)

    def give_up_if_late(self) -> None:
        """Give the lease up if it was not renewed in time."""
        if time.monotonic() >= self._given_up_at:
            self._give_up()

    def _give_up(self) -> None:
        if self.held:
            self.held = False
            _log.warning("lease.expired", remaining_s=round(self.remaining_s, 1))
            self._on_change()

    def _check_schema(self) -> None:
        """Before anything else: a store that was away may be another one when it is back.

        An embedded one that was there is not made anew: an empty file in its place is not that store.
        """
        store = self._store.store
        if store.embedded and self._makes_store and self._store.call(store.is_empty):
            self._store.call(store.migrate)
            _log.info("store.created", store=store.shown)
        self._store.call(store.check_server)
        self._store.call(store.check_version)
        self._store.run(write_probe.probe)
        self._store.availability.reads_answer()

    def _write_lease(self) -> None:
        asked_at = time.monotonic()
        now = None
        if self.registered:
            info = self._unpublished
            now = self._store.run(lambda tx: nodes.renew(tx, self._node.id, self._lease_s, info))
            if now is None:
                # Others may have this node's claims by now, though its own clock does not show that the lease
                # was over: that stands still while a virtual machine is suspended.
                self._give_up()
        if now is None:
            info = self._unpublished
            now, withdrawn = self._store.run(self._register)
            if withdrawn:
                _log.info("handlers.withdrawn", handlers=", ".join(withdrawn))
            # Pools announced their handlers when they loaded: the store may not have that any more.
            if self._announces:
                self._outcomes.announce_again(self._served)
        if self._unpublished is info:
            self._unpublished = None
        self._renewed_at = asked_at  # not when the answer came: the store counts from before that
        self._set_timer()
        self._note_clock(now, int(asked_at * 1e9))

    def _register(self, tx: Tx) -> tuple[int, list[str]]:
        now = nodes.register(tx, self._node, self._lease_s, former=self._formers)
        return now, handlers.withdraw(tx, self._node.name, self._served)

    def _note_clock(self, now: int, asked_ns: int) -> None:
        """Leases and durations are unaffected: monotonic clocks decide them (law 8)."""
        step_us = self._store.set_clock(now, asked_ns, time.monotonic_ns())
        if not step_us:
            return
        _log.warning("store_clock.stepped", by_s=round(step_us / SECOND, 1))
        if step_us < 0:
            stepped = ClockSetBack(now, round(-step_us / SECOND, 1))
            self.publish(msgspec.structs.replace(self.published, clock_set_back=stepped))
            self._tasks.wake(self.renew)

    def _note_renewed(self) -> None:
        restored = self._store.availability.restored()
        changed = restored or not self.registered or not self.held
        if not self.registered:
            _log.info("node.registered", node=self._node.name, lease_s=self._lease_s)
        elif not self.held:
            _log.info("lease.renewed")
        self.registered = self.ever_registered = self.held = True
        self._makes_store = False
        self.obstacle = None
        self._on_renewed()
        if changed:
            self._on_change()

    def _note_obstacle(self, error: StoreError | NodeNameTaken) -> None:
        changed = str(self.obstacle) != str(error)
        self.obstacle = error
        self.registered = False
        if changed:
            _log.error("node.refused", node=self._node.name, error=str(error))
            self._on_change()


class Deregistration:
    """The last task, after the last pool is gone: removes the node's row once no claim of it is left.

    Calls `on_end` when it is done, or after DEREGISTRATION_TIMEOUT_S.
    """

    def __init__(
        self,
        loop: Loop,
        tasks: TaskRunner,
        store: MonitoredStore,
        settlement: Settlement,
        outcomes: OutcomeSender,
        incarnation: bytes,
        on_end: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._tasks = tasks
        self._store = store
        self._settlement = settlement
        self._outcomes = outcomes
        self._incarnation = incarnation
        self._on_end = on_end
        self._begun = False

    def begin(self) -> None:
        """Every pool is gone: settle what the store still has `inprogress` for this incarnation."""
        if not self._begun:
            self._begun = True
            self._loop.call_later(DEREGISTRATION_TIMEOUT_S, self._on_end)
            self._settlement.request()

    def on_settled(self) -> None:
        """A settlement has finished; its outcomes must be committed before the row may go."""
        if self._begun:
            self._outcomes.barrier({}, lambda: self._tasks.wake(self.deregister))

    def deregister(self) -> None:
        """Remove the row unless claims are left."""
        if not self._store.run(lambda tx: nodes.remove(tx, self._incarnation)):
            _log.warning("node.kept")
        self._on_end()
