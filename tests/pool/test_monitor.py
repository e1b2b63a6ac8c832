"""The periodic check of running attempts: progress, memory, stuck queues."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pool.harness import PoolHarness, make_pool, released, warm_up
from workerd.job import Status
from workerd.outcome import Reason


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[PoolHarness]:
    with PoolHarness(tmp_path, make_pool("gate", "noop", "echo", "pid", "stopping", "swallows")) as harness:
        harness.up()
        yield harness


def test_jobs_waiting_behind_a_long_run_are_released(harness: PoolHarness, marks: Path) -> None:
    """Another node may have an idle worker."""
    warm_up(harness)
    running, waiting = harness.claim("gate", folder=str(marks)), harness.claim("noop")
    harness.give(running, waiting)
    assert released(harness.outcome(waiting))
    (marks / "go").touch()
    assert harness.outcome(running).reason is Reason.OK


def test_progress_of_a_long_run_is_sent_before_it_ends(tmp_path: Path, marks: Path) -> None:
    """With its start, its pid and the handler's note."""
    with PoolHarness(tmp_path, make_pool("progresses")) as harness:
        claim = harness.claim("progresses", folder=str(marks))
        harness.give(claim)
        harness.until(lambda: harness.ingester.progress)
        (progress,) = harness.ingester.progress
        assert (progress.id, progress.attempt, progress.progress, progress.note) == (
            claim.id,
            1,
            0.25,
            "a quarter",
        )
        (marks / "go").touch()
        outcome = harness.outcome(claim)
        assert (outcome.pid, outcome.started_at) == (progress.pid, progress.started_at)
        assert (outcome.progress, outcome.note) == (0.25, "a quarter")


def test_no_progress_is_sent_for_short_runs(harness: PoolHarness) -> None:
    """Their outcome is enough."""
    for _ in range(50):
        harness.run("noop")
    assert not harness.ingester.progress


def test_a_worker_over_memory_max_is_killed(tmp_path: Path) -> None:
    """Reason `oom`, counted as a crash, with peak and limit in the error."""
    with PoolHarness(tmp_path, make_pool("hoards", memory_max=100 << 20)) as harness:
        outcome = harness.run("hoards", mebibytes=150)
        assert (outcome.status, outcome.reason) == (Status.RETRY, Reason.OOM)
        assert "102400 KiB" in (outcome.error or "")
        assert outcome.next is not None
        assert outcome.next.crashes == 1
