"""Rates against a reference: no window has more starts than allowed, and nothing allowed is withheld."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerd.rate_limit import MAX_SKEW_US, Rate, given_back

RATES = st.builds(Rate, st.integers(1, 1000), st.integers(1, 31 * 86_400_000_000), st.integers(1, 1000))
STEPS = st.lists(st.tuples(st.integers(0, 10**8), st.integers(1, 50)), min_size=1, max_size=40)


def run(rate: Rate, steps: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """When how many started, where after each pause so many were wanted."""
    now, tat = 10**15, None
    started = []
    for pause, wanted in steps:
        now += pause
        count = min(wanted, rate.fitting(tat, now))
        if count:
            tat = rate.taken(tat, now, count)
            started.append((now, count))
    return started


@given(RATES, STEPS)
def test_no_window_has_more_than_rate_and_burst(rate: Rate, steps: list[tuple[int, int]]) -> None:
    """Every window from one start to another."""
    started = run(rate, steps)
    for first in range(len(started)):
        total = 0
        for moment, count in started[first:]:
            total += count
            window = moment - started[first][0]
            assert total * rate.period_us <= rate.count * window + rate.burst * rate.period_us


@given(RATES, STEPS)
def test_what_a_bucket_of_tokens_allows_fits(rate: Rate, steps: list[tuple[int, int]]) -> None:
    """A reference in exact numbers; rounding up may cost less than one start."""
    now, tokens, tat = 10**15, float(rate.burst), None
    last = now
    for pause, wanted in steps:
        now += pause
        tokens = min(rate.burst, tokens + (now - last) * rate.count / rate.period_us)
        last = now
        count = min(wanted, rate.fitting(tat, now))
        assert count >= min(wanted, int(tokens - 1e-6)) - max(1, 50 * rate.count // rate.period_us)
        assert count <= tokens + 1e-6
        tokens -= count
        tat = rate.taken(tat, now, count) if count else tat


class _Bucket:
    """Starts that are claimed, of which some are released before they began."""

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self.now = 10**15
        self.tat: int | None = None
        self.claimed: list[int] = []

    def claim(self, wanted: int) -> None:
        count = min(wanted, self.rate.fitting(self.tat, self.now))
        if count:
            self.tat = self.rate.taken(self.tat, self.now, count)
            self.claimed += [self.now] * count

    def release(self, places: list[int]) -> None:
        """Those at these places of the list, together."""
        chosen = {place % len(self.claimed) for place in places} if self.claimed else set()
        cost = self.rate.cost(1)
        if self.tat is not None and chosen:
            self.tat -= given_back([(self.claimed[n], cost) for n in chosen], self.now)
        self.claimed = [at for n, at in enumerate(self.claimed) if n not in chosen]


SMALL_RATES = st.builds(Rate, st.integers(1, 2), st.just(1000), st.integers(1, 3))
_PAUSES = st.sampled_from([0, 50, 500, 1000, 1100])
EVENTS = st.lists(
    st.tuples(_PAUSES, st.integers(0, 3), st.lists(st.integers(0, 9), max_size=2)), min_size=3, max_size=20
)


@given(SMALL_RATES, EVENTS)
def test_what_is_released_leaves_no_window_with_more(
    rate: Rate, events: list[tuple[int, int, list[int]]]
) -> None:
    """Some are released at any time after their claims, in any order, while others start."""
    bucket = _Bucket(rate)
    for pause, wanted, released in events:
        bucket.now += pause
        bucket.release(released)
        bucket.claim(wanted)
    for first, begin in enumerate(bucket.claimed):
        for last in range(first, len(bucket.claimed)):
            window = bucket.claimed[last] - begin
            assert (last - first + 1) * rate.period_us <= rate.count * window + rate.burst * rate.period_us


def test_starts_that_are_released_together_are_given_back_but_for_what_came_in_since() -> None:
    """Of a bucket that was full and would be full: all of it."""
    rate = Rate(10, 60_000_000, 10)
    tat = rate.taken(None, 10**15, 10)
    now = 10**15 + 1_000_000
    tat -= given_back([(10**15, rate.cost(1))] * 10, now)
    assert rate.fitting(tat, now) == 10


def test_one_start_is_given_back_no_longer_than_its_token_would_take_to_come_in() -> None:
    """The bucket would have been full meanwhile."""
    assert [given_back([(1000, 50)], now) for now in (900, 1000, 1010, 1050, 2000)] == [50, 50, 40, 0, 0]
    assert given_back([], 1000) == 0


@given(RATES, st.integers(0, 10**6))
def test_one_start_fits_at_the_time_that_is_told(rate: Rate, pause: int) -> None:
    """And not a microsecond before."""
    now = 10**15
    tat = rate.taken(None, now, rate.burst)
    assert rate.fitting(tat, now) == 0
    moment = rate.next_at(tat, now + min(pause, rate.cost(1) - 1))
    assert rate.fitting(tat, moment) >= 1
    assert rate.fitting(tat, moment - 1) == 0 or rate.cost(1) == 1


def test_a_full_rate_is_used_while_work_waits() -> None:
    """At least 95 % of it, whenever one looks each millisecond."""
    rate = Rate(100, 1_000_000, 10)
    started = sum(count for _, count in run(rate, [(1000, 50)] * 10_000))
    assert 0.95 * 1000 <= started <= 1010


def test_a_clock_that_is_set_back_does_not_stop_starts() -> None:
    """The bucket is empty at most, once that is stored."""
    rate = Rate(10, 1_000_000, 10)
    tat = rate.taken(None, 10**15, 10)
    earlier = 10**15 - 3600 * 1_000_000
    assert rate.fitting(tat, earlier) == 0
    corrected = rate.corrected(tat, earlier)
    assert rate.next_at(corrected, earlier) == earlier + 100_000
    assert rate.fitting(corrected, earlier + 100_000) == 1


@pytest.mark.parametrize("ahead_us", [0, 1_000, MAX_SKEW_US])
def test_what_another_clock_wrote_is_not_corrected(ahead_us: int) -> None:
    """Servers of a cluster that corrected each other would give out what lies between their clocks."""
    rate = Rate(10, 1_000_000, 10)
    tat = rate.taken(None, 10**15 + ahead_us, 10)
    assert rate.corrected(tat, 10**15) is None
    moment = rate.next_at(tat, 10**15)
    assert moment == 10**15 + ahead_us + 100_000
    assert rate.fitting(tat, moment) == 1


def test_the_lower_of_two_rates() -> None:
    """By starts per time; the smaller burst of both."""
    assert Rate(5, 1_000_000, 9).lower(Rate(100, 60_000_000, 100)) == Rate(100, 60_000_000, 9)
