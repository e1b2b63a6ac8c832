"""Counters of roles, summed over all their processes."""

from __future__ import annotations

import msgspec
import pytest

from workerd.messages import Beat, Series
from workerd.metrics import series
from workerd.metrics.families import ATTEMPTS, QUEUE_SECONDS
from workerd.metrics.series import SeriesSums, StoreErrorCounts


def test_counts_of_one_process_after_the_other_are_added() -> None:
    """A restart of a role resets nothing: each process sends its own counts."""
    sums = SeriesSums()
    counted: list[Series] = [("a_total", ("x",), [2]), ("h", (), [1.5, 1, 0])]
    for _ in range(2):
        sums.add(counted)
    sums.add([("a_total", ("y",), [1])])
    assert list(sums) == [("a_total", ("x",), [4]), ("h", (), [3.0, 2, 0]), ("a_total", ("y",), [1])]


def test_series_travel_in_a_beat() -> None:
    """As they are, through msgpack."""
    counted: list[Series] = [("a_total", ("x", "y"), [2.0]), ("h", (), [1.5, 1.0, 0.0])]
    beat = msgspec.msgpack.decode(msgspec.msgpack.encode(Beat("up", counted=counted)), type=Beat)
    assert beat.counted == counted


def test_endless_label_values_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first handlers have series of their own, in all families; nothing of the others is lost."""
    monkeypatch.setattr(series, "MAX_HANDLERS", 2)
    sums = SeriesSums()
    for _ in range(2):
        sums.add([(ATTEMPTS.name, (str(n), "ok", "true"), [1]) for n in range(10)])
        sums.add([(ATTEMPTS.name, ("9", "error", "false"), [1]), (QUEUE_SECONDS.name, ("1",), [0.5, 1, 0])])
        sums.add([(QUEUE_SECONDS.name, (str(n),), [0.5, 1, 0]) for n in range(5, 8)])
    assert list(sums) == [
        (ATTEMPTS.name, ("0", "ok", "true"), [2]),
        (ATTEMPTS.name, ("1", "ok", "true"), [2]),
        (ATTEMPTS.name, ("other", "ok", "true"), [16]),
        (ATTEMPTS.name, ("other", "error", "false"), [2]),
        (QUEUE_SECONDS.name, ("1",), [1.0, 2, 0]),
        (QUEUE_SECONDS.name, ("other",), [3.0, 6, 0]),
    ]


def test_store_errors_are_counted_once() -> None:
    """Only those since the last time."""
    counts = StoreErrorCounts()
    assert counts.take({1213: 2, 1205: 0}) == [("workerd_store_errors_total", ("1213",), [2])]
    assert counts.take({1213: 2, 1205: 0}) == []
    assert counts.take({1213: 3, 1205: 1}) == [
        ("workerd_store_errors_total", ("1213",), [1]),
        ("workerd_store_errors_total", ("1205",), [1]),
    ]
