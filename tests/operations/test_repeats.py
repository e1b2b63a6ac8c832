"""A repeat of a call is told from another call with its key."""

from __future__ import annotations

import msgspec
import pytest

from tests.support import storing
from workerd.config.model import Config
from workerd.document_types import Enqueued
from workerd.errors import InvalidValue
from workerd.job import Status, id_text
from workerd.job_spec import NewJob
from workerd.operations import edit, jobs, repeats
from workerd.operations.actor import Actor
from workerd.operations.edit import Edit
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


def _is_repeat(store: Store, spec: NewJob) -> bool:
    done = [Enqueued(id_text(ID), created=False)]
    try:
        store.read(lambda tx: repeats.check_repeat(tx, [spec], done))
    except InvalidValue:
        return False
    return True


def test_what_people_change_later_excuses_no_other_body(store: Store, actor: Actor) -> None:
    """A retry changes the attempt that it adds: the first one still is what the first call has enqueued."""
    spec = NewJob(handler="h", id=ID, vars=b'{"a":1}')
    store.run(lambda tx: duplicates.insert(tx, [spec]))
    (claim,) = storing.claims(store, "h")
    storing.close(store, [storing.outcome(claim, Status.FAILURE)])
    store.run(lambda tx: jobs.retry(tx, actor, ID, vars_={"a": 2}))
    assert _is_repeat(store, spec)
    for other in (
        msgspec.structs.replace(spec, vars=b'{"a":2}'),
        msgspec.structs.replace(spec, delay=60_000_000),
    ):
        assert not _is_repeat(store, other)


def test_a_change_before_the_start_leaves_the_body_a_repeat(store: Store, actor: Actor) -> None:
    """While it waits, and after it has ended."""
    spec = NewJob(handler="h", id=ID, priority=3)
    store.run(lambda tx: duplicates.insert(tx, [spec]))
    store.run(lambda tx: edit.edit(tx, actor, Config(), ID, Edit(priority=7)))
    assert _is_repeat(store, spec)
    (claim,) = storing.claims(store, "h")
    assert _is_repeat(store, spec)
    storing.close(store, [storing.outcome(claim)])
    assert _is_repeat(store, spec)
