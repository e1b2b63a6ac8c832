"""When schedules fire, and what becomes of the ticks that nobody saw."""

from __future__ import annotations

from itertools import islice

import pytest

from workerd import clock
from workerd.clock import SECOND, from_rfc3339, to_rfc3339
from workerd.config.schedule_config import Misfire
from workerd.schedule import Cron, Ticks, voided


def at(text: str) -> int:
    return from_rfc3339(text)


def shown(ticks: list[int]) -> list[str]:
    return [to_rfc3339(t)[:19] for t in ticks]


def test_five_fields_tick_at_full_minutes() -> None:
    """Ticks are later than the moment asked from, even when that is a tick itself."""
    ticks = Cron("*/5 * * * *").after(at("2026-03-01T12:00:00Z"))
    assert shown(list(islice(ticks, 2))) == ["2026-03-01T12:05:00", "2026-03-01T12:10:00"]


def test_six_fields_begin_with_seconds() -> None:
    """With six fields the first is seconds."""
    ticks = Cron("*/20 * * * * *").after(at("2026-03-01T12:00:00.5Z"))
    assert shown(list(islice(ticks, 3))) == [
        "2026-03-01T12:00:20",
        "2026-03-01T12:00:40",
        "2026-03-01T12:01:00",
    ]


def test_an_hour_that_does_not_exist_fires_after_it() -> None:
    """In spring a tick within the missing hour fires when the hour would have ended."""
    ticks = Cron("30 2 * * *", "Europe/Berlin").after(at("2026-03-28T12:00:00Z"))
    assert shown(list(islice(ticks, 2))) == ["2026-03-29T01:00:00", "2026-03-30T00:30:00"]


@pytest.mark.parametrize("start", ["2026-10-24T12:00:00Z", "2026-10-25T00:10:00Z"])
def test_an_hour_that_comes_twice_fires_once(start: str) -> None:
    """In autumn a tick within the repeated hour fires in its first pass only."""
    ticks = Cron("30 2 * * *", "Europe/Berlin").after(at(start))
    assert shown(list(islice(ticks, 2))) == ["2026-10-25T00:30:00", "2026-10-26T01:30:00"]


def test_no_tick_is_given_before_the_moment_in_the_repeated_hour() -> None:
    """From within the second pass of a repeated hour, no time of the first pass is returned again."""
    moment = at("2026-10-25T01:10:00Z")
    ticks = list(islice(Cron("0,30 2,3 * * *", "Europe/Berlin").after(moment), 3))
    assert len(ticks) == 3
    assert all(t > moment for t in ticks)


@pytest.mark.parametrize(
    ("expression", "timezone", "named"),
    [
        ("* * * *", "UTC", "* * * *"),
        ("61 * * * *", "UTC", "minute"),
        ("0 0 31 2 *", "UTC", "day-of-month"),
        ("* * * * *", "Mars/Olympus", "Mars/Olympus"),
        ("* * * * *", "../../etc/passwd", "timezone"),
    ],
)
def test_the_error_is_named(expression: str, timezone: str, named: str) -> None:
    """A wrong expression or timezone is refused with what was expected."""
    with pytest.raises(ValueError, match="expected") as caught:
        Cron(expression, timezone)
    assert named in str(caught.value)


def test_a_year_of_seconds_gives_the_newest_hundred() -> None:
    """Looking back over a year takes the newest ticks without counting through all."""
    until = at("2026-12-31T00:00:00.25Z")
    found = Cron("* * * * * *").between(at("2026-01-01T00:00:00Z"), until, 100)
    assert found == [until // SECOND * SECOND - n * SECOND for n in range(99, -1, -1)]


@pytest.mark.parametrize("timezone", ["UTC", "Europe/Berlin", "Pacific/Kiritimati", "America/Adak"])
def test_no_tick_comes_after_the_last_year(timezone: str) -> None:
    """Rows of other programs may hold any moment: there is no next tick, and no error."""
    end = clock.from_text("9999-12-31 23:59:59.999999")
    for expression in ("* * * * *", "0 0 1 1 *", "0 0 29 2 *"):
        cron = Cron(expression, timezone)
        for moment in (end, end - 1, end - 3600 * SECOND, end - 86_400 * SECOND, end + 1, 1 << 63):
            following = cron.next(moment)
            assert following is None or moment < following <= end
        assert not voided(cron, end, end)


def test_sparse_ticks_are_found_however_far_back() -> None:
    """Two yearly ticks are both found in a window of two and a half years."""
    found = Cron("0 0 1 1 *").between(at("2024-07-01T00:00:00Z"), at("2026-12-31T00:00:00Z"), 100)
    assert shown(found) == ["2025-01-01T00:00:00", "2026-01-01T00:00:00"]


MINUTELY = Cron("* * * * *")
NOON = at("2026-03-01T12:00:00Z")
MINUTE = 60 * SECOND


@pytest.mark.parametrize(
    ("misfire", "expected"),
    [
        ("all", [NOON - 2 * MINUTE, NOON - MINUTE, NOON]),
        ("once", [NOON]),
        ("skip", []),
    ],
)
def test_missed_ticks(misfire: Misfire, expected: list[int]) -> None:
    """The first look treats the ticks since the last that fired by `misfire`."""
    ticks = Ticks(MINUTELY, misfire, 5 * SECOND)
    assert ticks.watch(NOON + 30 * SECOND)
    assert ticks.due(NOON - 3 * MINUTE, NOON + 30 * SECOND) == expected
    assert not ticks.watch(NOON + 31 * SECOND)
    assert ticks.due(NOON - 3 * MINUTE, NOON + 31 * SECOND) == []


def watched(ticks: Ticks, start: int, until: int) -> Ticks:
    """The schedule, looked at from `start` until `until` without a tick between them."""
    ticks.due(None, start)
    for moment in range(start, until, SECOND):
        assert not ticks.watch(moment)
    return ticks


def test_a_tick_that_has_just_come_is_not_missed() -> None:
    """A node that starts right after a tick must not keep the others from firing it."""
    ticks = Ticks(MINUTELY, "skip", 5 * SECOND)
    assert ticks.due(NOON - MINUTE, NOON + SECOND) == [NOON]


@pytest.mark.parametrize("misfire", ["skip", "once"])
def test_every_tick_that_has_just_come_fires(misfire: Misfire) -> None:
    """With `once` they stand for those that were missed before."""
    ticks = Ticks(Cron("* * * * * *"), misfire, 5 * SECOND)
    assert ticks.due(NOON - 60 * SECOND, NOON) == [NOON - n * SECOND for n in range(5, -1, -1)]


@pytest.mark.parametrize("misfire", ["skip", "once", "all"])
def test_ticks_that_were_held_are_not_missed(misfire: Misfire) -> None:
    """A process that starts anew fires all that waited for the last run, and the others by `misfire`."""
    now, tick = NOON + 30 * SECOND, NOON - 5 * MINUTE
    missed = {"skip": [], "once": [NOON], "all": [NOON - MINUTE, NOON]}[misfire]
    ticks = Ticks(MINUTELY, misfire, 5 * SECOND)
    assert ticks.misses(now)
    held = [NOON - 4 * MINUTE, NOON - 3 * MINUTE, NOON - 2 * MINUTE]
    assert ticks.due(tick, now, held_until=NOON - 2 * MINUTE) == [*held, *missed]
    assert not ticks.misses(now)


def test_at_most_a_hundred_missed_ticks_fire() -> None:
    """`all` stops at the newest hundred."""
    assert len(Ticks(MINUTELY, "all", SECOND).due(NOON - 1000 * MINUTE, NOON)) == 100


def test_a_schedule_starts_when_it_is_first_seen() -> None:
    """Without a last tick no missed tick fires; later ones do."""
    ticks = watched(Ticks(MINUTELY, "skip", 5 * SECOND), NOON - 30 * SECOND, NOON)
    assert ticks.next == NOON
    assert ticks.watch(NOON + 10_000)
    assert ticks.due(None, NOON + 10_000) == [NOON]


def test_a_gap_makes_ticks_missed() -> None:
    """Nobody watched for longer than the patience: the ticks in between are treated as missed."""
    ticks = watched(Ticks(MINUTELY, "once", 5 * SECOND), NOON - 30 * SECOND, NOON)
    assert ticks.watch(NOON + 3 * MINUTE)
    assert ticks.due(NOON - MINUTE, NOON + 3 * MINUTE + SECOND) == [NOON + 3 * MINUTE]


def test_a_tick_that_fired_elsewhere_does_not_fire_here() -> None:
    """Ticks fired by another node are not due here."""
    ticks = watched(Ticks(MINUTELY, "all", 5 * SECOND), NOON - 30 * SECOND, NOON)
    assert ticks.due(NOON, NOON + SECOND) == []


def test_a_deferred_tick_is_returned_again() -> None:
    """A tick that waits for the run before it is given again, with those after it."""
    ticks = watched(Ticks(MINUTELY, "skip", 5 * SECOND), NOON - 30 * SECOND, NOON)
    assert ticks.due(None, NOON) == [NOON]
    ticks.hold(NOON, NOON + SECOND)
    assert ticks.watch(NOON + SECOND)
    assert ticks.due(None, NOON + SECOND) == [NOON]
    ticks.hold(NOON, NOON + 2 * SECOND)
    assert ticks.due(None, NOON + 2 * SECOND) == [NOON]
    ticks.hold(NOON, NOON + 3 * SECOND)
    for moment in range(3, 60, 4):
        assert ticks.due(None, NOON + moment * SECOND) == [NOON]
        ticks.hold(NOON, NOON + (moment + 4) * SECOND)
    assert ticks.due(None, NOON + MINUTE) == [NOON, NOON + MINUTE]


BACK = 600 * SECOND


def test_a_clock_that_was_set_back_does_not_stop_a_schedule() -> None:
    """The last tick lies ten minutes ahead: it does not count, and the next minute fires."""
    ticks = watched(Ticks(MINUTELY, "skip", 5 * SECOND), NOON - 30 * SECOND, NOON)
    assert ticks.due(None, NOON) == [NOON]
    now = NOON + 30 * SECOND - BACK
    assert not ticks.watch(now)
    assert ticks.next == NOON + MINUTE - BACK
    for second in range(1, 30):
        assert not ticks.watch(now + second * SECOND)
    assert ticks.watch(NOON + MINUTE - BACK)
    assert voided(MINUTELY, NOON, NOON + MINUTE - BACK)
    assert ticks.due(NOON, NOON + MINUTE - BACK) == [NOON + MINUTE - BACK]


def test_a_tick_is_not_fired_again_where_the_clock_was_set_back_by_less_than_a_period() -> None:
    """A daily run that was made stays the only one of its day."""
    daily = Cron("0 12 * * *")
    ticks = Ticks(daily, "once", 5 * SECOND)
    assert ticks.due(NOON - 1440 * MINUTE, NOON) == [NOON]
    assert not ticks.watch(NOON - BACK)
    assert not voided(daily, NOON, NOON - BACK)
    for moment in range(NOON - BACK, NOON, SECOND):
        assert not ticks.watch(moment)
    assert ticks.watch(NOON)
    assert ticks.due(NOON, NOON) == []
    assert ticks.next == NOON + 1440 * MINUTE


def test_a_start_after_the_clock_was_set_back() -> None:
    """A process that never saw the old time goes on all the same."""
    ticks = Ticks(MINUTELY, "all", 5 * SECOND)
    assert ticks.due(NOON, NOON - BACK + SECOND) == []
    for moment in range(NOON - BACK + SECOND, NOON - BACK + MINUTE, SECOND):
        assert not ticks.watch(moment)
    assert ticks.due(NOON, NOON - BACK + MINUTE) == [NOON - BACK + MINUTE]
