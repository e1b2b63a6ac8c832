"""Failovers under load, the short form of `python -m benchmarks.failover`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.failover import Trial
from tests.support.failover_cases import Group, Pair

TRIALS: list[tuple[str, Any, dict[str, bool], list[str]]] = [
    ("one primary", Group, {"single": True}, ["switched", "without_majority"]),
    ("several primaries", Group, {"single": False}, ["killed"]),
    ("behind HAProxy", Pair, {"proxied": True}, ["killed"]),
    ("both in the URL", Pair, {"proxied": False}, ["frozen"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options", "faults"), [trial[1:] for trial in TRIALS], ids=[trial[0] for trial in TRIALS]
)
def test_nothing_is_lost_or_run_twice(
    kind: Any, options: dict[str, bool], faults: list[str], tmp_path: Path
) -> None:
    """Two nodes; every answer was true, no claim outlives a lease, no process is restarted."""
    missing = kind.missing()
    if missing:
        pytest.skip(missing)
    cluster = kind(**options)
    try:
        with Trial(tmp_path, cluster) as trial:
            for fault in faults:
                report = trial.strike(getattr(cluster, fault)(), before_s=1.0, after_s=2.0)
                print(report)
                assert report.wrong == {}, report
                assert report.accepted
    finally:
        cluster.remove()
