"""When work may be picked up."""

from __future__ import annotations

from workerd.clock import SECOND, from_rfc3339
from workerd.dispatcher.pickup_window import PickupWindow

NOON = from_rfc3339("2026-03-01T12:00:00Z")


def test_a_window_without_expression_is_always_open() -> None:
    """`""` means at once."""
    window = PickupWindow("")
    window.drained()
    assert window.is_open(NOON)
    assert window.opens_at is None


def test_a_window_opens_at_its_ticks_until_it_is_drained() -> None:
    """Closed at first, open from a tick until everything was taken."""
    window = PickupWindow("*/5 * * * *")
    assert not window.is_open(NOON + SECOND)
    assert not window.is_open(NOON + 299 * SECOND)
    assert window.is_open(NOON + 300 * SECOND)
    assert window.is_open(NOON + 301 * SECOND)
    window.drained()
    assert not window.is_open(NOON + 302 * SECOND)
    assert window.opens_at == NOON + 600 * SECOND


def test_a_clock_that_was_set_back_brings_the_next_tick_nearer() -> None:
    """It opens at the next tick of the new time, not of the old one."""
    window = PickupWindow("* * * * *")
    minute = 60 * SECOND
    assert not window.is_open(100 * minute + SECOND)
    assert window.opens_at == 101 * minute
    assert not window.is_open(90 * minute + SECOND)
    assert window.opens_at == 91 * minute
    assert window.is_open(91 * minute)
