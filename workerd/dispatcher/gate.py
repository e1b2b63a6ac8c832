"""When this node picks work up: at once, or at set times only (`[pickup]`)."""

from __future__ import annotations

from workerd.schedule import Cron


class Gate:
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
