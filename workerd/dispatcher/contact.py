"""The dispatcher's line to the store: whether it answers, since when, and what time it is there."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from workerd.clock import SECOND
from workerd.errors import CommitUnknown, StoreAway, StoreBusy
from workerd.metrics import StoreErrors
from workerd.store import Store, Tx

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
