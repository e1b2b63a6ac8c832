"""The dispatcher's look at the store at every poll, for all who want to know something of it."""

from __future__ import annotations

from workerd.dispatcher.agenda import Duty, jittered
from workerd.dispatcher.claims import Claimer
from workerd.dispatcher.contact import Contact
from workerd.dispatcher.due import Due
from workerd.dispatcher.orders import Orders
from workerd.store.looking import look


class Looks(Duty):
    """Asks once for all of them: a node that has nothing to do costs its server one statement a poll."""

    name = "looks"

    def __init__(
        self, contact: Contact, incarnation: bytes, poll: float, claimer: Claimer, orders: Orders, due: Due
    ) -> None:
        super().__init__()
        self._contact = contact
        self._incarnation = incarnation
        self._poll = poll
        self._claimer = claimer
        self._orders = orders
        self._due = due

    def work(self) -> float:
        """One look; what it brought is passed on."""
        wanted = sorted(self._claimer.unknown())
        sight = self._contact.look(lambda tx: look(tx, self._incarnation, wanted))
        # Pauses first: for what is paused nothing is claimed.
        self._orders.heard(sight.cancels, sight.paused)
        self._due.seen(sight.next_due)
        if wanted:
            self._claimer.found(sight.handlers)
        return jittered(self._poll)
