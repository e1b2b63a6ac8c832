"""The node's lease: registered, renewed, given up, deregistered; and whether the store answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from workerd.clock import SECOND
from workerd.dispatcher.tasks import PeriodicTask, jittered
from workerd.errors import CommitUnknown, NodeNameTaken, StoreAway, StoreBusy, StoreError, WrongVersion
from workerd.log import get_logger
from workerd.metrics.families import StoreErrors
from workerd.runtime.loop import Loop, Timer
from workerd.store import nodes
from workerd.store.base import Store, Tx
from workerd.store.nodes import NodeRecord

T = TypeVar("T")


class Contact:
    """Runs transactions and keeps the books that law 8 asks for.

    `away` is the error since which the store has not answered, None while it answers. `gap`: seconds
    without an answer after which nobody may say that the store answered all the time.
    """

    def __init__(self, store: Store, gap: float) -> None:
        self.store = store
        self.away: StoreAway | None = None
        self.changed_at = time.monotonic()
        self.unknown_commits = 0
        self._gap = gap
        self._errors = StoreErrors()
        self._answered: float | None = None
        self._gapless_since = 0.0
        self._offset_us: int | None = None

    def run(self, transaction: Callable[[Tx], T]) -> T:
        """One whole transaction. Raises StoreAway, CommitUnknown, StoreRefused."""
        return self._ask(self.store.run, transaction)

    def read(self, transaction: Callable[[Tx], T]) -> T:
        """The same for a transaction that only reads."""
        return self._ask(self.store.read, transaction)

    def look(self, statement: Callable[[Tx], T]) -> T:
        """The same for one statement that only reads."""
        return self._ask(lambda asked: self.store.alone(asked, write=False), statement)

    def call(self, function: Callable[[], T]) -> T:
        """The same for what the store does outside of our transactions."""
        return self._ask(lambda asked: asked(), function)

    def _ask(self, how: Callable[[Callable[..., T]], T], what: Callable[..., T]) -> T:
        try:
            value = how(what)
        except StoreBusy:
            raise
        except StoreAway as error:
            self.unknown_commits += isinstance(error, CommitUnknown)
            self.lose(error)
            raise
        finally:
            self._errors.write(self.store.stats.errors)
        self._note_answer()
        return value

    def lose(self, error: StoreAway, since: float | None = None) -> None:
        """The store is away, since now if it was not already; `since`: since then."""
        self._answered = None
        if since is not None or self.away is None:
            self.changed_at = time.monotonic() if since is None else since
        self.away = error

    def _note_answer(self) -> None:
        now = time.monotonic()
        if self._answered is None or now - self._answered > self._gap:
            self._gapless_since = now
        self._answered = now
        if self.away is not None:
            self.away = None
            self.changed_at = now

    @property
    def answers_for(self) -> float:
        """Seconds for which the store has been seen to answer without a gap."""
        if self._answered is None or time.monotonic() - self._answered > self._gap:
            return 0.0
        return self._answered - self._gapless_since

    # -- the store's clock

    def set_clock(self, store_us: int, mono_ns: int) -> None:
        """The store said `store_us` at monotonic `mono_ns`."""
        self._offset_us = store_us - mono_ns // 1000

    @property
    def knows_time(self) -> bool:
        """Whether the store has told its time at all."""
        return self._offset_us is not None

    def at(self, mono_ns: int) -> int:
        """The store's time at a monotonic moment of this machine; `set_clock` must have been called."""
        assert self._offset_us is not None
        return mono_ns // 1000 + self._offset_us

    def now(self) -> int:
        """The store's time, without asking it."""
        return self.at(time.monotonic_ns())

    def seconds_until(self, store_us: int) -> float:
        """How long it is until `store_us`; 0 if that is over."""
        return max(0.0, (store_us - self.now()) / SECOND)


GIVE_UP = 0.8
"""Part of the lease after which nothing is started unless it was renewed: the rest is on its way."""
HERITAGE = 0.1
"""Part of the lease that a restarted dispatcher still trusts in what the one before it renewed."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 0.5
"""Seconds between attempts to find the store again."""
NOT_ADMITTED_PAUSE = 2.0
"""Seconds before asking again when the schema or the node's name is wrong: a person has to act first."""


class Lease(PeriodicTask):
    """Registers this incarnation, renews its lease, and finds the store again when it is away.

    `held`: whether work may be started. `obstacle`: the error that keeps this node from being admitted
    (wrong schema, name taken), which no waiting mends. `on_change` is called when either changed, and
    when the store went away or came back.
    """

    name = "lease"

    def __init__(
        self,
        loop: Loop,
        contact: Contact,
        node: NodeRecord,
        formers: list[bytes],
        seconds: float,
        on_change: Callable[[], None],
    ) -> None:
        super().__init__()
        self._loop = loop
        self._contact = contact
        self._node = node
        self._formers = formers
        self._seconds = seconds
        self._on_change = on_change
        self._log = get_logger("dispatcher")
        self._renewed = time.monotonic() - (GIVE_UP - HERITAGE) * seconds
        self._pause = FIRST_PAUSE
        self._timer: Timer | None = None
        self.registered = False
        self.ever_registered = False
        self.held = True
        self.obstacle: StoreError | NodeNameTaken | None = None

    @property
    def left(self) -> float:
        """Seconds for which the lease is certain."""
        return max(0.0, self.seconds_left) if self.registered else 0.0

    @property
    def seconds_left(self) -> float:
        """Seconds until it runs out, as far as this process knows; negative: it has."""
        return self._renewed + self._seconds - time.monotonic()

    def start(self) -> None:
        """Begin: at once with the store, and from now on let go in time."""
        self._watch()
        self.wake()

    def _watch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._renewed + GIVE_UP * self._seconds, self._let_go)

    def _let_go(self) -> None:
        """Nobody may count on the lease any more."""
        if self.held and time.monotonic() >= self._renewed + GIVE_UP * self._seconds:
            self.held = False
            self._log.warning("lease not renewed, starting nothing until it is")
            self._on_change()

    def work(self) -> float:
        """Renew, or register, or find out whether the store is back."""
        self._let_go()  # a process that was stopped for long wakes up here
        was_away, since = self._contact.away, self._contact.changed_at
        try:
            if was_away is not None or not self.registered:
                self._admit()
            now = self._renew()
        except (StoreAway, CommitUnknown) as error:
            # Who answers questions but does not let the lease be renewed is away as well.
            self._contact.lose(error, since if was_away is not None else None)
            self._note_away(was_away, error)
            return self._backed_off()
        except (WrongVersion, NodeNameTaken) as error:
            self._note_obstacle(error)
            return NOT_ADMITTED_PAUSE
        self._contact.set_clock(now, time.monotonic_ns())
        self._note_held(was_away)
        return self._seconds / 3

    def _admit(self) -> None:
        """The schema first: a store that was away may be another one when it is back."""
        store = self._contact.store
        if store.engine == "sqlite" and self._contact.call(store.is_empty):
            self._contact.call(store.migrate)
            self._log.info("embedded store created", store=store.shown)
        self._contact.call(store.check_version)

    def _renew(self) -> int:
        """The store's time at which the lease was renewed."""
        began = time.monotonic()
        if self.registered:
            now = self._contact.run(lambda tx: nodes.renew(tx, self._node.id, self._seconds))
        else:
            now = None
        if now is None:  # not registered yet, or somebody took our row away as that of a dead node
            now = self._contact.run(
                lambda tx: nodes.register(tx, self._node, self._seconds, former=self._formers)
            )
        self._renewed = began  # the lease counts from before the question, not from after the answer
        self._watch()
        return now

    def _note_held(self, was_away: StoreAway | None) -> None:
        changed = was_away is not None or not self.registered or not self.held or self.obstacle is not None
        if was_away is not None:
            self._log.info("the store answers again")
        if not self.registered:
            self._log.info("registered", node=self._node.name, lease=f"{self._seconds:g} s")
        elif not self.held:
            self._log.info("lease renewed")
        self.registered = self.ever_registered = self.held = True
        self.obstacle = None
        self._pause = FIRST_PAUSE
        if changed:
            self._on_change()

    def _note_away(self, was_away: StoreAway | None, error: StoreAway) -> None:
        self.obstacle = None
        if was_away is None:
            self._log.warning("the store does not answer, trying again until it does", error=str(error))
            self._on_change()

    def _note_obstacle(self, error: StoreError | NodeNameTaken) -> None:
        changed = str(self.obstacle) != str(error)
        self.obstacle = error
        self.registered = False
        if changed:
            self._log.error("this node may not work", error=str(error))
            self._on_change()

    def _backed_off(self) -> float:
        pause, self._pause = self._pause, min(self._pause * 2, LONGEST_PAUSE)
        return jittered(pause, 0.25)

    def lost_contact(self) -> None:
        """Another duty found the store away: begin to look for it."""
        self._note_away(None, self._contact.away or StoreAway())
        self.wake(jittered(FIRST_PAUSE, 0.25))
