"""The dispatcher's process: its parts wired together, and what it reports."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import setproctitle

from workerd import __version__
from workerd.config.model import Config
from workerd.dispatcher.claimer import Claimer, PickupWindow
from workerd.dispatcher.lease import Contact, Lease
from workerd.dispatcher.pool_links import PoolLink
from workerd.dispatcher.recovery import Deregistration, Rescue, Settlement
from workerd.dispatcher.recurring import CronTicks, Intervals, ScheduleSync
from workerd.dispatcher.retention import Retention, Runs
from workerd.dispatcher.stager import CancelAndPause, DueRows, Poll, Wake
from workerd.dispatcher.tasks import PeriodicTask, TaskRunner
from workerd.dispatcher.workflow_tasks import RecurringWorkflows, RequestPickup, RequestSweep
from workerd.errors import StoreBusy
from workerd.log import get_logger
from workerd.messages import Demand, Hello, Holdings, LeaseState, Release, Roster, ToDispatcher
from workerd.metrics import values
from workerd.runtime.outcome_sender import OutcomeSender
from workerd.runtime.paths import RoleContext
from workerd.runtime.peer_server import PeerServer
from workerd.runtime.rate import Rate
from workerd.runtime.service import Service
from workerd.store import schedules
from workerd.store.claims import NodeIdent
from workerd.store.engines import open_store
from workerd.store.nodes import NodeRecord

APART = 0.02
"""Seconds between the looks for requests that wake-ups ask for, however many come."""


class PeriodicTasks:
    """The duties that make rows claimable or remove them; `duties` are for the agenda.

    A node that takes no work (`pickup.enabled = false`) begins none either. `claimable` is told which
    handlers got rows; `busy` says whether claims are being made.
    """

    def __init__(
        self,
        contact: Contact,
        config: Config,
        claimable: Callable[[Iterable[str]], None],
        busy: Callable[[], bool],
    ) -> None:
        workflows, pickup, poll = config.workflows, config.pickup, config.dispatcher.poll
        wanted = schedules.wanted(config)
        self._workflows = frozenset(workflows)
        self._claimable = claimable
        self._looked = 0.0
        self._pickup = RequestPickup(contact, workflows, PickupWindow(pickup.requests_new), poll, claimable)
        self._recurring = RecurringWorkflows(contact, workflows.values(), poll, claimable)
        self._chains = Intervals(contact, config, claimable)
        self.ticking = CronTicks(contact, config, self.announce)
        self.retention = Retention(contact, config.retention, busy)
        self.duties: list[PeriodicTask] = [self.retention]
        if pickup.enabled:
            self.duties += [
                ScheduleSync(contact, wanted, self._on_schedules),
                self.ticking,
                self._chains,
                self._pickup,
                self._recurring,
                RequestSweep(contact, workflows, PickupWindow(pickup.requests_inprogress), claimable),
                Runs(contact, [name for name, s in wanted.items() if s.cooler is not None]),
            ]

    def announce(self, names: Iterable[str] | None = None) -> None:
        """There are new rows of these handlers and workflows; None: of some that nobody named."""
        if names is not None:
            self._claimable(names)
        if self._workflows and (names is None or not self._workflows.isdisjoint(names)):
            delay = max(0.0, self._looked + APART - time.monotonic())
            self._looked = time.monotonic() + delay
            self._pickup.wake(delay)
            self._recurring.wake(delay)

    def _on_schedules(self) -> None:
        """A schedule was written: its chain may begin."""
        self._chains.wake()
        self._recurring.wake()


STORE_TIMEOUT = 5.0
"""Seconds; the longest that one statement may keep the dispatcher from its loop."""


def store_timeout(watchdog: float, lease: float) -> float:
    """Seconds for connecting or one statement: both together must not reach the watchdog or the lease."""
    return min(STORE_TIMEOUT, watchdog * 0.4, lease / 4)


def read_formers(path: Path, incarnation: bytes) -> list[bytes]:
    """The incarnations that this state folder has seen before this one: dead, since we hold its lock."""
    try:
        words = path.read_text().split()
    except OSError:
        return []
    ids = [bytes.fromhex(word) for word in words if len(word) == 32 and set(word) <= _HEX]
    return [former for former in ids if former != incarnation]


_HEX = frozenset("0123456789abcdef")


class Dispatcher(Service):
    """Claims, lease, due rows, ticks, settlement, rescue and retention of one node."""

    def __init__(self, ctx: RoleContext) -> None:
        super().__init__(ctx.control, ctx.watchdog)
        config = ctx.config
        lease, poll = config.dispatcher.lease, config.dispatcher.poll
        node = _record(ctx)
        formers = read_formers(ctx.paths.incarnations, ctx.incarnation)
        store = open_store(
            config.store,
            state_dir=config.node.state_dir,
            timeout=store_timeout(ctx.watchdog, lease),
            spare=True,
        )
        self._log = get_logger("dispatcher")
        self._draining = False
        self._told_held: bool | None = None
        self._was_away = False
        self._refused: dict[str, str] = {}
        self._rate = Rate()
        self.contact = Contact(store, gap=lease / 2)
        self.pools = PeerServer(
            self.loop,
            ctx.paths.dispatcher,
            process="dispatcher",
            incoming=ToDispatcher,
            peer_class=PoolLink,
            owner=self,
        )
        self.outcome_sender = OutcomeSender(
            self.loop, ctx.paths.ingester, Hello(role="dispatcher", name="dispatcher", life=ctx.life)
        )
        self.lease = Lease(self.loop, self.contact, node, formers, lease, self._on_lease)
        self.rescue = Rescue(self.contact, self.outcome_sender, ctx.incarnation, frozenset(formers), lease)
        self.settlement = Settlement(
            self.loop, self.contact, self.pools, self.outcome_sender, ctx.incarnation, self._settled
        )
        self.claimer = Claimer(
            self.contact,
            self.pools,
            self.outcome_sender,
            self.settlement,
            node=NodeIdent(id=ctx.incarnation, name=node.name),
            batch=config.dispatcher.batch,
            poll=poll,
            gate=PickupWindow(config.pickup.jobs),
            enabled=config.pickup.enabled,
        )
        self.orders = CancelAndPause(self.pools, config.handlers, self.claimer.pause)
        self.routine = PeriodicTasks(self.contact, config, self.claimer.announce, self.claimer.is_busy)
        self.due_rows = DueRows(self.contact, self.routine.announce)
        looks = Poll(self.contact, ctx.incarnation, poll, self.claimer, self.orders, self.due_rows)
        self.farewell = Deregistration(
            self.contact, self.settlement, self.outcome_sender, ctx.incarnation, self._end
        )
        self._regular = (
            self.claimer,
            self.settlement,
            looks,
            self.due_rows,
            self.rescue,
            *self.routine.duties,
        )
        self.agenda = TaskRunner(
            self.loop,
            self.lease,
            (*self._regular, self.farewell),
            blocked=self._blocked,
            on_away=self.lease.lost_contact,
            on_refused=self._on_refused,
        )
        self._wake = Wake(self.loop, ctx.paths.wake, self._woken, self.due_rows.foretold)

    # -- what a role says

    def start(self) -> None:
        """Open the doors; what needs the store begins when it has answered."""
        self._wake.start()
        self.outcome_sender.start()
        self.settlement.need()
        self.lease.start()

    def info(self) -> dict[str, Any]:
        """Lease and store, what was claimed and how fast, who is connected."""
        away = self.contact.away
        return {
            "lease": {"seconds": round(self.lease.seconds_left, 3), "held": self.lease.held},
            "lease_left": round(self.lease.left, 3),
            "lease_held": self.lease.held and self.lease.registered,
            "store": {
                "state": "away" if away is not None else "up" if self.lease.registered else "unknown",
                "since": round(time.monotonic() - self.contact.changed_at, 3),
                "error": str(away) if away is not None else "",
                "code": away.code if away is not None else 0,
                "errors": {str(code): n for code, n in self.contact.store.stats.errors.items()},
                "retries": self.contact.store.stats.retries,
            },
            "claimed": self.claimer.claimed,
            "claim_transactions": self.claimer.transactions,
            "claims_per_second": self._rate.per_second(self.claimer.claimed),
            "promoted": self.due_rows.promoted,
            "rescued": self.rescue.rescued,
            "fired": self.routine.ticking.fired,
            "removed": self.routine.retention.removed,
            "settlement": self.settlement.phase.value,
            "settlements": self.settlement.rounds,
            "paused": sorted(self.orders.paused),
            "pools": {
                link.name: {"room": link.room, "sent": link.sent} for link in self.pools.peers.values()
            },
            "unacknowledged": self.outcome_sender.unacknowledged,
        }

    def on_roster(self, roster: Roster) -> None:
        """Pools came or died."""
        self.settlement.on_roster(roster)

    def on_drain(self, seconds: float) -> None:
        """Claim nothing more; the lease is kept until the last pool is gone (law 10)."""
        self._draining = True
        self.claimer.stop()
        self._tell_state()

    def on_stop(self) -> None:
        """Every pool is gone: settle what is left, give the node's row back, end."""
        self._draining = True
        self.claimer.stop()
        if self._blocked() or self.roster.pools:
            self._end()
        else:
            self.farewell.begin(self.loop)

    def _settled(self) -> None:
        """Nothing is in nobody's hand, and what was in the spool is in the store."""
        self.rescue.spool_is_replayed()
        self.farewell.settled()

    def _end(self) -> None:
        self.agenda.stop()
        self.contact.store.close()
        self.loop.stop()

    # -- what the pools say

    def on_peer_up(self, peer: PoolLink) -> None:
        """A pool connected."""
        if self._told_held is not None:
            peer.send(LeaseState(held=self._told_held))
        self.settlement.on_pool_up(peer)
        self.orders.on_pool_up(peer)

    def on_peer_down(self, peer: PoolLink) -> None:
        """A pool's connection ended."""
        self.claimer.on_pool_down(peer)
        self.settlement.on_pool_down(peer)

    def on_peer_message(self, peer: PoolLink, message: Demand | Holdings) -> None:
        """A pool reported its demand, or what it holds."""
        if isinstance(message, Demand):
            peer.demand(message)
            self.claimer.on_demand(peer)
        else:
            self.settlement.on_holdings(peer, message)

    def _woken(self) -> None:
        """Somebody says that there is new work."""
        self.claimer.announce()
        self.routine.announce()

    # -- how it stands

    def _blocked(self) -> bool:
        return self.contact.away is not None or not self.lease.registered

    def _on_lease(self) -> None:
        """The store went away or came back, the lease was lost or won, or this node may not work."""
        self._was_away |= self.contact.away is not None
        held = self.lease.held
        # Before the first answer of the store nothing is known: an earlier dispatcher may have said either.
        if held != self._told_held and (self.lease.registered or not held):
            self._told_held = held
            self.pools.broadcast(LeaseState(held=held))
            if not held:
                # Who rescues them may start them at once; nobody is to start them twice.
                self.pools.broadcast(Release(handlers=()))
        if not self._blocked():
            self._back_to_work()
        self._tell_state()

    def _back_to_work(self) -> None:
        if self._was_away:
            # A server that crashed may have lost what it had acknowledged, an attempt's end for example.
            self.settlement.need()
        self._was_away = False
        for duty in self._regular:
            duty.wake()

    def _tell_state(self) -> None:
        obstacle = self.lease.obstacle
        if obstacle is not None:
            self.become("failed", str(obstacle))
            if not self.lease.ever_registered:
                self.beat(fatal=2)
        elif self.contact.away is not None:
            self.become(
                "waiting",
                f"The store does not answer ({self.contact.away}); see that it runs and can be reached, "
                "work goes on by itself when it is back.",
            )
        elif not self.lease.registered:
            self.become("starting")
        else:
            refused = next(iter(self._refused.values()), "")
            self.become("draining" if self._draining else "up", refused)

    def _on_refused(self, duty: PeriodicTask, error: Exception | None) -> None:
        if error is None:
            self._refused.pop(duty.name, None)
            self._tell_state()
            return
        if isinstance(error, StoreBusy):
            if duty.name not in self._refused:
                self._log.warning("other transactions are in the way", duty=duty.name, error=str(error))
            what_to_do = "look for a transaction that was left open on the database, and end it."
            self._refused[duty.name] = f"The store cannot do {duty.name} now ({error}); {what_to_do}"
        else:
            self._log.error("the store refused a statement", duty=duty.name, error=str(error))
            what_to_do = "see that its user has all rights on the database."
            self._refused[duty.name] = f"The store refuses {duty.name} ({error}); {what_to_do}"
        self._tell_state()


def _record(ctx: RoleContext) -> NodeRecord:
    """What the node's row says; other nodes learn from it which schedules somebody has."""
    return NodeRecord(
        id=ctx.incarnation,
        name=ctx.config.node.name,
        host=socket.gethostname(),
        pid=os.getppid(),
        boot_id=_boot_id(),
        version=__version__,
        info=msgspec.json.encode({"schedules": sorted(schedules.wanted(ctx.config))}),
    )


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def main(ctx: RoleContext) -> int:
    """Run the role in a process that was forked for it; returns the exit status."""
    setproctitle.setproctitle("workerd: dispatcher")
    values.enter(ctx.paths.metrics, "dispatcher")
    return Dispatcher(ctx).run()
