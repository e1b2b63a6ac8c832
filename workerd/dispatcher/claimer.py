"""Claims for pools with free capacity, several handlers in one short transaction."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from workerd.dispatcher.lease import Contact
from workerd.dispatcher.pool_links import PoolLink
from workerd.dispatcher.recovery import Settlement, refuse
from workerd.dispatcher.tasks import REFUSED_PAUSE, PeriodicTask
from workerd.errors import CommitUnknown, StoreBusy, StoreRefused
from workerd.log import get_logger
from workerd.runtime.outcome_sender import OutcomeSender
from workerd.runtime.peer_server import PeerServer
from workerd.schedule import Cron
from workerd.store import claims
from workerd.store.base import Tx
from workerd.store.claims import ClaimBatch, Cursor, NodeIdent


class PickupWindow:
    """Opens at the ticks of a cron expression and stays open until what is there has been taken.

    An empty expression is a gate that is always open. Times are store times, microseconds.
    """

    def __init__(self, expression: str) -> None:
        self._cron = Cron(expression) if expression else None
        self._next: int | None = None
        self._open = self._cron is None

    def is_open(self, now: int) -> bool:
        """Whether work may be taken at `now`; a tick that has come opens it."""
        if self._cron is not None:
            if self._next is None:
                self._next = self._cron.next(now)
            elif self._next <= now:
                self._open = True
                self._next = self._cron.next(now)
        return self._open

    def drained(self) -> None:
        """There was nothing left to take: closed until the next tick."""
        if self._cron is not None:
            self._open = False

    @property
    def next(self) -> int | None:
        """The next tick, None if the gate has no ticks or was never asked."""
        return self._next


QUERIES = 8
"""Handlers that one transaction claims for; its locks and its COMMIT are shared, its length bounded."""
DIRECT = 2
"""So many handlers are claimed for without looking first whether they have rows."""
LINGER = 0.004
"""Seconds in which the room of a busy pool may grow; much less than the 25 ms of work in its hand."""
REWIND = 1.0
"""Seconds after which a claim starts from the index's beginning again, for rows of higher priority."""
BUSY = 1.0
"""Seconds since the last full claim for which there is said to be more work."""
UNREPORTED = 5000
"""Outcomes of unreadable rows that the ingester may owe an answer for; above that nothing is claimed."""
WOKEN_REWIND = 0.1
"""Seconds between rewinds that wake-ups ask for, while there is work anyway."""


class HandlerCursor:
    """What is known of one handler's waiting rows. `promising`: there may be some."""

    __slots__ = ("barred_until", "cursor", "promising", "rewind_at")

    def __init__(self) -> None:
        self.promising = True
        self.cursor: Cursor | None = None
        self.rewind_at = 0.0
        self.barred_until = 0.0

    def start(self, now: float) -> Cursor | None:
        """Where the next claim starts in the index."""
        if now >= self.rewind_at:
            self.cursor = None
            self.rewind_at = now + REWIND
        return self.cursor

    def woken(self, now: float) -> None:
        """There may be new rows, before the cursor too."""
        self.promising = True
        self.rewind_at = min(self.rewind_at, now + WOKEN_REWIND)

    def learn(self, batch: ClaimBatch, asked: int) -> None:
        """What a claim has shown."""
        left_behind = batch.found > len(batch.claims) + len(batch.broken)  # too many bytes for one claim
        self.promising = batch.found >= asked or left_behind
        self.cursor = batch.cursor if self.promising else None


class Share(NamedTuple):
    """A pool's part in a transaction: its room, and for which handlers."""

    link: PoolLink
    room: int
    handlers: list[str]


class Taken(NamedTuple):
    """What one query of the transaction brought."""

    link: PoolLink
    handler: str
    asked: int
    batch: ClaimBatch


class Claimer(PeriodicTask):
    """Gives rows to pools that have room: no more than the room, each pool and handler in its turn."""

    name = "claims"

    def __init__(
        self,
        contact: Contact,
        pools: PeerServer[PoolLink],
        outcome_sender: OutcomeSender,
        settlement: Settlement,
        *,
        node: NodeIdent,
        batch: int,
        poll: float,
        gate: PickupWindow,
        enabled: bool,
    ) -> None:
        super().__init__()
        self._contact = contact
        self._pools = pools
        self._outcome_sender = outcome_sender
        self._settlement = settlement
        self._node = node
        self._batch = batch
        self._poll = poll
        self._gate = gate
        self.stopped = not enabled
        self.claimed = 0
        self.transactions = 0
        self._lanes: dict[str, HandlerCursor] = {}
        self._paused: frozenset[str] = frozenset()
        self._order: list[int] = []
        self._served: dict[int, float] = {}  # life -> when it was last given as much as it asked for
        self._unsure = False
        self._apart_until = 0.0
        self._log = get_logger("dispatcher")

    def is_busy(self) -> bool:
        """Whether some pool was just given all that it asked for."""
        return any(time.monotonic() - served < BUSY for served in self._served.values())

    # -- what happens around it

    def on_demand(self, link: PoolLink) -> None:
        """A pool said what it can take."""
        if link.room > 0 and link.handlers:
            self.wake()

    def on_pool_down(self, link: PoolLink) -> None:
        """A pool has gone."""
        self._served.pop(link.life, None)

    def announce(self, handlers: Iterable[str] | None = None) -> None:
        """There is new work of these handlers; None: of some that nobody named."""
        now = time.monotonic()
        # Those too whose pool is away: when it is back it is to find what was announced meanwhile.
        known = {*self._lanes, *(h for link in self._pools.peers.values() for h in link.handlers)}
        named = known if handlers is None else known.intersection(handlers)
        if handlers is None and len(self._wanted()) > DIRECT:
            # Too many to try them all: look which it is; those without room are tried when they have some.
            self._unsure = True
            named = known - self._wanted()
        for handler in named:
            self._lane(handler).woken(now)
        if named or handlers is None:
            self.wake()

    def pause(self, handlers: frozenset[str]) -> None:
        """Exactly these are paused now; the store refuses them anyway, this only spares the queries."""
        resumed, self._paused = self._paused - handlers, handlers
        if resumed:
            self.announce(resumed)

    def stop(self) -> None:
        """Claim nothing from now on."""
        self.stopped = True

    def unknown(self) -> set[str]:
        """Handlers that rows would be taken of, and of which nobody has said that there are any."""
        if self.stopped or not self._gate.is_open(self._contact.now()):
            return set()
        return {handler for handler in self._wanted() if not self._lane(handler).promising}

    def found(self, handlers: Collection[str]) -> None:
        """Of those that were looked for these have rows."""
        now = time.monotonic()
        for handler in handlers:
            self._lane(handler).woken(now)
        if handlers:
            self.wake()
        elif not any(self._lane(handler).promising for handler in self._wanted()):
            self._gate.drained()

    # -- the work

    def work(self) -> float | None:
        """One transaction of claims, or one look whether there is anything to claim."""
        if self.stopped:
            return None
        if not self._gate.is_open(self._contact.now()):
            opens = self._gate.next
            return self._poll if opens is None else min(self._poll, self._contact.seconds_until(opens))
        if self._outcome_sender.unacknowledged > UNREPORTED:
            return self._poll
        now = time.monotonic()
        shares, later = self._shares(now)
        if shares:
            self._claim(shares, now)
            return 0.0
        if later is not None:
            return later - now
        self._look()
        return None

    def _wanted(self) -> set[str]:
        """Handlers that some pool has room for."""
        links = self._pools.peers.values()
        return {h for link in links if link.room > 0 for h in link.handlers} - self._paused

    def _lane(self, handler: str) -> HandlerCursor:
        lane = self._lanes.get(handler)
        if lane is None:
            lane = self._lanes[handler] = HandlerCursor()
        return lane

    def _look(self) -> None:
        """There is new work and nobody said of which handler: ask the store, in one statement."""
        wanted = sorted(self._wanted())
        if wanted and self._unsure:
            found = self._contact.look(lambda tx: claims.peek(tx, wanted)).handlers
            self._unsure = False
            self.found(found)

    def _shares(self, now: float) -> tuple[list[Share], float | None]:
        """Who takes part in the next transaction; or when somebody may, if all who could shall wait."""
        shares: list[Share] = []
        queries, rows = QUERIES if now >= self._apart_until else 1, self._batch
        waits: list[float] = []
        for link in self._links_in_turn():
            promising = self._promising(link) if link.room > 0 else []
            handlers = [h for h in promising if self._lane(h).barred_until <= now]
            if not handlers:
                waits += [self._lane(h).barred_until for h in promising]
                continue
            ripe_at = self._ripe_at(link)
            if ripe_at > now:
                waits.append(ripe_at)
                continue
            shares.append(Share(link, min(link.room, rows), handlers[:queries]))
            queries -= len(shares[-1].handlers)
            rows -= shares[-1].room
            if queries <= 0 or rows <= 0:
                break
        return shares, min(waits, default=None)

    def _links_in_turn(self) -> list[PoolLink]:
        links = self._pools.peers
        self._order = [life for life in self._order if life in links]
        self._order += [life for life in links if life not in self._order]
        return [links[life] for life in self._order]

    def _promising(self, link: PoolLink) -> list[str]:
        return [h for h in link.in_turn() if h not in self._paused and self._lane(h).promising]

    def _ripe_at(self, link: PoolLink) -> float:
        """A pool that was just given all that it asked for waits a moment, so that its room grows.

        A transaction costs as much as thirty rows of it.
        """
        return self._served.get(link.life, 0.0) + LINGER if link.room < self._batch // 4 else 0.0

    def _claim(self, shares: Sequence[Share], now: float) -> None:
        starts = {h: self._lane(h).start(now) for share in shares for h in share.handlers}
        try:
            taken = self._contact.run(lambda tx: self._take(tx, shares, starts))
        except CommitUnknown:
            self._settlement.need_twice()
            raise
        except (StoreRefused, StoreBusy, ValueError) as error:
            self._bar(list(starts), now, error)
            return
        self._hand_over(taken)
        served = {share.link.life for share in shares}
        self._order = [life for life in self._order if life not in served] + [
            life for life in self._order if life in served
        ]

    def _bar(self, handlers: Sequence[str], now: float, error: Exception) -> None:
        """What cannot be claimed must not keep the others: one handler at a time until it is found."""
        if len(handlers) > 1:
            self._apart_until = now + REFUSED_PAUSE
            return
        self._log.warning("the store does not let its jobs be claimed", handler=handlers[0], error=str(error))
        self._lane(handlers[0]).barred_until = now + REFUSED_PAUSE

    def _take(self, tx: Tx, shares: Sequence[Share], starts: dict[str, Cursor | None]) -> list[Taken]:
        """Within the transaction; nothing but the result may change, for it may run again."""
        taken: list[Taken] = []
        for link, room, handlers in shares:
            for handler in handlers:
                if room <= 0:
                    break
                batch = claims.claim(tx, handler, room, self._node, starts[handler])
                taken.append(Taken(link, handler, room, batch))
                room -= len(batch.claims)
        return taken

    def _hand_over(self, taken: Sequence[Taken]) -> None:
        """The claims are committed: into the pools' hands at once."""
        self.transactions += 1
        now = time.monotonic()
        for link, handler, asked, batch in taken:
            self._lane(handler).learn(batch, asked)
            if batch.found >= asked:
                self._served[link.life] = now
            else:
                self._served.pop(link.life, None)
            if batch.claims:
                self.claimed += len(batch.claims)
                self._settlement.claimed(claim.key for claim in batch.claims)
                unsendable = link.hand_over(batch.claims)
                self._outcome_sender.send_all([refuse(claim) for claim in unsendable])
            if batch.broken:
                self._outcome_sender.send_all(batch.broken)
