"""Claims rows for pools with free capacity: plan, claim in one short transaction, hand over."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping

from workerd import log
from workerd.dispatcher.claim_plan import ClaimedBatch, ClaimOutlook, ClaimPlan, ClaimPlanner
from workerd.dispatcher.limited_handlers import LimitedHandlers
from workerd.dispatcher.monitored_store import MonitoredStore
from workerd.dispatcher.pickup_window import PickupWindow
from workerd.dispatcher.pool_links import PoolLink, PoolLinks
from workerd.dispatcher.settlement import Settlement
from workerd.dispatcher.tasks import REFUSED_PAUSE_S, TaskRunner
from workerd.errors import CommitUnknown, StoreAway, StoreBusy, StoreRefused, UnreadableRow
from workerd.job import AttemptRef, Claim, id_text
from workerd.log import get_logger
from workerd.outcome import failed
from workerd.runtime.outcome_sender import OutcomeSender
from workerd.store import claims, polls
from workerd.store.base import Tx
from workerd.store.claims import NodeIdent
from workerd.store.limited_batch import LimitedBatch

UNSENDABLE = "the vars (with params, extras and payloads that it needs) are too long to reach a worker"
RESTED_S = 0.002
"""After a claim, until rows are looked for that are only being inserted: else each enqueue might cost two."""
MAX_REMEMBERED = 16
"""Jobs claimed last whose own wake-up is still to come."""

_log = get_logger("dispatcher")


class Claimer:
    """Claims what the plan allows and hands it over at once.

    `expires_us`: how long after they are due jobs may begin, by handler.

    claimed, transactions
        Counts since the start.
    """

    def __init__(
        self,
        tasks: TaskRunner,
        store: MonitoredStore,
        pools: PoolLinks,
        outcomes: OutcomeSender,
        settlement: Settlement,
        *,
        node: NodeIdent,
        max_rows: int,
        poll_s: float,
        window: PickupWindow,
        enabled: bool,
        limited: LimitedHandlers,
        expires_us: Mapping[str, int],
    ) -> None:
        self._tasks = tasks
        self._store = store
        self._outcomes = outcomes
        self._settlement = settlement
        self._planner = ClaimPlanner(pools, max_rows, limited.names, limited.fair)
        self._node = node
        self._poll_s = poll_s
        self._window = window
        self._stopped = not enabled
        self._learnable: list[tuple[str, LimitedBatch]] = []  # of the transaction under way
        self._counted: dict[str, list[AttemptRef]] = {}  # in it, by limit
        self._limited = limited
        self._expires_us = expires_us
        self._claimed_at = -RESTED_S
        self._claimed_last: deque[bytes] = deque(maxlen=MAX_REMEMBERED)
        self.claimed = 0
        self.transactions = 0

    def stop(self) -> None:
        """Claim nothing from now on."""
        self._stopped = True

    def is_busy(self) -> bool:
        """Whether there is probably more work than the pools take."""
        return self._planner.is_busy()

    # -- news that make a claim worthwhile

    def on_demand(self, link: PoolLink) -> None:
        """A pool reported its capacity."""
        if link.capacity > 0 and link.handlers:
            self._wake()

    def on_pool_down(self, link: PoolLink) -> None:
        """A pool's connection ended."""
        self._planner.forget_pool(link)

    def announce(self, handlers: Iterable[str] | None = None) -> None:
        """New rows exist for these handlers; None: for any."""
        if self._planner.announce(handlers):
            self._wake()

    def expect(self, handlers: Iterable[str]) -> None:
        """Rows of these handlers are being inserted: look for them if nothing was claimed for a moment.

        Not of fair ones: a look for their newcomers that comes too early puts off the next.
        """
        others = set(handlers) - self._limited.fair
        if others and time.monotonic() - self._claimed_at >= RESTED_S:
            self.announce(others)

    def has_claimed(self, job: bytes) -> bool:
        """Whether this job was one of the last to be claimed here."""
        return job in self._claimed_last

    def on_freed(self, limits: Iterable[str]) -> None:
        """Something of these limits was given back."""
        if self._planner.wake_idle(self._limited.of_limit(limits)):
            self._wake()

    def pause(self, handlers: frozenset[str]) -> None:
        """Exactly these are paused now; the store refuses them anyway, this only saves the queries."""
        resumed = self._planner.pause(handlers)
        if resumed:
            self.announce(resumed)

    def to_poll(self) -> set[str]:
        """Handlers with free capacity and no known waiting jobs."""
        if self._stopped or not self._window.is_open(self._store.now()):
            return set()
        return self._planner.unpromising()

    def polled(self, handlers: Collection[str]) -> None:
        """Of those polled for these have rows."""
        self._planner.wake(handlers)
        if handlers:
            self._wake()
        elif self._planner.unpromising() == self._planner.wanted():
            self._window.drained()

    def _wake(self) -> None:
        self._tasks.wake(self.claim)

    # -- plan, claim, hand over

    def claim(self) -> float | None:
        """One transaction of claims, or one peek whether there is anything to claim."""
        if self._stopped or self._settlement.is_comparing:
            return None
        if not self._window.is_open(self._store.now()):
            opens_at = self._window.opens_at
            if opens_at is None:
                return self._poll_s
            return min(self._poll_s, self._store.seconds_until(opens_at))
        if self._outcomes.full:
            return self._poll_s
        plan = self._planner.plan()
        if plan.shares:
            self._carry_out(plan)
            return 0.0
        self._peek()
        return plan.wait_s

    def _carry_out(self, plan: ClaimPlan) -> None:
        began_at = time.monotonic()
        try:
            claimed = self._store.run(lambda tx: self._claim_shares(tx, plan))
        except CommitUnknown:
            self._settlement.request_after_unknown_commit()
            self._planner.note_failure(time.monotonic() - began_at)
            raise
        except StoreAway as error:
            self._planner.note_failure(time.monotonic() - began_at)
            if not isinstance(error, StoreBusy):
                raise
            self._refuse(plan, error)
            return
        except (StoreRefused, UnreadableRow) as error:
            self._refuse(plan, error)
            return
        try:
            self._claimed_at = time.monotonic()
            self._planner.note_duration(self._claimed_at - began_at, claimed)
            self._planner.learn(plan, claimed)
            self._limited.on_counted(self._counted)
            for handler, found in self._learnable:
                self._limited.learn(handler, found)
            self._hand_over(claimed)
        except Exception:
            self._settlement.request()  # what is committed but not handed over has no owner
            raise

    def _refuse(self, plan: ClaimPlan, error: Exception) -> None:
        barred = self._planner.bar(plan)
        if barred is not None:
            _log.warning("claim.refused", handler=barred, error=str(error), retry_in_s=REFUSED_PAUSE_S)

    def _claim_shares(self, tx: Tx, plan: ClaimPlan) -> list[ClaimedBatch]:
        """Within the transaction: changes nothing else, since it may run again."""
        claimed: list[ClaimedBatch] = []
        seen: set[str] = set()
        self._learnable = []
        locked = self._limited.lock(tx, plan.handlers)  # before all other locks
        self._counted = self._limited.count_running(tx, locked)
        max_bytes = self._planner.max_bytes
        for link, capacity, cursors, idle_only in plan.shares:
            limit = capacity
            for handler, cursor in cursors.items():
                if limit <= 0 or max_bytes <= 0:
                    break
                if handler in seen:
                    # Two generations of a pool: what was taken for one may still be `new` to a query here.
                    continue
                seen.add(handler)
                outlook: ClaimOutlook | None = None
                if handler in self._limited:
                    found = self._limited.claim(
                        tx, handler, locked, limit, self._node, cursor, max_bytes, idle_only=idle_only
                    )
                    self._learnable.append((handler, found))
                    batch, outlook = found.batch, self._outlook(found)
                else:
                    batch = claims.claim(
                        tx, handler, limit, self._node, cursor, max_bytes,
                        expires_us=self._expires_us.get(handler),
                    )  # fmt: skip
                max_bytes -= batch.size
                claimed.append(ClaimedBatch(link, handler, limit, batch, outlook))
                limit -= len(batch.claims)
        return claimed

    def _outlook(self, found: LimitedBatch) -> ClaimOutlook:
        retry_in_s = None if found.retry_at is None else self._store.seconds_until(found.retry_at)
        return ClaimOutlook(found.more, retry_in_s, found.busy)

    def _hand_over(self, claimed: list[ClaimedBatch]) -> None:
        """The claims are committed: send them to their pools at once."""
        self.transactions += 1
        for link, _, _, batch, _ in claimed:
            if batch.claims:
                self._store.note_time(batch.claims[0].claimed_at, batch.claims[0].mono)
                self.claimed += len(batch.claims)
                self._claimed_last.extend([claim.id for claim in batch.claims[:MAX_REMEMBERED]])
                self._settlement.on_claimed(claim.ref for claim in batch.claims)
                if log.debugging:
                    _trace(link, batch.claims)
                unsendable = link.hand_over(batch.claims)
                self._outcomes.send_all([failed(claim, UNSENDABLE) for claim in unsendable])
            if batch.broken:
                self._settlement.on_claimed(outcome.ref for outcome in batch.broken)
                self._outcomes.send_all(batch.broken)

    def _peek(self) -> None:
        """If there is new work of an unknown handler, ask the store of which, in one statement."""
        handlers = self._planner.to_peek()
        if handlers:
            found = self._store.read_one(lambda tx: polls.peek(tx, handlers)).handlers
            self._planner.peeked()
            self.polled(found)


def _trace(link: PoolLink, claims_: Iterable[Claim]) -> None:
    for claim in claims_:
        _log.debug(
            "job.claimed", handler=claim.handler, job=id_text(claim.id), attempt=claim.attempt, pool=link.name
        )
