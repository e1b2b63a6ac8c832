"""Rates and latencies for the charts: quantiles of histograms, samples, a node without metrics."""

from __future__ import annotations

import pytest

from workerd.config.model import Config
from workerd.gateway.backend import Backend
from workerd.gateway.history import History, Totals, quantile, sample_between, totals_of
from workerd.metrics import families


def test_quantiles() -> None:
    """A quantile is interpolated in the bucket that holds its rank among the new observations."""
    before = {0.1: 5.0, 1.0: 5.0, float("inf"): 5.0}
    after = {0.1: 5.0, 1.0: 15.0, float("inf"): 15.0}
    assert quantile(0.5, before, after) == pytest.approx(0.55)
    assert quantile(0.5, after, after) is None
    assert quantile(0.9, {}, {0.1: 0.0, float("inf"): 3.0}) == 0.1
    sample = sample_between(Totals(0.0, 1, 0, before), Totals(10.0, 21, 5, after))
    assert (sample.succeeded, sample.failed, sample.queue_p50) == (2.0, 0.5, None)


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
    assert (totals.run[0.001], totals.run[0.0025], totals.run[float("inf")]) == (5, 7, 7)
    assert totals.queue == {}


def test_no_metrics_yet() -> None:
    """A node that has counted nothing has zeros, and charts without points."""
    totals = totals_of([])
    assert (totals.succeeded, totals.failed, totals.run) == (0, 0, {})
    backend = Backend(Config())
    history = History(backend)
    backend.close()
    assert history.span_s == 0
    assert history.series()["run_p95"] == []
