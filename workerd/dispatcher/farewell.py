"""The dispatcher's last words: settle what is left, then take the node's row out of the store."""

from __future__ import annotations

from collections.abc import Callable

from workerd.dispatcher.agenda import Duty
from workerd.dispatcher.contact import Contact
from workerd.dispatcher.reports import Reports
from workerd.dispatcher.settlement import Settlement
from workerd.log import get_logger
from workerd.process.loop import Loop
from workerd.store import nodes

LIMIT = 5.0
"""Seconds; after that the row stays, and the next start of this node removes it."""


class Farewell(Duty):
    """Runs once, after the last pool is gone; calls `end` when nothing is left to do, or after LIMIT."""

    name = "farewell"

    def __init__(
        self,
        contact: Contact,
        settlement: Settlement,
        reports: Reports,
        incarnation: bytes,
        end: Callable[[], None],
    ) -> None:
        super().__init__()
        self._contact = contact
        self._settlement = settlement
        self._reports = reports
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
            self._reports.barrier((), self.wake)

    def work(self) -> None:
        """The row goes only if nothing is `inprogress` for it."""
        if not self._contact.run(lambda tx: nodes.remove(tx, self._incarnation)):
            get_logger("dispatcher").warning(
                "claims are left, the next start of this node takes care of them"
            )
        self._end()
