"""The dispatcher's process: its parts wired together, its periodic tasks, and what it reports."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

import msgspec
import setproctitle

from workerd.config.model import Config
from workerd.config.workflow_config import WorkflowConfig
from workerd.dispatcher import expiry, followers
from workerd.dispatcher.claimer import Claimer
from workerd.dispatcher.expiry import Expiry
from workerd.dispatcher.hidden_groups import HiddenGroups
from workerd.dispatcher.lease import Deregistration, Lease
from workerd.dispatcher.limit_tasks import AGREE_PERIOD_S, FREE_PERIOD_S, LimitTasks
from workerd.dispatcher.limit_tasks import SWEEP_PERIOD_S as SWEEP_LIMITS_PERIOD_S
from workerd.dispatcher.limited_handlers import LimitedHandlers
from workerd.dispatcher.monitored_store import MonitoredStore
from workerd.dispatcher.node_figures import NodeFigures
from workerd.dispatcher.node_record import former_incarnations, node_record
from workerd.dispatcher.pickup_window import PickupWindow
from workerd.dispatcher.pool_links import PoolLink, PoolLinks
from workerd.dispatcher.quarantines import QuarantineReports
from workerd.dispatcher.recurring import INTERVALS_PERIOD_S, SYNC_PERIOD_S, CronTicks, Intervals, ScheduleSync
from workerd.dispatcher.request_work import EXPIRY_PERIOD_S, RequestWork
from workerd.dispatcher.rescue import Rescue
from workerd.dispatcher.retention import RUNS_PERIOD_S, Retention, RunRetention
from workerd.dispatcher.settlement import Settlement
from workerd.dispatcher.stager import Stager
from workerd.dispatcher.stored_schedules import NamedCoolers, StoredSchedules
from workerd.dispatcher.tasks import PeriodicTask, TaskRunner
from workerd.dispatcher.wake_socket import Listeners, WakeSocket
from workerd.dispatcher.workflow_tasks import SWEEP_PERIOD_S, RequestSweep, WorkflowPickup
from workerd.errors import StoreAway
from workerd.messages import Demand, Drain, Hello, Holdings, LeaseState, Release, Roster, Series, ToDispatcher
from workerd.metrics.series import StoreErrorCounts
from workerd.operations.webhooks import WebhookEvents
from workerd.runtime.outcome_sender import OutcomeSender
from workerd.runtime.paths import RoleContext
from workerd.runtime.rate import Rate
from workerd.runtime.service import Service
from workerd.store import schedules
from workerd.store.availability import advice
from workerd.store.base import idle_limit
from workerd.store.claims import NodeIdent
from workerd.store.engines import open_store
from workerd.store.polls import PollResult

LONGEST_STORE_TIMEOUT_S = 5.0
"""The longest that one statement may keep the dispatcher from its loop."""

SUPERSEDED_TASKS = frozenset(
    {"lease", "settlement", "poll", "limits of nodes", "quarantines", "deregistration"}
)
"""What a superseded dispatcher still does: keep the claims of its runs, and tell them of cancels."""


class Dispatcher(Service):
    """Claims, lease, due rows, ticks, settlement, rescue and retention of one node."""

    def __init__(self, ctx: RoleContext) -> None:
        super().__init__(ctx.control, ctx.watchdog)
        config, incarnation = ctx.config, ctx.incarnation
        lease_s, poll_s = config.dispatcher.lease, config.dispatcher.poll
        formers = former_incarnations(ctx.config.node, incarnation)
        self._takes_jobs = config.pickup.enabled
        self._configured = frozenset(config.handlers)
        self._draining = False
        self._announced_held: bool | None = None  # in the last LeaseState
        self._had_outage = False
        self._worked = False  # registered, so that something may have been claimed
        self._rate = Rate()

        store = self.store = _monitored_store(ctx)
        store.store.on_progress = self._on_store_progress
        self._error_counts = StoreErrorCounts()
        tasks = self.tasks = TaskRunner(self.loop)
        self.pools: PoolLinks = PoolLinks(
            self.loop,
            ctx.paths.dispatcher,
            process="dispatcher",
            incoming=ToDispatcher,
            peer_class=PoolLink,
            owner=self,
        )
        self.outcomes = OutcomeSender(
            self.loop,
            ctx.paths.ingester,
            Hello(role="dispatcher", name="dispatcher", life=ctx.life),
            on_throughput=lambda throughput: self.figures.on_throughput(throughput),
        )
        self.lease = Lease(
            self.loop, tasks, store, self.outcomes, node_record(ctx), formers, lease_s,
            self._configured, self._on_lease,
            on_renewed=self._announce_lease, makes_store=not ctx.store_was_used,
        )  # fmt: skip
        self.figures = NodeFigures(self.loop, self.lease, config.pools, takes_jobs=config.pickup.enabled)
        self.rescue = Rescue(tasks, store, self.outcomes, incarnation, frozenset(formers), lease_s)
        node = NodeIdent(id=incarnation, name=config.node.name)
        self.limited = LimitedHandlers(config)
        self.settlement = Settlement(
            self.loop, tasks, store, self.pools, self.outcomes, node, self.limited, self._on_settled
        )
        self.deregistration = Deregistration(
            self.loop, tasks, store, self.settlement, self.outcomes, incarnation, self._end
        )
        self._add_claimer(config, node)
        self._add_stager(ctx)
        tasks.start(
            self._task_table(lease_s, poll_s, config.workflows.values(), pickup=config.pickup.enabled),
            is_blocked=self.lease.is_blocked,
            on_unavailable=self.lease.store_lost,
            on_trouble=self._report_state,
        )

    def _add_claimer(self, config: Config, node: NodeIdent) -> None:
        """The parts that claim jobs for the pools."""
        self.claimer = Claimer(
            self.tasks, self.store, self.pools, self.outcomes, self.settlement,
            node=node,
            max_rows=config.dispatcher.batch,
            poll_s=config.dispatcher.poll,
            window=PickupWindow(config.pickup.jobs),
            enabled=config.pickup.enabled,
            limited=self.limited,
            expires_us=expiry.expiring_handlers(config),
        )  # fmt: skip
        self.hidden_groups = HiddenGroups(self.tasks, self.store, self.claimer, self.limited)

    def _add_stager(self, ctx: RoleContext) -> None:
        """The parts that make rows claimable, and those that remove rows."""
        config, tasks, store, claimer = ctx.config, self.tasks, self.store, self.claimer
        configured = schedules.wanted(config)
        self.pickup = WorkflowPickup(
            tasks,
            store,
            claimer,
            config.workflows,
            PickupWindow(config.pickup.requests_new),
            config.dispatcher.poll,
        )
        self.sweep = RequestSweep(
            store, claimer, config.workflows, PickupWindow(config.pickup.requests_inprogress)
        )
        self.expiry = Expiry(store, expiry.expiring_handlers(config))
        self.stager = Stager(
            tasks, store, self.pools, claimer, self.pickup, config.handlers, ctx.incarnation, self.limited,
            on_expired=lambda: tasks.wake(self.expiry.sweep),
        )  # fmt: skip
        self.intervals = Intervals(store, claimer, config.handlers.values())
        self.schedule_sync = ScheduleSync(tasks, store, self.intervals, self.pickup, configured)
        self.cron_ticks = CronTicks(tasks, store, self.stager, configured.values())
        self.coolers = NamedCoolers(store, self.stager, configured.values(), config.dispatcher.poll)
        self.request_work = RequestWork(tasks, store, claimer)
        self.stored_schedules = StoredSchedules(tasks, store, self.cron_ticks, self.coolers, configured)
        if config.pickup.enabled:
            self.stager.on_polled = self._on_polled
        self.limit_tasks = LimitTasks(store, claimer, self.limited, config.handlers)
        self.followers = followers.Followers(store, claimer, config.handlers)
        self.retention = Retention(store, claimer, config.retention)
        self.run_retention = RunRetention(
            store, [name for name, s in configured.items() if s.cooler is not None and s.own]
        )
        events = WebhookEvents(config)
        if config.webhooks:
            store.store.before_commit = events.before_commit
        self.quarantines = QuarantineReports(tasks, store, claimer, events, ctx.incarnation)
        listeners = Listeners(
            self.stager.announce, self.claimer.expect, self.claimer.on_freed, self.stager.on_scheduled
        )
        self.wake_socket = WakeSocket(self.loop, ctx.paths.wake, listeners, self.claimer.has_claimed)

    def _task_table(
        self, lease_s: float, poll_s: float, workflows: Collection[WorkflowConfig], *, pickup: bool
    ) -> list[PeriodicTask]:
        """Every periodic task: its name, the function that does one slice, its period in seconds if any.

        Each is first due when the node is registered, which the lease's does, and when it can work again
        after an outage. `pickup`: whether this node takes work; if not, it starts none either.
        """
        tasks = [
            PeriodicTask("lease", self.lease.renew, lease_s / 3, needs_lease=False),
            PeriodicTask("claims", self.claimer.claim),
            PeriodicTask("settlement", self.settlement.settle),
            PeriodicTask("poll", self.stager.poll, poll_s),
            PeriodicTask("due rows", self.stager.promote_due),
            PeriodicTask("expiry", self.expiry.sweep, expiry.PERIOD_S),
            PeriodicTask("rescue", self.rescue.rescue, lease_s / 3),
            PeriodicTask("retention", self.retention.remove, self.retention.period_s),
            PeriodicTask("limits", self.limit_tasks.sweep, SWEEP_LIMITS_PERIOD_S),
            PeriodicTask("followers", self.followers.sweep, followers.PERIOD_S),
            PeriodicTask("quarantines", self.quarantines.report),
            PeriodicTask("deregistration", self.deregistration.deregister, on_demand=True),
        ]
        if self.limited.has_limits:
            tasks.append(PeriodicTask("limits of nodes", self.limit_tasks.agree, AGREE_PERIOD_S))
            tasks.append(PeriodicTask("late slots", self.limit_tasks.free_counted_late, FREE_PERIOD_S))
        if self.limited.fair:
            tasks.append(PeriodicTask("hidden groups", self.hidden_groups.walk))
        if pickup:
            tasks += [
                PeriodicTask("schedules", self.schedule_sync.sync, SYNC_PERIOD_S),
                PeriodicTask("cron ticks", self.cron_ticks.fire_due),
                PeriodicTask("waits", self.request_work.pass_waits),
                PeriodicTask("batches", self.request_work.work_batches),
                PeriodicTask("expiry of batches", self.request_work.expire_batches, EXPIRY_PERIOD_S),
                PeriodicTask("schedules by name", self.stored_schedules.read),
                PeriodicTask("coolers by name", self.coolers.run_due),
                PeriodicTask("intervals", self.intervals.ensure_next, INTERVALS_PERIOD_S),
                PeriodicTask("sweep of requests", self.sweep.sweep, SWEEP_PERIOD_S),
                PeriodicTask("retention of runs", self.run_retention.remove, RUNS_PERIOD_S),
            ]
            if workflows:  # only then: each wakes an idle node twice a second
                tasks.append(PeriodicTask("requests", self.pickup.pick_up, poll_s))
            if any(workflow.schedule.cooler is not None for workflow in workflows):
                tasks.append(PeriodicTask("recurring workflows", self.pickup.start_recurring, poll_s))
        return tasks

    # -- the supervisor

    def start(self) -> None:
        """Listen and connect; what needs the store begins when it answers."""
        if self._takes_jobs:
            # Else each wake-up takes 55 µs of CPU time for nothing.
            self.wake_socket.start()
        self.outcomes.start()
        self.settlement.request()
        self.lease.start()

    def on_roster(self, roster: Roster) -> None:
        """Pools were started or died."""
        self.settlement.on_roster(roster)
        self.quarantines.on_roster(roster)
        self.pools.on_roster(roster.pids)

    def on_drain(self, drain: Drain) -> None:
        """Claim nothing more, but keep the lease until the last pool is gone (law 10)."""
        self._draining = True
        self.claimer.stop()
        if drain.overlap:
            # Another generation of the daemon serves, by its own configuration: what recurs is its affair.
            self.tasks.keep_only(SUPERSEDED_TASKS)
            self.lease.withdraw()
        self._report_state()

    def on_stop(self) -> None:
        """Every pool is gone: settle what is left, deregister, end."""
        self._draining = True
        self.claimer.stop()
        if self.lease.is_blocked() or self.roster.pools:
            self._end()
        else:
            self.deregistration.begin()

    def _end(self) -> None:
        self.tasks.stop()
        self.store.store.close()
        self.loop.stop()

    def counted(self) -> list[Series]:
        return self._error_counts.take(self.store.store.stats.errors)

    def info(self) -> dict[str, Any]:
        """Lease and store, what was claimed and how fast, which pools are connected."""
        lease, availability = self.lease, self.store.availability
        error, stats = availability.error, self.store.store.stats
        return {
            "lease": {"seconds": round(lease.remaining_s, 3), "held": lease.held},
            "lease_left": round(max(0.0, lease.remaining_s), 3) if lease.registered else 0.0,
            "lease_held": lease.held and lease.registered,
            "store": {
                "state": "away" if error is not None else "up" if lease.registered else "unknown",
                "since": round(time.monotonic() - availability.since, 3),
                "error": str(error) if error is not None else "",
                "code": error.code if isinstance(error, StoreAway) else 0,
                "server": self.store.store.server,
                "errors": {str(code): count for code, count in stats.errors.items()},
                "retries": stats.retries,
            },
            "claimed": self.claimer.claimed,
            "claim_transactions": self.claimer.transactions,
            "claims_per_second": self._rate.per_second(self.claimer.claimed),
            "promoted": self.stager.promoted,
            "expired": self.expiry.expired,
            "rescued": self.rescue.rescued,
            "fired": self.cron_ticks.fired,
            "removed": self.retention.removed,
            "settlement": self.settlement.phase.value,
            "settlements": self.settlement.rounds,
            "paused": sorted(self.stager.paused),
            "pools": self._pools_info(),
            "unacknowledged": self.outcomes.unacknowledged,
        }

    def _pools_info(self) -> dict[str, Any]:
        """Of each pool, the generations that live side by side together."""
        found: dict[str, dict[str, int]] = {}
        for link in self.pools.peers.values():
            info = found.setdefault(link.name, {"room": 0, "sent": 0})
            info["room"] += link.capacity
            info["sent"] += link.sent
        return found

    def _report_state(self) -> None:
        obstacle, error = self.lease.obstacle, self.store.availability.error
        if obstacle is not None:
            self.become("failed", str(obstacle))
            if not self.lease.ever_registered:
                self.beat(fatal=2)
        elif error is not None:
            self.become("waiting", advice(error))
        elif not self.lease.registered:
            self.become("starting")
        else:
            trouble = next(iter(self.tasks.troubles.values()), "")
            self.become("draining" if self._draining else "up", trouble)

    # -- pools

    def on_peer_up(self, peer: PoolLink) -> None:
        """A pool connected."""
        if self._announced_held is not None:
            peer.send(LeaseState(held=self._announced_held, until_ns=self.lease.until_ns))
        self.settlement.on_pool_up(peer)
        self.stager.on_pool_up(peer)
        self._on_pools_changed()

    def on_peer_down(self, peer: PoolLink) -> None:
        """A pool's connection ended."""
        self.claimer.on_pool_down(peer)
        self.settlement.on_pool_down()
        self._on_pools_changed()

    def _on_pools_changed(self) -> None:
        self.figures.on_pools([link.name for link in self.pools.peers.values()])

    def on_peer_message(self, peer: PoolLink, message: Demand | Holdings) -> None:
        """A pool reported its capacity, or what it holds."""
        if isinstance(message, Demand):
            # Not for handlers that a reload has removed: their limits are not known here; their jobs stay.
            handlers = tuple(handler for handler in message.handlers if handler in self._configured)
            peer.on_demand(msgspec.structs.replace(message, handlers=handlers))
            self.claimer.on_demand(peer)
        else:
            self.settlement.on_holdings(peer, message)

    # -- the lease and settlement

    def _on_store_progress(self) -> None:
        """A call to the store goes on: it may outlast the watchdog, and the lease."""
        self.progressed()
        self.lease.give_up_if_late()

    def _on_lease(self) -> None:
        """The lease, the node's registration or the availability of the store changed."""
        self._had_outage |= self._worked and not self.store.availability.available
        held = self.lease.held
        # Before the store's first answer nothing is known: an earlier dispatcher may have announced either.
        if held != self._announced_held and (self.lease.registered or not held):
            self._announce_lease()
            if not held:
                # A rescuer may start them at once; they must not be started twice.
                self.pools.broadcast(Release(handlers=()))
                # At once: this turn may go on inside a call to a slow store.
                for link in self.pools.peers.values():
                    link.channel.flush()
        if not self.lease.is_blocked():
            if self._had_outage:
                # A server that crashed, or was replaced, may have lost what it acknowledged.
                self.settlement.request_after_absence()
            self._had_outage = False
            self._worked = True
            self.tasks.wake_all()
        self._report_state()

    def _announce_lease(self) -> None:
        """Tell the pools whether the lease is held, and until when."""
        self._announced_held = self.lease.held
        self.pools.broadcast(LeaseState(held=self.lease.held, until_ns=self.lease.until_ns))

    def _on_polled(self, result: PollResult) -> None:
        """What a poll found besides jobs, pauses and cancels."""
        self.stored_schedules.on_revision(result.schedules)
        self.request_work.on_polled(result)

    def _on_settled(self) -> None:
        """Settlement finished: every claim has an owner and the spool is fully replayed."""
        self.tasks.wake(self.claimer.claim)
        self.rescue.on_settled()
        self.deregistration.on_settled()


def store_timeout(watchdog_s: float, lease_s: float) -> float:
    """Seconds for connecting or one statement: both together must not reach the watchdog or the lease."""
    return min(LONGEST_STORE_TIMEOUT_S, watchdog_s * 0.4, lease_s / 4)


def _monitored_store(ctx: RoleContext) -> MonitoredStore:
    lease_s = ctx.config.dispatcher.lease
    store = open_store(
        ctx.config.store,
        state_dir=ctx.config.node.state_dir,
        timeout=store_timeout(ctx.watchdog, lease_s),
        spare=True,
    )
    store.reports_loss = True
    store.idle_limit_s = idle_limit(lease_s)
    if ctx.store_was_used:
        store.must_exist()
    return MonitoredStore(store, max_gap_s=lease_s / 2)


def main(ctx: RoleContext) -> int:
    """Run the role in a process that was forked for it; returns the exit status."""
    setproctitle.setproctitle("workerd: dispatcher")
    return Dispatcher(ctx).run()
