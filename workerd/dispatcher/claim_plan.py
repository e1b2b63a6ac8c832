"""What the next transaction may claim, and for which pools."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

from workerd.dispatcher.pool_links import PoolLink, PoolLinks
from workerd.dispatcher.tasks import REFUSED_PAUSE_S
from workerd.runtime.adaptive_size import AdaptiveSize
from workerd.store.claims import MAX_BATCH_BYTES, ClaimBatch, Cursor

FIRST_BYTES = 256 * 1024
"""Bytes of vars and meta of the first transaction: on a slow line they must not take as long as the lease."""
MAX_HANDLERS = 8
"""Handlers that one transaction claims for: they share its locks and COMMIT, and its length is bounded."""
MAX_UNPEEKED_HANDLERS = 2
"""Up to so many handlers are claimed for without first peeking whether they have rows."""
LINGER_S = 0.004
"""For which the capacity of a busy pool may grow; much less than the 25 ms of work that it has waiting."""
REWIND_S = 1.0
"""After which a claim starts from the beginning of the index again, for rows of higher priority."""
WOKEN_REWIND_S = 0.1
"""The same after a wake-up, while there is work anyway."""
LIMIT_BUSY_S = (0.002, 0.01)
"""Until a handler is tried again whose limit another node had locked: about as long as a claim takes."""
LEAD_S = 0.001
"""By which a claim is begun before its limit lets the next job start: a timer fires up to 1 ms late, and the
store's clock is read in the second round trip. Used of a rate of 50 a second with burst 1: 0.92 → 0.96."""
NEWCOMERS = 2
"""Claims beyond the capacity of a busy pool for jobs of idle groups, so that they need not wait for it."""
NEWCOMER_PAUSE_S = 0.01
"""From one such claim to the next; while there is nothing to claim for them it costs a few statements."""
NEWCOMER_BUSY_S = 0.1
"""A pool that got claims within this time starts what it is given soon."""
BUSY_S = 1.0
"""For which a pool counts as busy after a claim that brought all it asked for."""


class HandlerCursor:
    """What is known of a handler's waiting rows.

    promising
        Whether there may be some.
    barred_until
        Monotonic seconds until which it is left out, since the store refused to claim it.
    promising_at
        Monotonic seconds at which its limit lets a waiting row start, if that is known.
    has_news
        Whether rows were announced since the last claim.
    newcomers_at
        Monotonic seconds from which another claim for idle groups alone is made.
    """

    __slots__ = (
        "barred_until", "cursor", "has_news", "newcomers_at", "promising", "promising_at", "rewind_at",
    )  # fmt: skip

    def __init__(self) -> None:
        self.promising = True
        self.cursor: Cursor | None = None
        self.rewind_at = 0.0
        self.barred_until = 0.0
        self.promising_at = math.inf
        self.has_news = False
        self.newcomers_at = 0.0

    def start(self, now: float) -> Cursor | None:
        """Where the next claim starts in the index."""
        self.has_news = False
        if now >= self.rewind_at:
            self.cursor = None
            self.rewind_at = now + REWIND_S
        return self.cursor

    def wake(self, now: float) -> None:
        """There may be new rows, before the cursor too."""
        self.promising = True
        self.has_news = True
        self.rewind_at = min(self.rewind_at, now + WOKEN_REWIND_S)

    def learn(self, batch: ClaimBatch, limit: int, outlook: ClaimOutlook | None) -> None:
        """A claim of up to `limit` rows brought this batch."""
        if outlook is not None:
            now = time.monotonic()
            self.promising = outlook.more or outlook.busy
            self.promising_at = math.inf if outlook.retry_in_s is None else now + _led(outlook.retry_in_s)
            self.barred_until = now + random.uniform(*LIMIT_BUSY_S) if outlook.busy else 0.0
            self.cursor = batch.cursor
            return
        left_behind = batch.found > len(batch.claims) + len(batch.broken)  # too many bytes for one claim
        self.promising = batch.found >= limit or left_behind
        self.cursor = batch.cursor if self.promising else None


def _led(retry_in_s: float) -> float:
    """When to try again; a claim that was begun too early is tried again exactly then."""
    return retry_in_s - LEAD_S if retry_in_s > 2 * LEAD_S else retry_in_s


class ClaimOutlook(NamedTuple):
    """What a claim of a limited handler says of the next.

    `more`: further rows may fit at once. `retry_in_s`: when one fits by its rate. `busy`: another node is
    claiming for its limit.
    """

    more: bool
    retry_in_s: float | None
    busy: bool


class PoolShare(NamedTuple):
    """A pool's part in a transaction: up to `capacity` rows of these handlers, each from its cursor on.

    `idle_only`: only of groups that have had no turn recently.
    """

    link: PoolLink
    capacity: int
    cursors: dict[str, Cursor | None]
    idle_only: bool = False


class ClaimPlan(NamedTuple):
    """What the next transaction claims; without shares `wait_s` says when to plan again, None: when woken."""

    shares: list[PoolShare]
    wait_s: float | None

    @property
    def handlers(self) -> list[str]:
        return [handler for share in self.shares for handler in share.cursors]


class ClaimedBatch(NamedTuple):
    """What one query of the transaction brought, of up to `limit` rows."""

    link: PoolLink
    handler: str
    limit: int
    batch: ClaimBatch
    outlook: ClaimOutlook | None = None

    @property
    def has_had_its_turn(self) -> bool:
        """Whether others come first now: not if nothing waited, or the limit had no room."""
        return self.batch.found > 0 or (self.outlook is not None and self.outlook.more)


T = TypeVar("T", bound=Hashable)


class RoundRobin(Generic[T]):
    """Who comes first: what had its turn longest ago. What was asked for and got nothing keeps its place."""

    def __init__(self) -> None:
        self._turns: dict[T, int] = {}  # the number of the last one
        self._numbers = itertools.count(1)

    def sorted(self, members: Iterable[T]) -> list[T]:
        """These in their order."""
        return sorted(members, key=lambda one: self._turns.get(one, 0))

    def served(self, member: T) -> None:
        """It has had its turn."""
        self._turns[member] = next(self._numbers)

    def forget(self, member: T) -> None:
        """It does not come back."""
        self._turns.pop(member, None)


class ClaimPlanner:
    """Decides what may be claimed now: no more than each pool's capacity, pools and handlers in turn.

    `limited`: the handlers with a limit or turns of groups; `fair`: those with turns.
    """

    def __init__(
        self, pools: PoolLinks, max_rows: int, limited: Collection[str] = (), fair: Collection[str] = ()
    ) -> None:
        self._pools = pools
        self._fair = frozenset(fair)
        self._limited = frozenset(limited)
        self._max_rows = AdaptiveSize(max_rows)
        self._max_bytes = AdaptiveSize(MAX_BATCH_BYTES, FIRST_BYTES)
        self._cursors: dict[str, HandlerCursor] = {}
        self._paused: frozenset[str] = frozenset()
        self._pools_in_turn: RoundRobin[int] = RoundRobin()  # by their lives
        self._handlers_in_turn: RoundRobin[str] = RoundRobin()
        self._satisfied_at: dict[int, float] = {}  # life -> when it last got all that it asked for
        self._one_handler_until = 0.0
        self._must_peek = False

    # -- what is known of handlers and pools

    def announce(self, handlers: Iterable[str] | None = None) -> bool:
        """New rows exist for these handlers, None: for any; returns whether a claim or a peek is due."""
        # With those whose pool is away: once it is back it should find what was announced meanwhile.
        known = {*self._cursors, *(h for link in self._pools.peers.values() for h in link.handlers)}
        named = known if handlers is None else known.intersection(handlers)
        if handlers is None:
            wanted = self.wanted()
            if len(wanted) > MAX_UNPEEKED_HANDLERS:
                # Too many to try them all; those without capacity are tried once they have some.
                # A peek does not see what waits for a limit.
                self._must_peek = True
                named = (known - wanted) | (known & self._limited)
        self.wake(named)
        return bool(named) or handlers is None

    def wake_idle(self, handlers: Iterable[str]) -> bool:
        """Rows of these handlers may fit now; whether any of them was not to be claimed."""
        # Those under way need no news: they would begin at the front of the index again.
        idle = [handler for handler in handlers if not self._cursor(handler).promising]
        self.wake(idle)
        return bool(idle)

    def wake(self, handlers: Iterable[str]) -> None:
        """These handlers may have new rows."""
        now = time.monotonic()
        for handler in handlers:
            self._cursor(handler).wake(now)

    def pause(self, handlers: frozenset[str]) -> frozenset[str]:
        """Exactly these are paused now; returns those that are no longer."""
        resumed, self._paused = self._paused - handlers, handlers
        return resumed

    def bar(self, plan: ClaimPlan) -> str | None:
        """The store refused the plan: find the handler at fault by claiming for one at a time.

        Returns that handler once it is found; it is left out for a while, and keeps no other waiting.
        """
        until = time.monotonic() + REFUSED_PAUSE_S
        handlers = plan.handlers
        if len(handlers) > 1:
            self._one_handler_until = until
            return None
        self._cursor(handlers[0]).barred_until = until
        return handlers[0]

    def learn(self, plan: ClaimPlan, claimed: Collection[ClaimedBatch]) -> None:
        """The plan was carried out and brought this."""
        now = time.monotonic()
        in_part = {handler for share in plan.shares if share.idle_only for handler in share.cursors}
        for link, handler, limit, batch, outlook in claimed:
            if handler in in_part:
                continue  # a part of what waits was looked at
            self._cursor(handler).learn(batch, limit, outlook)
            if batch.found >= limit:
                self._satisfied_at[link.life] = now
            else:
                self._satisfied_at.pop(link.life, None)
        for one in claimed:
            if one.has_had_its_turn:
                self._pools_in_turn.served(one.link.life)
                self._handlers_in_turn.served(one.handler)

    @property
    def max_bytes(self) -> int:
        """Bytes of vars and meta that the next transaction may claim."""
        return self._max_bytes.value

    def note_duration(self, seconds: float, claimed: Sequence[ClaimedBatch]) -> None:
        """A transaction that claimed this took so long: what the next may claim follows from it."""
        self._max_rows.note(seconds, sum(one.batch.found for one in claimed))
        self._max_bytes.note(seconds, sum(one.batch.size for one in claimed))

    def note_failure(self, seconds: float) -> None:
        """A transaction was cut off after so long."""
        self._max_rows.note(seconds, self._max_rows.value)
        self._max_bytes.note(seconds, self._max_bytes.value)

    def forget_pool(self, link: PoolLink) -> None:
        """A pool's connection ended."""
        self._satisfied_at.pop(link.life, None)
        self._pools_in_turn.forget(link.life)

    def is_busy(self) -> bool:
        """Whether some pool just got all that it asked for, so that there is probably more."""
        return any(time.monotonic() - at < BUSY_S for at in self._satisfied_at.values())

    # -- what may be claimed

    def wanted(self) -> set[str]:
        """Handlers that some pool has capacity for."""
        links = self._pools.peers.values()
        return {h for link in links if link.capacity > 0 for h in link.handlers} - self._paused

    def unpromising(self) -> set[str]:
        """Handlers with capacity and no known waiting rows."""
        return {handler for handler in self.wanted() if not self._cursor(handler).promising}

    def to_peek(self) -> list[str]:
        """Handlers to peek at, since there is new work of an unknown handler."""
        if not self._must_peek:
            return []
        return sorted(self.wanted())

    def peeked(self) -> None:
        """The peek was made."""
        self._must_peek = False

    def plan(self) -> ClaimPlan:
        """The next transaction's shares."""
        now = time.monotonic()
        shares: list[PoolShare] = []
        queries, rows = MAX_HANDLERS if now >= self._one_handler_until else 1, self._max_rows.value
        waits: list[float] = []
        for link in self._links_in_turn():
            if self._fair and queries > 0:
                newcomers = self._newcomers(link, now, waits)
                if newcomers:
                    cursors = {h: self._cursor(h).start(now) for h in newcomers[:queries]}
                    shares.append(PoolShare(link, NEWCOMERS, cursors, idle_only=True))
                    queries -= len(cursors)
                    continue
            promising = self._promising(link) if link.capacity > 0 else []
            handlers = [h for h in promising if self._cursor(h).barred_until <= now]
            if not handlers:
                waits += [self._cursor(h).barred_until for h in promising]
                waits += self._promising_later(link)
                continue
            waits += self._promising_later(link)
            ripe_at = self._ripe_at(link)
            if ripe_at > now:
                waits.append(ripe_at)
                continue
            cursors = {h: self._cursor(h).start(now) for h in handlers[:queries]}
            shares.append(PoolShare(link, min(link.capacity, rows), cursors))
            queries -= len(cursors)
            rows -= shares[-1].capacity
            if queries <= 0 or rows <= 0:
                break
        return ClaimPlan(shares, min(waits) - now if waits else None)

    def _cursor(self, handler: str) -> HandlerCursor:
        cursor = self._cursors.get(handler)
        if cursor is None:
            cursor = self._cursors[handler] = HandlerCursor()
        return cursor

    def _links_in_turn(self) -> list[PoolLink]:
        links = self._pools.peers
        return [links[life] for life in self._pools_in_turn.sorted(links)]

    def _promising(self, link: PoolLink) -> list[str]:
        now = time.monotonic()
        found = []
        for handler in self._handlers_in_turn.sorted(link.handlers):
            cursor = self._cursor(handler)
            if handler not in self._paused and (cursor.promising or cursor.promising_at <= now):
                found.append(handler)
        return found

    def _newcomers(self, link: PoolLink, now: float, waits: list[float]) -> list[str]:
        """Handlers of a pool without capacity of which jobs of idle groups may be claimed now.

        Adds to `waits` when that is so for others.
        """
        if link.capacity <= -NEWCOMERS or now - self._satisfied_at.get(link.life, 0.0) > NEWCOMER_BUSY_S:
            return []
        found = []
        for handler in self._fair.intersection(link.handlers) - self._paused:
            cursor = self._cursor(handler)
            if not cursor.has_news or cursor.barred_until > now:
                continue
            if cursor.newcomers_at <= now:
                cursor.newcomers_at = now + NEWCOMER_PAUSE_S
                found.append(handler)
            else:
                waits.append(cursor.newcomers_at)
        return found

    def _promising_later(self, link: PoolLink) -> list[float]:
        """When handlers become promising for which the pool has capacity."""
        if link.capacity <= 0:
            return []
        now = time.monotonic()
        moments = (self._cursor(h).promising_at for h in link.handlers if h not in self._paused)
        return [moment for moment in moments if now < moment < math.inf]

    def _ripe_at(self, link: PoolLink) -> float:
        """A pool that just got all that it asked for waits a moment, so that its capacity grows.

        A transaction costs as much as thirty rows of it.
        """
        few = link.capacity < self._max_rows.value // 4
        return self._satisfied_at.get(link.life, 0.0) + LINGER_S if few else 0.0
