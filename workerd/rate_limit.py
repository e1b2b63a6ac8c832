"""Rates by the generic cell rate algorithm: a bucket of tokens kept as one moment in time. Pure.

The moment, `tat` (theoretical arrival time), is when the bucket will be full again. Each start moves it by
`period / count`; it may be at most `burst` starts ahead of now. So a window of any length has at most
`rate x window + burst` starts. Times and periods are microseconds of the store's clock.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

MAX_SKEW_US = 10_000_000
"""By which clocks of a cluster's servers may differ: if they corrected each other, more would start."""


class Rate(msgspec.Struct, frozen=True):
    """At most `count` starts per `period_us` in the long run, and `burst` at once."""

    count: int
    period_us: int
    burst: int

    def cost(self, starts: int) -> int:
        """By how much so many starts move `tat`; rounded up, so that rounding never allows more."""
        return -(-starts * self.period_us // self.count)

    def fitting(self, tat: int | None, now: int) -> int:
        """How many starts fit now."""
        room = now + self.cost(self.burst) - self._begin(tat, now)
        return max(0, min(self.burst, room * self.count // self.period_us))

    def taken(self, tat: int | None, now: int, starts: int) -> int:
        """The new `tat` after so many starts, which must fit."""
        return self._begin(tat, now) + self.cost(starts)

    def next_at(self, tat: int | None, now: int) -> int:
        """When one start fits, `now` if it does already."""
        return max(now, self._begin(tat, now) + self.cost(1) - self.cost(self.burst))

    def corrected(self, tat: int | None, now: int) -> int | None:
        """`tat` as it is to be stored, if it is much further ahead than a full burst; else None.

        The clock was set back, or rate or burst were changed.
        """
        most = now + self.cost(self.burst)
        return most if tat is not None and tat > most + MAX_SKEW_US else None

    def _begin(self, tat: int | None, now: int) -> int:
        return now if tat is None else max(now, tat)

    def with_burst(self, burst: int) -> Rate:
        """The same rate with another burst."""
        return Rate(self.count, self.period_us, burst)

    def lower(self, other: Rate) -> Rate:
        """The slower of the two, with the smaller burst."""
        slower = self if self.count * other.period_us <= other.count * self.period_us else other
        return slower.with_burst(min(self.burst, other.burst))


def given_back(starts: Iterable[tuple[int, int]], now: int) -> int:
    """By how much `tat` may be moved back for starts that were claimed and then did not happen.

    `starts`: when each was claimed, and by how much it moved `tat`. Without them the bucket may have been
    full at any time since, and then nothing more came in: at most what came in since their claims is lost,
    once for all that are released together.
    """
    most = moved = 0
    for claimed_at, cost in sorted(starts, reverse=True):
        moved += cost
        most = max(most, moved - max(0, now - claimed_at))
    return most
