"""Rates from counters."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from workerd.runtime import rate


def test_a_rate_is_averaged_since_it_was_last_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two readings in quick succession show the same rate: neither is an average over nothing."""
    now = 1000.0
    monkeypatch.setattr(rate, "time", SimpleNamespace(monotonic=lambda: now))
    measured = rate.Rate()
    assert measured.per_second(1000) == 0.0
    now += 2
    assert measured.per_second(1000) == 500.0
    now += rate.SHORTEST_SPAN_S / 2
    assert measured.per_second(5000) == 500.0
