"""When work may be picked up, where the configuration sets times for it."""

from __future__ import annotations

from workerd.schedule import SET_BACK_US, Cron


class PickupWindow:
    """Opens at the ticks of a cron expression and stays open until everything waiting was taken.

    With an empty expression it is always open. Times are store times, microseconds.

    `opens_at`: the next tick, None without an expression or before `is_open` was first called.
    """

    def __init__(self, expression: str) -> None:
        self._cron = Cron(expression) if expression else None
        self._open = self._cron is None
        self._asked_at = 0
        self.opens_at: int | None = None

    def is_open(self, now: int) -> bool:
        """Whether work may be taken at `now`; a tick that has come opens the window."""
        if self._cron is not None:
            if self.opens_at is None or now < self._asked_at - SET_BACK_US:
                self.opens_at = self._cron.next(now)
            elif self.opens_at <= now:
                self._open = True
                self.opens_at = self._cron.next(now)
            self._asked_at = now
        return self._open

    def drained(self) -> None:
        """Nothing is left to take: closed until the next tick."""
        if self._cron is not None:
            self._open = False
