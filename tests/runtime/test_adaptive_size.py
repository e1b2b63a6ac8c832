"""How much one transaction takes on."""

from __future__ import annotations

import pytest

from workerd.errors import StoreAway
from workerd.runtime.adaptive_size import QUICK_S, SLOW_S, AdaptiveSize

SLOW, QUICK, BETWEEN = SLOW_S * 2, QUICK_S / 2, (SLOW_S + QUICK_S) / 2


def test_it_is_halved_when_slow_and_grows_again_when_quick() -> None:
    """Never below one, never above its limit."""
    size = AdaptiveSize(100)
    for expected in (50, 25, 12, 6, 3, 1, 1):
        size.note(SLOW, size.value)
        assert size.value == expected
    size.note(BETWEEN, size.value)
    assert size.value == 1
    for expected in (2, 4, 8, 16, 32, 64, 100, 100):
        size.note(QUICK, size.value)
        assert size.value == expected


def test_it_grows_only_with_what_was_used() -> None:
    """A quick transaction of a few rows tells nothing of one with many; a slow one of a few tells much."""
    size = AdaptiveSize(1000, first=100)
    size.note(QUICK, 49)
    assert size.value == 100
    size.note(QUICK, 50)
    assert size.value == 200
    size.note(SLOW, 10)
    assert size.value == 5


def test_a_failure_at_once_changes_nothing() -> None:
    """A store that refuses the connection is not slow."""
    size = AdaptiveSize(8, first=4)
    with pytest.raises(StoreAway), size.measured():
        raise StoreAway("gone")
    assert size.value >= 4


def test_it_keeps_to_its_least() -> None:
    """Bytes of a batch are not halved below what one row takes."""
    size = AdaptiveSize(100, least=20)
    size.halve(50)
    assert size.value == 25
    assert size.is_reduced
    size.halve()
    assert size.value == 20
    for _ in range(3):
        size.note(QUICK, size.value)
    assert size.value == 100
    assert not size.is_reduced
