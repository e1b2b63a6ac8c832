"""A repeat of a call is told from another call with its key."""

from __future__ import annotations

import pytest

from tests.support import storing
from workerd.document_types import Enqueued
from workerd.errors import InvalidValue
from workerd.job import id_text
from workerd.job_spec import NewJob
from workerd.operations import repeats
from workerd.store import duplicates
from workerd.store.base import Store

ID = b"i" * 16


def test_a_group_that_the_claim_has_filled_is_no_difference(store: Store) -> None:
    """The gateway did not know the handler's template; a group that was given is one."""
    spec = NewJob(handler="h", id=ID)
    store.run(lambda tx: duplicates.insert(tx, [spec]))
    storing.sql(store, "UPDATE workerd_jobs SET group_key = 'filled'")
    done = [Enqueued(id_text(ID), created=False)]
    store.read(lambda tx: repeats.check_repeat(tx, [spec], done))
    other = NewJob(handler="h", id=ID, group_key="given")
    with pytest.raises(InvalidValue, match="another body"):
        store.read(lambda tx: repeats.check_repeat(tx, [other], done))
