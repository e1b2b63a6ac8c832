"""Waiting ends with the job, or with a TimeoutError."""

from __future__ import annotations

import pytest

from tests.support import storing
from workerd.operations import jobs
from workerd.operations.actor import Actor
from workerd.operations.waiting import wait_until
from workerd.store.base import Store


def test_waiting_returns_once_the_job_has_ended(store: Store, actor: Actor) -> None:
    """And raises TimeoutError before."""
    job_id = storing.enqueue(store, "mail")
    with pytest.raises(TimeoutError, match=r"within 0.02 s"):
        wait_until(store.read, lambda tx: jobs.ended(tx, job_id), 0.02)
    store.run(lambda tx: jobs.cancel(tx, actor, job_id))
    wait_until(store.read, lambda tx: jobs.ended(tx, job_id), None)
