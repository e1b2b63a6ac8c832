"""Claims that nobody holds get an outcome: settlement of this node, rescue of dead ones (law 2)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from enum import StrEnum

from workerd.clock import SECOND
from workerd.dispatcher.lease import Contact
from workerd.dispatcher.pool_links import PoolLink
from workerd.dispatcher.tasks import PeriodicTask, jittered
from workerd.job import Claim, Key, Status
from workerd.log import get_logger
from workerd.messages import DeadPool, Holdings, Inventory, Roster
from workerd.outcome import Outcome, Reason
from workerd.policy import lost
from workerd.runtime.loop import Loop
from workerd.runtime.outcome_sender import OutcomeSender
from workerd.runtime.peer_server import PeerServer
from workerd.store import claims, nodes
from workerd.store.base import Tx
from workerd.store.claims import HeldRow
from workerd.store.nodes import NodeRecord

UNSENDABLE = "the vars (with params, extras and payloads that it needs) are too long to reach a worker"


def give_back(row: HeldRow) -> Outcome:
    """Nothing can have run: the row becomes `new` again, no attempt is spent."""
    return Outcome(
        id=row.id,
        attempt=row.attempt,
        claimed_at=row.claimed_at,
        handler=row.handler,
        status=Status.NEW,
        request_id=row.request_id,
        unique_key=row.unique_key,
    )


def lose(row: HeldRow, why: str, node_id: bytes | None = None) -> Outcome:
    """It may have run. `node_id`: the dead incarnation that claimed it, if it was not this one."""
    status, following = lost(row)
    return Outcome(
        id=row.id,
        attempt=row.attempt,
        claimed_at=row.claimed_at,
        handler=row.handler,
        status=status,
        reason=Reason.LOST,
        success=False,
        error=why,
        next=following,
        node_id=node_id,
        request_id=row.request_id,
        step=row.step,
        name=row.name,
        unique_key=row.unique_key,
    )


def refuse(claim: Claim) -> Outcome:
    """It can never reach a worker."""
    return Outcome(
        id=claim.id,
        attempt=claim.attempt,
        claimed_at=claim.claimed_at,
        handler=claim.handler,
        status=Status.FAILURE,
        reason=Reason.FAILURE,
        success=False,
        error=UNSENDABLE,
        request_id=claim.request_id,
        step=claim.step,
        name=claim.name,
        unique_key=claim.unique_key,
    )


# Settlement: every claim of this incarnation that nobody holds gets an outcome (law 2).
#
# Three rounds of asking make certain what nobody holds: the pools say what they hold; the ingester says
# that all it was ever told is committed; then the store is read. What was claimed since the first question
# is in a pool's hand and left alone.
#

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


class Settlement(PeriodicTask):
    """Law 2 as a state machine; see TRANSITIONS for what follows on what."""

    name = "settlement"

    def __init__(
        self,
        loop: Loop,
        contact: Contact,
        pools: PeerServer[PoolLink],
        outcome_sender: OutcomeSender,
        incarnation: bytes,
        on_settled: Callable[[], None],
    ) -> None:
        super().__init__()
        self._loop = loop
        self._contact = contact
        self._pools = pools
        self._outcome_sender = outcome_sender
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
        rows = self._contact.read(lambda tx: claims.held(tx, self._incarnation))
        outcomes = [
            self._end(row) for row in rows if row.key not in self._held and row.key not in self._claimed
        ]
        if outcomes:
            self._outcome_sender.send_all(outcomes)
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
        for life in self._silent & self._pools.peers.keys():
            self._pools.peers[life].send(Inventory(token=self._token))

    def _look(self) -> None:
        if self._silent is not None and not self._silent:
            self._happen(Event.COLLECTED)

    def _begin_again(self) -> None:
        self._again = True

    def _have_written(self) -> None:
        token = self._token
        dead = self._roster.dead if self._roster is not None else ()
        self._outcome_sender.barrier([pool.life for pool in dead], lambda: self._written(token))

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
    (Phase.WRITING, Event.WRITTEN): (Phase.READING, PeriodicTask.wake),
    (Phase.READING, Event.READ): (Phase.IDLE, Settlement._finish),
}
"""(phase, event) -> next phase and what is done on entering it. A pair that is not here changes nothing."""


SLICE = 500
NODE_DIED = "the node {name} died while it was waiting there or running"


class Rescue(PeriodicTask):
    """Sends an outcome for every claim of a dead node; one slice, then waits until it is committed.

    A node is dead when its lease is over, which only somebody can say who has seen the store answer for
    a whole lease; or when it is one of `formers`, incarnations that held the lock which this one holds.
    """

    name = "rescue"

    def __init__(
        self,
        contact: Contact,
        outcome_sender: OutcomeSender,
        incarnation: bytes,
        formers: frozenset[bytes],
        lease: float,
    ) -> None:
        super().__init__()
        self._contact = contact
        self._outcome_sender = outcome_sender
        self._incarnation = incarnation
        self._formers = formers
        self._lease = lease
        self._replayed = False
        self._writing = False
        self._sent: set[Key] = set()
        self._strays: dict[bytes, float] = {}  # incarnations without a row: when they were first seen
        self._log = get_logger("dispatcher")
        self.rescued = 0

    def spool_is_replayed(self) -> None:
        """What earlier incarnations left in the spool is committed: what they still have is lost."""
        if not self._replayed:
            self._replayed = True
            self.wake()

    def work(self) -> float | None:
        """One slice of one dead node."""
        if self._writing:
            return None
        dead, rows = self._contact.read(self._find)
        if dead is None:
            return jittered(self._lease / 3)
        if rows:
            return self._lose(dead, rows)
        if self._contact.run(lambda tx: nodes.remove(tx, dead.id)):
            self._log.info("dead node removed", node=dead.name)
        return 0.0

    def _find(self, tx: Tx) -> tuple[NodeRecord | None, list[HeldRow]]:
        """A dead node and the first of its claims."""
        for node in nodes.list_(tx):
            if node.id != self._incarnation and self._is_dead(node, tx.now):
                return node, claims.held(tx, node.id, SLICE)
        for stray in nodes.strays(tx):
            if stray != self._incarnation and self._is_stray(stray):
                return NodeRecord(id=stray, name="that has no row any more"), claims.held(tx, stray, SLICE)
        return None, []

    def _is_stray(self, stray: bytes) -> bool:
        """A living node that lost its row has it back within a lease."""
        seen = self._strays.setdefault(stray, time.monotonic())
        return time.monotonic() - seen >= self._lease and self._contact.answers_for >= self._lease

    def _is_dead(self, node: NodeRecord, now: int) -> bool:
        if node.id in self._formers:
            return self._replayed
        return node.lease_until < now and self._contact.answers_for >= self._lease

    def _lose(self, node: NodeRecord, rows: list[HeldRow]) -> float | None:
        fresh = [row for row in rows if row.key not in self._sent]
        self._sent = {row.key for row in rows}
        if not fresh:  # the ingester could not close them; asking faster would not help
            self._sent.clear()
            return jittered(self._lease / 3)
        why = NODE_DIED.format(name=node.name)
        self._outcome_sender.send_all([lose(row, why, node.id) for row in fresh])
        self.rescued += len(fresh)
        self._log.warning("claims of a dead node rescued", node=node.name, claims=len(fresh))
        self._writing = True
        self._outcome_sender.barrier((), self._written)
        return None

    def _written(self) -> None:
        self._writing = False
        self.wake()


LIMIT = 5.0
"""Seconds; after that the row stays, and the next start of this node removes it."""


class Deregistration(PeriodicTask):
    """Runs once, after the last pool is gone; calls `end` when nothing is left to do, or after LIMIT."""

    name = "farewell"

    def __init__(
        self,
        contact: Contact,
        settlement: Settlement,
        outcome_sender: OutcomeSender,
        incarnation: bytes,
        end: Callable[[], None],
    ) -> None:
        super().__init__()
        self._contact = contact
        self._settlement = settlement
        self._outcome_sender = outcome_sender
        self._incarnation = incarnation
        self._end = end
        self._begun = False

    def begin(self, loop: Loop) -> None:
        """Every pool is gone: whatever the store still has of ours is in nobody's hand."""
        if not self._begun:
            self._begun = True
            loop.call_later(LIMIT, self._end)
            self._settlement.need()

    def settled(self) -> None:
        """A settlement is done; its outcomes must be committed before the row may go."""
        if self._begun:
            self._outcome_sender.barrier((), self.wake)

    def work(self) -> None:
        """The row goes only if nothing is `inprogress` for it."""
        if not self._contact.run(lambda tx: nodes.remove(tx, self._incarnation)):
            get_logger("dispatcher").warning(
                "claims are left, the next start of this node takes care of them"
            )
        self._end()
