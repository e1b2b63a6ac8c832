"""Jobs that wait are changed; a retry may have other vars."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support import storing
from tests.support.configuring import with_keys
from workerd.clock import SECOND, to_rfc3339
from workerd.config.model import Config
from workerd.document_types import Document
from workerd.errors import Conflict, InvalidValue, NotFound
from workerd.job import Status
from workerd.operations import audit, jobs
from workerd.operations.actor import Actor
from workerd.operations.edit import Edit, edit, values_of
from workerd.store import handlers
from workerd.store.base import Store

SIGNATURE = (
    b'{"params":[{"name":"to","code":"str","required":true,"is_str":true},{"name":"size","code":"int"}]}'
)


def change(store: Store, actor: Actor, config: Config, job_id: bytes, **given: Any) -> Document:
    store.run(lambda tx: edit(tx, actor, config, job_id, Edit(**given)))
    return store.read(lambda tx: jobs.get(tx, job_id))


def test_a_waiting_job_is_changed(store: Store, actor: Actor, config: Config) -> None:
    """Vars are merged key by key; with another time it waits for that, or is due."""
    job_id = storing.enqueue(store, "mail", vars=b'{"to":"ann","size":1}')
    shown = change(store, actor, config, job_id, vars={"size": None, "cc": "bob"}, priority=7)
    assert (shown["vars"], shown["priority"], shown["status"]) == ({"to": "ann", "cc": "bob"}, 7, "new")
    now = store.read(lambda tx: tx.now)
    shown = change(store, actor, config, job_id, run_at=to_rfc3339(now + 3600 * SECOND))
    assert (shown["status"], shown["priority"]) == ("scheduled", 7)
    assert not storing.claims(store, "mail")
    shown = change(store, actor, config, job_id, group="tenant-7", group_given=True)
    assert shown["group"] == "tenant-7"
    assert change(store, actor, config, job_id, group_given=True)["group"] is None
    assert change(store, actor, config, job_id, run_at=to_rfc3339(now))["status"] == "new"
    (claim,) = storing.claims(store, "mail")
    assert json.loads(claim.vars) == {"to": "ann", "cc": "bob"}
    acts = store.read(audit.list_).audit
    assert [act["action"] for act in acts] == ["edit"] * 5
    assert acts[-1]["detail"] == {"vars": ["cc", "size"], "priority": 7}


def test_a_time_behind_the_expiry_is_refused(store: Store, actor: Actor, config: Config) -> None:
    """As at enqueue: the job would end as expired when it is due. A time before it is taken."""
    now = store.read(lambda tx: tx.now)
    expires_at = now + 3600 * SECOND
    job_id = storing.enqueue(store, "mail", run_at=now + 60 * SECOND, expires_at=expires_at)
    before = store.read(lambda tx: jobs.get(tx, job_id))
    for run_at in (expires_at + 1, expires_at + SECOND):
        with pytest.raises(InvalidValue) as caught:
            change(store, actor, config, job_id, run_at=to_rfc3339(run_at), priority=7)
        for text in ("run_at: ", to_rfc3339(run_at), f"expires at {to_rfc3339(expires_at)}"):
            assert text in str(caught.value)
    assert store.read(lambda tx: jobs.get(tx, job_id)) == before
    shown = change(store, actor, config, job_id, run_at=to_rfc3339(expires_at - SECOND))
    assert (shown["status"], shown["expires_at"]) == ("scheduled", to_rfc3339(expires_at))


def test_only_what_waits(store: Store, actor: Actor, config: Config) -> None:
    """A running job and an ended one conflict, an unknown one is not found; nothing to change is refused."""
    job_id = storing.enqueue(store, "mail")
    with pytest.raises(InvalidValue, match="got nothing"):
        change(store, actor, config, job_id)
    (claim,) = storing.claims(store, "mail")
    with pytest.raises(InvalidValue, match="run_at"):
        change(store, actor, config, job_id, run_at="soon")
    with pytest.raises(Conflict, match="inprogress"):
        change(store, actor, config, job_id, priority=1)
    storing.close(store, [storing.outcome(claim)])
    with pytest.raises(Conflict, match="completed"):
        change(store, actor, config, job_id, priority=1)
    with pytest.raises(NotFound):
        change(store, actor, config, bytes(16), priority=1)


def test_wrong_values_change_nothing(store: Store, actor: Actor, config: Config) -> None:
    """Vars are checked by the signature, everything else as at enqueue."""
    store.run(lambda tx: handlers.seen(tx, "mail", SIGNATURE, "n"))
    job_id = storing.enqueue(store, "mail", vars=b'{"to":"ann"}')
    for given in (
        {"vars": {"to": None}}, {"vars": {"size": "big"}}, {"vars": {"other": 1}}, {"priority": 2**40},
        {"run_at": "tomorrow"}, {"group": "x" * 300, "group_given": True},
    ):  # fmt: skip
        with pytest.raises(InvalidValue):
            change(store, actor, config, job_id, **given)
    assert store.read(lambda tx: jobs.get(tx, job_id))["vars"] == {"to": "ann"}
    assert not store.read(audit.list_).audit
    texts = {"to": "123", "size": "4", "other": "null"}
    assert store.read(lambda tx: values_of(tx, job_id, texts)) == {"to": "123", "size": 4, "other": None}


def test_a_retry_with_other_vars(store: Store, actor: Actor, config: Config) -> None:
    """Merged in the same way; if they do not fit, nothing is retried."""
    store.run(lambda tx: handlers.seen(tx, "mail", SIGNATURE, "n"))
    job_id = storing.enqueue(store, "mail", vars=b'{"to":"ann","size":1}')
    storing.finish(store, "mail", Status.FAILURE)
    with pytest.raises(InvalidValue):
        store.run(lambda tx: jobs.retry(tx, actor, job_id, config=config, vars_={"size": "x"}))
    assert storing.status(store, job_id) == "failure"
    assert store.run(lambda tx: jobs.retry(tx, actor, job_id, config=config, vars_={"size": 2})) == 2
    (claim,) = storing.claims(store, "mail")
    assert json.loads(claim.vars) == {"to": "ann", "size": 2}
    assert store.read(audit.list_).audit[0]["detail"] == {"attempt": 2, "vars": ["size"]}


def test_a_group_that_follows_from_the_vars_follows_their_change(
    store: Store, actor: Actor, config: Config
) -> None:
    """Of an edit and a retry; one that was given stays, and vars that give none are refused."""
    config = with_keys(config, "mail", group="{to}")
    job_id = storing.enqueue(store, "mail", vars=b'{"to":"ann"}', group_key="ann")
    assert change(store, actor, config, job_id, vars={"to": "bob"})["group"] == "bob"
    assert change(store, actor, config, job_id, vars={"cc": "eve"})["group"] == "bob"
    given: dict[str, Any] = {"vars": {"to": "ann"}, "group": "g", "group_given": True}
    assert change(store, actor, config, job_id, **given)["group"] == "g"
    assert change(store, actor, config, job_id, vars={"to": "bob"})["group"] == "g"
    change(store, actor, config, job_id, group="bob", group_given=True)
    with pytest.raises(InvalidValue, match='group: expected text or a number in the var "to", got none'):
        change(store, actor, config, job_id, vars={"to": None})
    storing.finish(store, "mail", Status.FAILURE)
    store.run(lambda tx: jobs.retry(tx, actor, job_id, config=config, vars_={"to": "dan"}))
    assert store.read(lambda tx: jobs.get(tx, job_id))["group"] == "dan"
