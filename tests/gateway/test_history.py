"""Rates and latencies for the charts: quantiles of histograms, samples, a node without metrics."""

from __future__ import annotations

from pathlib import Path

import pytest

from workerd.gateway.history import History, Totals, quantile, read_totals, sample_between


def test_quantiles() -> None:
    """A quantile is interpolated in the bucket that holds its rank among the new observations."""
    before = {0.1: 5.0, 1.0: 5.0, float("inf"): 5.0}
    after = {0.1: 5.0, 1.0: 15.0, float("inf"): 15.0}
    assert quantile(0.5, before, after) == pytest.approx(0.55)
    assert quantile(0.5, after, after) is None
    assert quantile(0.9, {}, {0.1: 0.0, float("inf"): 3.0}) == 0.1
    sample = sample_between(Totals(0.0, 1, 0, before), Totals(10.0, 21, 5, after))
    assert (sample.succeeded, sample.failed, sample.queue_p50) == (2.0, 0.5, None)


def test_no_metrics_yet(tmp_path: Path) -> None:
    """A node that has counted nothing has zeros, and charts without points."""
    totals = read_totals(tmp_path / "none")
    assert (totals.succeeded, totals.failed, totals.run) == (0, 0, {})
    history = History(tmp_path / "none")
    assert history.span_s == 0
    assert history.series()["run_p95"] == []
