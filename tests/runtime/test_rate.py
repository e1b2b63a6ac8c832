"""Rates from counters."""

from __future__ import annotations

import time

import pytest

from workerd.runtime import rate


def test_a_rate_is_averaged_since_it_was_last_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two readings in quick succession show the same rate: neither is an average over nothing."""
    monkeypatch.setattr(rate, "SHORTEST_SPAN_S", 0.05)
    measured = rate.Rate()
    assert measured.per_second(1000) == 0.0
    time.sleep(0.1)
    shown = measured.per_second(1000)
    assert 1000 < shown <= 10_000
    assert measured.per_second(5000) == shown
