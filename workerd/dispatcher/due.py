"""Rows that have become due: `scheduled` becomes `new`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from workerd.dispatcher.agenda import Duty
from workerd.dispatcher.contact import Contact
from workerd.store import jobs

SLICE = 500
SHORTEST = 0.002


class Due(Duty):
    """Makes due rows `new`, in slices, and sleeps no longer than until the next is due."""

    name = "due rows"

    def __init__(self, contact: Contact, announce: Callable[[Iterable[str]], None]) -> None:
        super().__init__()
        self._contact = contact
        self._announce = announce
        self.promoted = 0
        self.next_due: int | None = None
        self._looked = 0.0

    def work(self) -> float | None:
        """One slice."""
        self._looked = time.monotonic()
        done = self._contact.run(lambda tx: jobs.promote_due(tx, SLICE))
        self.next_due = done.next_due
        if done.count:
            self.promoted += done.count
            self._announce(done.handlers)
        if done.count >= SLICE:
            return 0.0
        if done.next_due is None:
            return None
        # Not 0: a due row that another node holds locked is not ours to wait for in a tight loop.
        return max(SHORTEST, self._contact.seconds_until(done.next_due))

    def seen(self, next_due: int | None) -> None:
        """The first scheduled row is due then; it may be one that nobody has foretold."""
        self.next_due = next_due
        if next_due is not None:
            self.wake(self._contact.seconds_until(next_due))

    def foretold(self, due: int) -> None:
        """A row was scheduled for this store time; looked at then, if no look comes before."""
        if self._contact.knows_time:  # else the first look is still to come
            # Anybody can say so, again and again.
            rest = self._looked + SHORTEST - time.monotonic()
            self.wake(max(rest, self._contact.seconds_until(due)))
