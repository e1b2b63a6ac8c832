"""The demo's report on the jobs in the store."""

from __future__ import annotations

from typing import Any

from workerd.demo.report import DemoResults, conclusion
from workerd.document_types import Attempt, Job


def ended(job_id: str, **given: Any) -> Job:
    """A completed job of one attempt."""
    attempt = Attempt(attempt=1, status=given.get("status", "completed"), run_us=given.pop("run_us", 1000))
    return Job(
        **{"handler": "h", "status": "completed", "reason": "ok", "attempt": 1, "complete": True, **given},
        id=job_id,
        attempts=(attempt,),
    )


def test_only_one_end_for_each_job_is_complete() -> None:
    """A job without an end, with two, with an open attempt, or that was not enqueued is found."""
    one, two = ended("1"), ended("2")
    open_ = ended("2", status="inprogress", complete=False)
    assert DemoResults([one, two], {"1", "2"}).complete
    for found, expected, problem in (
        ([one], {"1", "2"}, "1 job without an end"),
        ([one, two, two], {"1", "2"}, "1 job with two ends"),
        ([one, two], {"1"}, "1 job that the demo did not enqueue"),
        ([one, open_], {"1", "2"}, "1 open attempt"),
    ):
        results = DemoResults(found, expected)
        assert not results.complete
        assert problem in conclusion(results)


def test_jobs_are_grouped_by_handler_and_outcome() -> None:
    """In the order of the handlers, the most frequent outcome first, with percentiles of run times."""
    found = [
        ended("1", handler="b", status="failure", reason="error"),
        ended("2", handler="a", run_us=3000),
        ended("3", handler="b"),
        ended("4", handler="b", run_us=2000),
    ]
    groups = DemoResults(found, {"1", "2", "3", "4"}).groups(["b", "a"])
    assert [(g.handler, g.reason, len(g.jobs)) for g in groups] == [
        ("b", "ok", 2),
        ("b", "error", 1),
        ("a", "ok", 1),
    ]
    assert (groups[0].percentile(0.5), groups[0].percentile(1)) == (0.001, 0.002)
    assert groups[0].slowest is not None
    assert groups[0].slowest.id == "4"
