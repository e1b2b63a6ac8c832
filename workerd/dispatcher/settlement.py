"""Settlement: every claim of this incarnation that no pool holds gets an outcome (law 2)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from enum import StrEnum

from workerd.clock import SECOND
from workerd.dispatcher.limited_handlers import LimitedHandlers
from workerd.dispatcher.monitored_store import MonitoredStore
from workerd.dispatcher.pool_links import PoolLink, PoolLinks
from workerd.dispatcher.store_comparison import StoreComparison
from workerd.dispatcher.tasks import TaskRunner
from workerd.job import COOLER_KEY, AttemptRef, HeldAttempt, shown_ids
from workerd.log import get_logger
from workerd.messages import BarrierDone, DeadPool, Holdings, Inventory, Roster
from workerd.outcome import Outcome, lost, released
from workerd.policy import next_after_loss
from workerd.runtime.loop import Loop
from workerd.runtime.outcome_sender import OutcomeSender
from workerd.store import held_attempts
from workerd.store.claims import NodeIdent

DEATH_SLACK_US = SECOND
"""A claim made up to this long after a pool's death counts as made before it: the two clocks differ."""
LATE_COMMIT_S = 10.0
"""After which a server has committed or rolled back what it got on a lost connection."""
SUCCESSOR_POLL_S = 5.0
"""Until an attempt is settled that waits for a later one to end."""
END_LOST = "it ran here, and the store lost how it ended: that was recorded before the store was away"
POOL_DIED = "its pool died while it was waiting there or running"

_log = get_logger("dispatcher")


class SettlementPhase(StrEnum):
    """What a settlement is waiting for."""

    IDLE = "idle"
    COLLECTING = "collecting"  # each pool's answer: what it holds
    WRITING = "writing"  # the ingester: all that it received is committed
    READING = "reading"  # the store: what is `inprogress` for this incarnation


class SettlementEvent(StrEnum):
    REQUESTED = "requested"  # a claim may have no owner
    COLLECTED = "collected"
    WRITTEN = "written"
    READ = "read"


class Settlement:
    """Law 2 (every claim is resolved) as a state machine; TRANSITIONS is its table.

    The order of the phases proves that a claim has no owner: first every pool reports what it holds, then
    the ingester commits every outcome sent until then, then the store is read. Claims made meanwhile are
    left alone.

    phase
        What it is waiting for.
    rounds
        Settlements finished.
    """

    def __init__(
        self,
        loop: Loop,
        tasks: TaskRunner,
        store: MonitoredStore,
        pools: PoolLinks,
        outcomes: OutcomeSender,
        node: NodeIdent,
        limited: LimitedHandlers,
        on_settled: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._tasks = tasks
        self._store = store
        self._pools = pools
        self._outcomes = outcomes
        self._incarnation = node.id
        self._comparison = StoreComparison(store, node, limited)
        self._on_settled = on_settled
        self.phase = SettlementPhase.IDLE
        self.rounds = 0
        self._repeat = False
        self._compare_next = False  # the next settlement begins with a comparison
        self._to_compare = False  # this one does
        self._compared = False
        self._postponed = False  # some attempt waits for a later one to end
        self._token = 0
        self._roster: Roster | None = None
        self._inherited: frozenset[int] = frozenset()  # lives that may hold claims of an earlier dispatcher
        self._connected: set[int] = set()  # lives that were ever connected here
        self._awaited: set[int] | None = None  # lives that have to answer; None: no Roster came yet
        self._held: dict[AttemptRef, int] = {}  # and the store time of each claim
        self._claimed: set[AttemptRef] = set()

    def request(self) -> None:
        """A claim may have no owner: settle, once more if a settlement is under way."""
        self._handle(SettlementEvent.REQUESTED)

    def request_after_absence(self) -> None:
        """The store was away and may have lost commits: compare, and claim nothing until that is done."""
        self._compare_next = True
        self.request()

    @property
    def is_comparing(self) -> bool:
        """Whether a claim may take what this node holds already."""
        return self._compare_next or self._to_compare

    def request_after_unknown_commit(self) -> None:
        """The same now and later: the server may finish the COMMIT after we have read that it has not."""
        self.request()
        self._loop.call_later(LATE_COMMIT_S, self.request)

    def on_claimed(self, keys: Iterable[AttemptRef]) -> None:
        """These were just claimed and handed over."""
        if self.phase is not SettlementPhase.IDLE:
            self._claimed.update(keys)

    def settle(self) -> float | None:
        """Read the store's claims of this incarnation, and send an outcome for each without an owner."""
        if self.phase is not SettlementPhase.READING:
            return None
        if self._to_compare and not self._compared:
            self._compared = not self._comparison.compare()
            return 0.0
        rows, now = self._store.read(lambda tx: (held_attempts.held(tx, self._incarnation), tx.now))
        self._store.note_time(now, time.monotonic_ns())
        unheld = [row for row in rows if row.ref not in self._held and row.ref not in self._claimed]
        orphaned = self._without_successors(unheld)
        if orphaned:
            outcomes = [self._outcome_of(row) for row in orphaned]
            self._outcomes.send_all(outcomes)
            lost_jobs = [outcome.id for outcome in outcomes if outcome.reason is not None]
            _log.warning(
                "claims.settled",
                released=len(outcomes) - len(lost_jobs),
                lost=len(lost_jobs),
                jobs=shown_ids(lost_jobs),
            )
        self._postponed = len(orphaned) < len(unheld)
        if self._postponed:
            self._loop.call_later(SUCCESSOR_POLL_S, self.request)
        self._handle(SettlementEvent.READ)
        return None

    def _without_successors(self, rows: list[HeldAttempt]) -> list[HeldAttempt]:
        """The rows, without those of which a later attempt or run, whose row the store lost, is held here.

        What follows from their end would run beside it.
        """
        running = {ref.id for ref in self._held}
        is_any_missing = not self._comparison.missing.isdisjoint(self._held)
        return [
            row
            for row in rows
            if row.id not in running and not (is_any_missing and row.unique_key == COOLER_KEY)
        ]

    def _outcome_of(self, row: HeldAttempt) -> Outcome:
        """Released if the job cannot have started, else lost."""
        dead = self._roster.dead if self._roster is not None else ()
        if any(self._may_have_held(pool, row) for pool in dead):
            return lost(row, POOL_DIED, next_after_loss(row))
        if self._comparison.may_have_ended(row):
            return lost(row, END_LOST, next_after_loss(row))
        return released(row)

    def _may_have_held(self, pool: DeadPool, row: HeldAttempt) -> bool:
        died_at = self._store.latest_time_at(pool.died_ns)
        return row.handler in pool.handlers and died_at + DEATH_SLACK_US >= row.claimed_at

    # -- pools

    def on_roster(self, roster: Roster) -> None:
        """Pools were started or died."""
        before, self._roster = self._roster, roster
        dead = {pool.life for pool in roster.dead}
        if before is None:
            self._inherited = roster.lives
        elif dead - {pool.life for pool in before.dead} - self._unanswered():
            self.request()  # this settlement began without knowing of that death
        self._connected = set(self._living(self._connected))
        if self._awaited is None:
            self._ask_pools()
        else:
            self._awaited = set(self._living(self._awaited))
        self._check_collected()

    def _unanswered(self) -> set[int]:
        """Pools whose death this settlement still covers: they have not answered it yet."""
        return self._awaited or set() if self.phase is SettlementPhase.COLLECTING else set()

    def _living(self, lives: Iterable[int]) -> frozenset[int]:
        """Those that the supervisor names; others are not waited for, even if connected."""
        return self._roster.lives.intersection(lives) if self._roster is not None else frozenset()

    def on_pool_up(self, link: PoolLink) -> None:
        """A pool connected: ask it again if its answer is awaited."""
        self._connected.add(link.life)
        if self._awaited is not None and link.life in self._awaited:
            link.send(Inventory(token=self._token))

    def on_pool_down(self) -> None:
        """A pool's connection ended: claims in transit to it may not have arrived."""
        self.request()

    def on_holdings(self, link: PoolLink, holdings: Holdings) -> None:
        """A pool answered what it holds."""
        if self._awaited is None or holdings.token != self._token or link.life not in self._awaited:
            return
        self._held.update(zip(holdings.keys, holdings.claimed_at, strict=True))
        self._awaited.discard(link.life)
        self._check_collected()

    # -- the state machine

    def _handle(self, event: SettlementEvent) -> None:
        transition = TRANSITIONS.get((self.phase, event))
        if transition is not None:
            self.phase, action = transition
            action(self)

    def _begin(self) -> None:
        self._repeat = False
        self._to_compare, self._compare_next = self._to_compare or self._compare_next, False
        self._compared = False
        self._token += 1
        self._held = {}
        self._claimed = set()
        self._awaited = None
        if self._roster is not None:
            self._ask_pools()
        self._check_collected()

    def _ask_pools(self) -> None:
        """Ask each pool that may hold claims; a younger one that never connected here cannot."""
        if self.phase is not SettlementPhase.COLLECTING:
            return
        self._awaited = set(self._living(self._inherited | self._connected))
        for life in self._awaited & self._pools.peers.keys():
            self._pools.peers[life].send(Inventory(token=self._token))

    def _check_collected(self) -> None:
        if self._awaited is not None and not self._awaited:
            self._handle(SettlementEvent.COLLECTED)

    def _repeat_later(self) -> None:
        self._repeat = True

    def _await_ingester(self) -> None:
        token = self._token
        dead = self._roster.dead if self._roster is not None else ()
        lives = {pool.life: pool.pid for pool in dead}
        if self._to_compare:
            self._outcomes.ask_ended(lives, lambda done: self._on_written(token, done))
        else:
            self._outcomes.barrier(lives, lambda: self._on_written(token))

    def _on_written(self, token: int, done: BarrierDone | None = None) -> None:
        if token == self._token:
            if done is not None:
                self._comparison.begin(self._held, done)
            self._handle(SettlementEvent.WRITTEN)

    def _await_store(self) -> None:
        self._tasks.wake(self.settle)

    def _finish(self) -> None:
        self.rounds += 1
        if self._to_compare:
            self._comparison.report()
            self._to_compare = False
            # What ended here between its answer and the comparison has a claim without an owner now.
            self._compare_next |= bool(self._comparison.taken)
            self._repeat |= self._compare_next
        if not self._compare_next and not self._postponed:
            self._comparison.forget()
        self._held = {}
        self._claimed = set()
        if self._repeat:
            self.request()
        else:
            self._on_settled()


Action = Callable[[Settlement], None]
_Phase, _Event = SettlementPhase, SettlementEvent

TRANSITIONS: dict[tuple[SettlementPhase, SettlementEvent], tuple[SettlementPhase, Action]] = {
    (_Phase.IDLE, _Event.REQUESTED): (_Phase.COLLECTING, Settlement._begin),
    (_Phase.COLLECTING, _Event.REQUESTED): (_Phase.COLLECTING, Settlement._repeat_later),
    (_Phase.WRITING, _Event.REQUESTED): (_Phase.WRITING, Settlement._repeat_later),
    (_Phase.READING, _Event.REQUESTED): (_Phase.READING, Settlement._repeat_later),
    (_Phase.COLLECTING, _Event.COLLECTED): (_Phase.WRITING, Settlement._await_ingester),
    (_Phase.WRITING, _Event.WRITTEN): (_Phase.READING, Settlement._await_store),
    (_Phase.READING, _Event.READ): (_Phase.IDLE, Settlement._finish),
}
"""(phase, event) -> the next phase and what is done on entering it; any other pair changes nothing."""
