"""Rates and latencies for the charts: times from histograms, samples, a node without metrics."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerd.config.model import Config
from workerd.gateway.backend import Backend
from workerd.gateway.history import History, Times, Totals, sample_between, totals_of
from workerd.metrics import families


def observed(*seconds: float) -> Times:
    """The histogram of these times."""
    bounds = (*families.SECONDS, float("inf"))
    return Times({bound: float(sum(one <= bound for one in seconds)) for bound in bounds}, sum(seconds))


def test_a_single_time_is_shown_as_it_was() -> None:
    """Whatever the width of its bucket: 10 min are 10 min."""
    for seconds in (600.0, 0.0004, 7.0, 90_000.0):
        times = observed(seconds)
        assert times.within(0.95) == pytest.approx(seconds)
        assert times.mean == pytest.approx(seconds)
    assert (Times().within(0.95), Times().mean) == (None, None)


@given(st.lists(st.floats(0, 100_000), min_size=1, max_size=30), st.sampled_from([0.5, 0.95, 1.0]))
def test_the_share_is_never_overstated(seconds: list[float], share: float) -> None:
    """At least that share is within the time shown, which is at most the bound of a bucket away."""
    shown = observed(*seconds).within(share)
    assert shown is not None
    slack = 1e-6 * max(seconds)
    assert sum(one <= shown + slack for one in seconds) >= share * len(seconds) - 1e-9
    bounds = [bound for bound in families.SECONDS if bound >= sorted(seconds)[-1]]
    assert shown <= max(min(bounds, default=float("inf")), 0) + slack


def test_samples() -> None:
    """Rates and times of what happened between two readings."""
    before, after = observed(1.0), observed(1.0, 4.0, 4.0)
    sample = sample_between(Totals(0.0, 1, 0, before), Totals(10.0, 21, 5, after))
    assert (sample.succeeded, sample.failed) == (2.0, 0.5)
    assert (sample.run_mean, sample.run_p95) == (4.0, 5.0)
    assert (sample.queue_mean, sample.queue_p95) == (None, None)


def test_totals_are_those_of_all_handlers() -> None:
    """Attempts by how they ended, and buckets that are cumulative and summed over handlers."""
    buckets = [0.0] * (len(families.SECONDS) + 1)
    totals = totals_of(
        [
            (families.ATTEMPTS.name, ("a", "ok", "true"), [3]),
            (families.ATTEMPTS.name, ("b", "crashed", "false"), [2]),
            (families.ATTEMPTS.name, ("b", "interrupted", "none"), [1]),
            (families.RUN_SECONDS.name, ("a", "true"), [0.5, 1, 2, *buckets[2:]]),
            (families.RUN_SECONDS.name, ("b", "true"), [0.5, 4, *buckets[1:]]),
            (families.STORE_ERRORS.name, ("1213",), [7]),
        ]
    )
    assert (totals.succeeded, totals.failed) == (3, 2)
    assert [totals.run.counts[bound] for bound in (0.001, 0.0025, float("inf"))] == [5, 7, 7]
    assert totals.run.sum_s == 1.0
    assert totals.queue == Times()


def test_no_metrics_yet() -> None:
    """A node that has counted nothing has zeros, and charts without points."""
    totals = totals_of([])
    assert (totals.succeeded, totals.failed, totals.run) == (0, 0, Times())
    backend = Backend(Config())
    history = History(backend)
    backend.close()
    assert history.span_s == 0
    assert history.series()["run_p95"] == []
