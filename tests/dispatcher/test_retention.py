"""Retention."""

from __future__ import annotations

from tests.support.dispatching import MakeHarness, insert_jobs, job_rows
from workerd.config.model import RetentionConfig
from workerd.store import job_control
from workerd.store.base import Store


def test_jobs_that_ended_long_ago_are_removed(make_harness: MakeHarness, store: Store) -> None:
    """Retention removes ended jobs and leaves those that live."""
    ids = insert_jobs(store, "h", 30)
    for job in ids[:20]:
        store.run(lambda tx, j=job: job_control.cancel(tx, j))
    harness = make_harness(poll=0.05, retention=RetentionConfig(completed=0.5, failure=0.5))
    harness.start()
    harness.until(lambda: len(job_rows(store, "h")) == 10)
    assert {status for _, status, _ in job_rows(store, "h")} == {"new"}
