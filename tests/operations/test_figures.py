"""Counts of waiting and running jobs on both engines."""

from __future__ import annotations

from tests.support import storing
from workerd.clock import SECOND
from workerd.operations import figures
from workerd.store.base import Store


def test_depths_count_jobs_by_status(store: Store) -> None:
    """With the age of the oldest new job; a handler without jobs has no counts."""
    storing.enqueue(store, "mail")
    storing.enqueue(store, "mail", delay=3600 * SECOND)
    mail, beat = store.read(lambda tx: figures.depths(tx, ["mail", "beat"]))
    assert mail.counts == {"new": 1, "scheduled": 1}
    assert mail.oldest_s is not None
    assert mail.oldest_s >= 0
    assert (beat.counts, beat.oldest_s) == ({}, None)
