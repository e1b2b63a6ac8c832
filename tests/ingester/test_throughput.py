"""What came and what ended within the last minute, by handler."""

from __future__ import annotations

import time

import msgspec
import pytest

from tests.support.outcomes import outcome
from workerd.clock import SECOND
from workerd.ingester.throughput import SPAN_S, RecentJobs
from workerd.job import Status
from workerd.outcome import Outcome

NOW = 1_800_000_000 * SECOND


def told(status: Status, *, attempt: int = 1, age_s: int = 0) -> Outcome:
    return msgspec.structs.replace(
        outcome(), handler="mail", status=status, attempt=attempt, run_at=NOW - age_s * SECOND
    )


def test_a_job_comes_once_and_ends_once() -> None:
    """Whatever number of attempts it takes; a release is neither."""
    recent = RecentJobs()
    recent.recorded([told(Status.NEW), told(Status.RETRY)], NOW)
    assert recent.by_handler() == {"mail": (1, 0)}
    recent.recorded([told(Status.RETRY, attempt=2), told(Status.COMPLETED, attempt=3)], NOW)
    recent.recorded([told(Status.FAILURE), told(Status.CANCELLED)], NOW)
    assert recent.by_handler() == {"mail": (3, 3)}


def test_what_waited_for_more_than_a_minute_came_earlier() -> None:
    """It ends now all the same."""
    recent = RecentJobs()
    recent.recorded([told(Status.COMPLETED, age_s=SPAN_S), told(Status.COMPLETED, age_s=SPAN_S - 2)], NOW)
    assert recent.by_handler() == {"mail": (1, 2)}


def test_a_minute_later_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """What came before it ended is forgotten before."""
    recent, began = RecentJobs(), time.monotonic()
    recent.recorded([told(Status.COMPLETED, age_s=30)], NOW)
    monkeypatch.setattr(time, "monotonic", lambda: began + SPAN_S - 20)
    assert recent.by_handler() == {"mail": (0, 1)}
    monkeypatch.setattr(time, "monotonic", lambda: began + SPAN_S + 1)
    assert recent.by_handler() == {}
