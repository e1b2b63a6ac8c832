"""Settlement: every claim of this incarnation that nobody holds gets an outcome (law 2).

Three rounds of asking make certain what nobody holds: the pools say what they hold; the ingester says
that all it was ever told is committed; then the store is read. What was claimed since the first question
is in a pool's hand and left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum

from workerd.clock import SECOND
from workerd.dispatcher.agenda import Duty
from workerd.dispatcher.contact import Contact
from workerd.dispatcher.pools import PoolLink, Pools
from workerd.dispatcher.reports import Reports
from workerd.dispatcher.unheld import give_back, lose
from workerd.job import Key
from workerd.log import get_logger
from workerd.messages import DeadPool, Holdings, Inventory, Roster
from workerd.outcome import Outcome
from workerd.process.loop import Loop
from workerd.store import jobs
from workerd.store.jobs import HeldRow

SLACK = SECOND
"""Microseconds by which a death may seem too early: a claim that may have been taken before it is lost."""

LATE_COMMIT = 10.0
"""Seconds after which a server has finished, or rolled back, what it was asked on a lost connection."""

POOL_DIED = "its pool died while it was waiting there or running"


class Phase(StrEnum):
    """What is being waited for."""

    IDLE = "idle"
    COLLECTING = "collecting"  # what each pool holds
    WRITING = "writing"  # what the ingester was told, into the store
    READING = "reading"  # the store's answer


class Event(StrEnum):
    NEEDED = "needed"  # a claim may be in nobody's hand
    COLLECTED = "collected"
    WRITTEN = "written"
    READ = "read"


class Settlement(Duty):
    """Law 2 as a state machine; see TRANSITIONS for what follows on what."""

    name = "settlement"

    def __init__(
        self,
        loop: Loop,
        contact: Contact,
        pools: Pools,
        reports: Reports,
        incarnation: bytes,
        on_settled: Callable[[], None],
    ) -> None:
        super().__init__()
        self._loop = loop
        self._contact = contact
        self._pools = pools
        self._reports = reports
        self._incarnation = incarnation
        self._on_settled = on_settled
        self._log = get_logger("dispatcher")
        self.phase = Phase.IDLE
        self.rounds = 0
        self._again = False
        self._token = 0
        self._roster: Roster | None = None
        self._elders: frozenset[int] = frozenset()  # lives that may hold claims of a dispatcher before us
        self._met: set[int] = set()  # lives that were ever connected here
        self._newest = 0  # of the lives in any Roster; they are numbered as they begin
        self._silent: set[int] | None = None  # lives that must still answer; None: not known who lives
        self._held: set[Key] = set()
        self._claimed: set[Key] = set()

    # -- what happens around it

    def need(self) -> None:
        """A claim may be in nobody's hand: find out."""
        self._happen(Event.NEEDED)

    def need_twice(self) -> None:
        """A COMMIT got no answer: the server may finish it even after we have read that it has not."""
        self.need()
        self._loop.call_later(LATE_COMMIT, self.need)

    def claimed(self, keys: Iterable[Key]) -> None:
        """These were claimed and handed over just now."""
        if self.phase is not Phase.IDLE:
            self._claimed.update(keys)

    def on_roster(self, roster: Roster) -> None:
        """Pools came or died."""
        before, self._roster = self._roster, roster
        dead = {pool.life for pool in roster.dead}
        self._newest = max(self._newest, *roster.pools.values(), *dead, 0)
        if before is None:
            self._elders = frozenset(roster.pools.values())
        elif self._died_unasked(dead - {pool.life for pool in before.dead}):
            self.need()
        self._met = self._living(self._met)
        if self._silent is None:
            self._ask_all()
        else:
            self._silent = self._living(self._silent)
        self._look()

    def _living(self, lives: Iterable[int]) -> set[int]:
        """Those that live as far as is known: a pool may connect before the Roster that names it is read."""
        named = set(self._roster.pools.values()) if self._roster is not None else set()
        return {life for life in lives if life in named or life > self._newest}

    def _died_unasked(self, dead: set[int]) -> bool:
        """Whether this round is too late for some of the dead: a pool that has not answered is not."""
        waited_for = self._silent if self.phase is Phase.COLLECTING and self._silent is not None else set()
        return bool(dead - waited_for)

    def on_pool_up(self, link: PoolLink) -> None:
        """A pool connected; if its answer is wanted, it is asked (again)."""
        self._met.add(link.life)
        if self._silent is not None and link.life in self._silent:
            link.send(Inventory(token=self._token))

    def on_pool_down(self, link: PoolLink) -> None:
        """Claims that were on their way to it have reached nobody."""
        self.need()

    def on_holdings(self, link: PoolLink, holdings: Holdings) -> None:
        """A pool's answer."""
        if self._silent is None or holdings.token != self._token or link.life not in self._silent:
            return
        self._held.update(holdings.keys)
        self._silent.discard(link.life)
        self._look()

    def work(self) -> None:
        """Read what the store has of ours, and end what nobody holds."""
        if self.phase is not Phase.READING:
            return
        rows = self._contact.read(lambda tx: jobs.held(tx, self._incarnation))
        outcomes = [
            self._end(row) for row in rows if row.key not in self._held and row.key not in self._claimed
        ]
        if outcomes:
            self._reports.send(outcomes)
            released = sum(outcome.reason is None for outcome in outcomes)
            self._log.warning("claims settled", released=released, lost=len(outcomes) - released)
        self._happen(Event.READ)

    # -- the machine

    def _happen(self, event: Event) -> None:
        step = TRANSITIONS.get((self.phase, event))
        if step is not None:
            self.phase, action = step
            action(self)

    def _begin(self) -> None:
        self._again = False
        self._token += 1
        self._held = set()
        self._claimed = set()
        self._silent = None
        if self._roster is not None:
            self._ask_all()
        self._look()

    def _ask_all(self) -> None:
        """Ask each pool that may hold anything: a younger one that never connected here cannot."""
        assert self._roster is not None
        if self.phase is not Phase.COLLECTING:
            return
        self._silent = self._living(self._elders | self._met)
        for life in self._silent & self._pools.links.keys():
            self._pools.links[life].send(Inventory(token=self._token))

    def _look(self) -> None:
        if self._silent is not None and not self._silent:
            self._happen(Event.COLLECTED)

    def _begin_again(self) -> None:
        self._again = True

    def _have_written(self) -> None:
        token = self._token
        dead = self._roster.dead if self._roster is not None else ()
        self._reports.barrier([pool.life for pool in dead], lambda: self._written(token))

    def _written(self, token: int) -> None:
        if token == self._token:
            self._happen(Event.WRITTEN)

    def _finish(self) -> None:
        self.rounds += 1
        self._held = set()
        self._claimed = set()
        if self._again:
            self.need()
        else:
            self._on_settled()

    # -- endings

    def _end(self, row: HeldRow) -> Outcome:
        dead = self._roster.dead if self._roster is not None else ()
        if any(self._died_with(pool, row) for pool in dead):
            return lose(row, POOL_DIED)
        return give_back(row)

    def _died_with(self, pool: DeadPool, row: HeldRow) -> bool:
        return row.handler in pool.handlers and self._contact.at(pool.died_ns) + SLACK >= row.claimed_at


Action = Callable[[Settlement], None]

TRANSITIONS: dict[tuple[Phase, Event], tuple[Phase, Action]] = {
    (Phase.IDLE, Event.NEEDED): (Phase.COLLECTING, Settlement._begin),
    (Phase.COLLECTING, Event.NEEDED): (Phase.COLLECTING, Settlement._begin_again),
    (Phase.WRITING, Event.NEEDED): (Phase.WRITING, Settlement._begin_again),
    (Phase.READING, Event.NEEDED): (Phase.READING, Settlement._begin_again),
    (Phase.COLLECTING, Event.COLLECTED): (Phase.WRITING, Settlement._have_written),
    (Phase.WRITING, Event.WRITTEN): (Phase.READING, Duty.wake),
    (Phase.READING, Event.READ): (Phase.IDLE, Settlement._finish),
}
"""(phase, event) -> next phase and what is done on entering it. A pair that is not here changes nothing."""
