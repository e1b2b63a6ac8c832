"""When a schedule fires: cron expressions in a timezone, and the treatment of missed ticks.

A tick is a store time in microseconds, always a whole second. Nothing here does I/O.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from workerd.clock import LATEST, SECOND
from workerd.config.schedule_config import Misfire
from workerd.errors import InvalidValue

MAX_MISSED_TICKS = 100
"""With `misfire = "all"`, only the newest of so many missed ticks fire."""

SET_BACK_US = 2 * SECOND
"""A clock that shows so much less than before was set back."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_WINDOW = 60 * SECOND


class Cron:
    """A cron expression (five fields, or six of which the first is seconds) in a timezone.

    Raises InvalidValue for a wrong expression or an unknown timezone.
    """

    def __init__(self, expression: str, timezone: str = "UTC") -> None:
        self.expression = expression
        self.timezone = timezone
        try:
            self._zone = UTC if timezone == "UTC" else ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise InvalidValue(
                f"expected the name of a timezone such as 'Europe/Berlin', got {timezone!r}"
            ) from None
        try:
            CronSim(expression, _EPOCH)
        except CronSimError as error:
            raise InvalidValue(
                f"expected a cron expression of five or six fields such as '*/5 * * * *', "
                f"got {expression!r} ({str(error).lower()})"
            ) from None

    def after(self, moment: int) -> Iterator[int]:
        """The ticks later than `moment`, in order; ends if fifty years, or the calendar, have no more."""
        # A row may hold any moment.
        with contextlib.suppress(OverflowError):
            yield from self._after(moment)

    def _after(self, moment: int) -> Iterator[int]:
        local = (_EPOCH + timedelta(microseconds=moment)).astimezone(self._zone)
        for tick in CronSim(self.expression, local):
            us = (tick.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)
            if us > LATEST:
                return
            # From a start within the hour repeated in autumn, ticks of its first pass come again.
            if us > moment:
                yield us

    def next(self, moment: int) -> int | None:
        """The first tick later than `moment`, or None if there will be none."""
        return next(self.after(moment), None)

    def between(self, after: int, until: int, newest: int) -> list[int]:
        """The last `newest` ticks later than `after` and not later than `until`, in order.

        Searches in growing windows, so that a year costs no more than a minute.
        """
        window = _FIRST_WINDOW
        while True:
            start = max(after, until - window)
            found: list[int] = []
            for tick in self.after(start):
                if tick > until:
                    break
                found.append(tick)
            if start == after or len(found) >= newest:
                return found[-newest:]
            window *= 4


def voided(cron: Cron, last_tick: int | None, now: int) -> bool:
    """Whether a last tick in the future does not count: the clock was set back by more than a period.

    Else every tick would be taken for processed until the clock is there again. A tick that lies ahead by
    less than a period is not fired a second time: the next one comes hardly later than usual.
    """
    if last_tick is None or last_tick <= now:
        return False
    following = cron.next(last_tick)
    return following is None or last_tick - now > following - last_tick


class Ticks:
    """Which ticks of one schedule fire now.

    A tick is missed if this process did not watch the schedule when it came: before its start, or while it
    was blocked for longer than `patience` (microseconds). `misfire` decides which missed ticks fire; all
    others fire. When the clock is set back the schedule goes on from there.
    """

    def __init__(self, cron: Cron, misfire: Misfire, patience: int) -> None:
        self.cron = cron
        self._misfire = misfire
        self._patience = patience
        self._watched: int | None = None
        self._floor = 0  # ticks up to here are processed
        self._next: int | None = 0

    def watch(self, now: int) -> bool:
        """Whether to call `due` now; to be called often, whatever the schedule."""
        if self._next is not None and self._next <= now:
            return True
        if self._watched is not None and now < self._watched - SET_BACK_US:
            self._floor = now
            self._next = self.cron.next(now)
        self._watched = now
        return False

    def misses(self, now: int) -> bool:
        """Whether ticks that `due` returns now were not watched when they came."""
        return self._watched is None or now - self._watched > self._patience

    def due(self, last_tick: int | None, now: int, held_until: int = 0) -> list[int]:
        """The ticks after `last_tick` (the last that fired anywhere) to fire at `now`, oldest first.

        Each tick is returned once, unless it is passed to `hold`. `held_until`: ticks up to then were not
        missed: another process held them.
        """
        misses, self._watched = self.misses(now), now
        floor, self._floor = min(self._floor, now), now
        if voided(self.cron, last_tick, now):
            last_tick = None
        self._next = self.cron.next(now)
        if not misses:
            return self.cron.between(max(floor, last_tick or 0), now, MAX_MISSED_TICKS)
        if last_tick is None:
            return []  # a schedule starts when it is first seen
        pending = self.cron.between(last_tick, now, MAX_MISSED_TICKS)
        held = [tick for tick in pending if tick <= held_until]
        return held + self._made_up(pending[len(held) :], now)

    def _made_up(self, missed: list[int], now: int) -> list[int]:
        recent = [tick for tick in missed if now - tick <= self._patience]
        match self._misfire:
            case "all":
                return missed
            case "once":
                return recent or missed[-1:]
            case "skip":
                return recent

    def hold(self, tick: int, until: int) -> None:
        """Return `tick`, which could not fire yet, and those after it again from `until` on."""
        self._floor = min(self._floor, tick - 1)
        self._next = until if self._next is None else min(self._next, until)

    @property
    def next(self) -> int | None:
        """When to call `due` again, None if never."""
        return self._next
