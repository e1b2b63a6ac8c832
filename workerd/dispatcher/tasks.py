"""Periodic tasks and the runner that does one a turn of the loop."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence

from workerd.errors import StoreAway, StoreBusy, StoreError
from workerd.runtime.loop import Loop, Timer

# What the dispatcher has to do, one duty a turn of the loop.
#
# Every duty is one short transaction. Between two of them the loop turns, so that channels are read and
# Beats leave however slow the store is, and no duty can starve another: the one that is due longest
# goes first.
#

NEVER = math.inf
BUSY_PAUSE = 1.0
"""Seconds before a duty that other transactions were in the way of is tried again."""
REFUSED_PAUSE = 5.0
"""Seconds before a duty whose statement the store refused is tried again."""


def jittered(seconds: float, by: float = 0.1) -> float:
    """`seconds` give or take 10 %, so that nodes that started together do not poll together."""
    return seconds * random.uniform(1 - by, 1 + by)


class PeriodicTask:
    """One thing to do again and again. `due`: monotonic seconds."""

    name = ""

    def __init__(self) -> None:
        self.due = NEVER
        self.agenda: TaskRunner | None = None

    def work(self) -> float | None:
        """Do one slice; returns the seconds until the next, or None: when `wake` is called."""
        raise NotImplementedError

    def wake(self, delay: float = 0.0) -> None:
        """Work in `delay` seconds, or sooner if it is due sooner; may be called from `work`."""
        when = time.monotonic() + delay
        if when < self.due:
            self.due = when
            if self.agenda is not None:
                self.agenda.arm()


class TaskRunner:
    """Runs the duties. While `blocked` says so, only the `keeper` runs: it finds the store again.

    `on_refused` is told of a duty whose statement the store refused, and with None when it works again.
    """

    def __init__(
        self,
        loop: Loop,
        keeper: PeriodicTask,
        duties: Sequence[PeriodicTask],
        blocked: Callable[[], bool],
        on_away: Callable[[], None],
        on_refused: Callable[[PeriodicTask, Exception | None], None],
    ) -> None:
        self._loop = loop
        self._keeper = keeper
        self._duties = (keeper, *duties)
        self._blocked = blocked
        self._on_away = on_away
        self._on_refused = on_refused
        self._refused: set[PeriodicTask] = set()
        self._timer: Timer | None = None
        self._armed_for = NEVER
        self._stopped = False
        for duty in self._duties:
            duty.agenda = self

    def stop(self) -> None:
        """Do nothing more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def arm(self) -> None:
        """Set the timer for what is due first."""
        if self._stopped:
            return
        when = self._first().due
        if self._timer is not None:
            if when == self._armed_for:
                return
            self._timer.cancel()
            self._timer = None
        if when < NEVER:
            self._armed_for = when
            # Never in the past: that would be this turn still, and the loop is to turn first.
            self._timer = self._loop.call_at(max(when, time.monotonic()), self._turn)

    def _first(self) -> PeriodicTask:
        now = time.monotonic()
        if self._keeper.due <= now or self._blocked():
            return self._keeper
        return min(self._duties, key=_due)

    def _turn(self) -> None:
        self._timer = None
        duty = self._first()
        if duty.due <= time.monotonic():
            duty.due = NEVER
            self._do(duty)
        self.arm()

    def _do(self, duty: PeriodicTask) -> None:
        try:
            delay = duty.work()
        except StoreBusy as error:
            self._note_refused(duty, error)
            delay = jittered(BUSY_PAUSE)
        except StoreAway:
            self._on_away()
            delay = 0.0  # as soon as the keeper has found the store again
        except (StoreError, ValueError) as error:  # ValueError: a row that cannot be read
            self._note_refused(duty, error)
            delay = REFUSED_PAUSE
        else:
            if duty in self._refused:
                self._refused.discard(duty)
                self._on_refused(duty, None)
        if delay is not None:
            duty.wake(delay)

    def _note_refused(self, duty: PeriodicTask, error: Exception) -> None:
        self._refused.add(duty)
        self._on_refused(duty, error)


def _due(duty: PeriodicTask) -> float:
    return duty.due
