"""How many jobs of each handler came and ended within the last minute, second by second."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable

from workerd.clock import SECOND
from workerd.job import ENDED, Status
from workerd.outcome import Outcome

SPAN_S = 60


class RecentJobs:
    """Counts outcomes that took effect, by handler and second; seconds are of the monotonic clock.

    A job comes when it becomes due for the first time, which is known when its first attempt has ended. It
    ends once, with its last attempt.
    """

    def __init__(self) -> None:
        self._came: dict[int, Counter[str]] = {}
        self._ended: dict[int, Counter[str]] = {}

    def recorded(self, outcomes: Iterable[Outcome], now: int) -> None:
        """These took effect at the store time `now`, microseconds."""
        second = int(time.monotonic())
        self._forget(second)
        came, ended = self._came, self._ended
        for outcome in outcomes:
            status = outcome.status
            if status in ENDED:
                counts = ended.get(second)
                if counts is None:
                    counts = ended[second] = Counter()
                counts[outcome.handler] += 1
            if outcome.attempt == 1 and status is not Status.NEW:
                run_at = outcome.claimed_at if outcome.run_at is None else outcome.run_at
                age_s = max(0, now - run_at) // SECOND
                if age_s < SPAN_S:
                    counts = came.get(second - age_s)
                    if counts is None:
                        counts = came[second - age_s] = Counter()
                    counts[outcome.handler] += 1

    def _forget(self, second: int) -> None:
        for counts in (self._came, self._ended):
            for old in [one for one in counts if one <= second - SPAN_S]:
                del counts[old]

    def by_handler(self) -> dict[str, tuple[int, int]]:
        """The jobs that came and that ended within the last minute, by handler."""
        self._forget(int(time.monotonic()))
        came, ended = _sum(self._came), _sum(self._ended)
        return {name: (came[name], ended[name]) for name in sorted(came.keys() | ended.keys())}


def _sum(by_second: dict[int, Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for counts in by_second.values():
        total.update(counts)
    return total
