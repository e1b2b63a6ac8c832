"""Requests are submitted, listed and cancelled on both engines."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from tests.support import storing
from workerd.clock import SECOND
from workerd.config.handler_config import HandlerConfig, PoolConfig
from workerd.config.model import Config
from workerd.config.webhook_config import WebhookConfig
from workerd.config.workflow_config import WorkflowConfig, WorkflowJob
from workerd.errors import Conflict, InvalidValue, NotFound
from workerd.job import parse_id
from workerd.operations import request_graphs, requests
from workerd.operations.actor import Actor
from workerd.operations.rules import HandlerRules
from workerd.operations.webhooks import WebhookEvents
from workerd.redaction import REDACTED
from workerd.store import columns, handlers
from workerd.store.base import Store, Tx


def test_submit_is_idempotent_by_id(store: Store, config: Config) -> None:
    """An unknown workflow is rejected with the known ones."""
    request_id = b"r" * 16
    params = requests.checked_params(config, {"id": 7})
    first, again = (store.run(lambda tx: requests.submit(tx, "ship", params, request_id)) for _ in range(2))
    assert (first.created, again.created, again.id) == (True, False, first.id)
    assert store.read(lambda tx: requests.get(tx, request_id))["params"] == {"id": 7}
    assert not store.read(lambda tx: requests.ended(tx, request_id))
    with pytest.raises(NotFound):
        store.read(lambda tx: requests.ended(tx, b"x" * 16))
    with pytest.raises(InvalidValue, match="known are: ship"):
        requests.check_workflow(config, "nope")


@pytest.mark.parametrize("handler", ["~webhook", "~wait"])
@pytest.mark.parametrize("key", ["jobs", "then", "finally"])
def test_a_graph_has_no_jobs_of_reserved_handlers(
    store: Store, config: Config, key: str, handler: str
) -> None:
    """A delivery would be signed by the daemon; a wait has a key of its own."""
    store.run(lambda tx: handlers.seen(tx, handler, None, "one"))
    graph = {"jobs": [{"name": "a", "handler": "mail"}]} | {key: [{"name": "b", "handler": handler}]}
    with pytest.raises(InvalidValue) as caught:
        store.read(lambda tx: request_graphs.checked(tx, config, graph))
    assert str(caught.value) == f'{key}[0].handler: names that start with "~" are reserved'


def test_details_have_the_configured_graph_until_pick_up(store: Store, config: Config) -> None:
    """Afterwards the stored one, whatever is configured by then."""
    workflow = storing.workflow("ship", "pack", "send<pack")
    configured = msgspec.structs.replace(config, workflows={"ship": workflow})
    queuing = store.run(lambda tx: requests.submit(tx, "ship", b"{}", b"r" * 16))
    details = store.read(lambda tx: requests.details(tx, configured, b"r" * 16))
    assert (details.request["id"], details.graph) == (queuing.id, workflow.jobs)
    assert store.read(lambda tx: requests.get_with_graph(tx, b"r" * 16))[1] is None
    started = storing.submit(store, workflow)
    details = store.read(lambda tx: requests.details(tx, config, started))
    assert [job.name for job in details.graph] == ["pack", "send"]


PAY, MAIL = {"name": "a", "handler": "pay"}, {"name": "m", "handler": "mail"}
AFTER = {"name": "z", "handler": "mail", "needs": ["m"]}


@pytest.mark.parametrize(
    "graph",
    [
        {"jobs": [PAY, AFTER | {"needs": ["a"]}]},
        {"jobs": [PAY, {"name": "b", "handler": "pay"}]},
        {"jobs": [MAIL, AFTER], "then": [PAY]},
        {"jobs": [MAIL], "finally": [PAY]},
        "two",
    ],
    ids=["graph", "batch", "then", "finally", "workflow"],
)
def test_params_are_redacted_by_all_handlers_of_a_request(
    store: Store, config: Config, graph: dict[str, Any] | str
) -> None:
    """Also in a list, which does not read its graph, and in the event of its failure."""
    config = _with_a_secret(config)
    rules, params = HandlerRules(config), {"password": "hunter2", "region": "eu"}

    def submit(tx: Tx) -> bytes:
        if isinstance(graph, str):
            done = requests.submit(tx, graph, requests.checked_params(config, params))
        else:
            plan = request_graphs.checked(tx, config, {**graph, "params": params})
            done = request_graphs.submit(tx, plan)
        tx.failed_requests.append(parse_id(done.id))
        WebhookEvents(config).before_commit(tx)
        return parse_id(done.id)

    request_id = store.run(submit)
    shown = {"password": REDACTED, "region": "eu"}
    assert store.read(lambda tx: requests.get(tx, request_id, rules))["params"] == shown
    (listed,) = store.read(lambda tx: requests.list_(tx, rules=rules)).requests
    assert listed["params"] == shown
    told = store.read(lambda tx: tx.one("SELECT vars FROM workerd_jobs WHERE handler = '~webhook'"))
    assert told is not None
    assert json.loads(json.loads(told[0])["body"])["request"]["params"] == shown


def _with_a_secret(config: Config) -> Config:
    pay = HandlerConfig(name="pay", call="m:f", pool="safe", redact=("password",))
    two = WorkflowConfig(
        name="two",
        jobs=(WorkflowJob(name="m", handler="mail"),),
        final=(WorkflowJob(name="a", handler="pay", step=1),),
    )
    return msgspec.structs.replace(
        config,
        pools={**config.pools, "safe": PoolConfig(name="safe", handlers=(pay,))},
        workflows={**config.workflows, "two": two},
        webhooks={"w": WebhookConfig(url="https://example.org/", on=("request_failed",))},
    )


def test_a_request_shows_what_only_others_redact(store: Store, config: Config) -> None:
    """Its handlers are known, of a batch by its rows."""
    config = _with_a_secret(config)
    for jobs in ([MAIL], [MAIL, AFTER]):
        body = {"jobs": jobs, "params": {"password": "not one"}}
        done = store.run(lambda tx, b=body: request_graphs.submit(tx, request_graphs.checked(tx, config, b)))
        found = store.read(lambda tx, d=done: requests.get(tx, parse_id(d.id), HandlerRules(config)))
        assert found["params"] == {"password": "not one"}


def test_requests_that_failed_lately_are_counted(store: Store) -> None:
    """By workflow; those that failed before, or ended otherwise, are not."""
    rows = [(b"a", "failed", 60), (b"b", "failed", 60), (b"c", "failed", 3600), (b"d", "completed", 60)]

    def insert(tx: Tx) -> None:
        for key, status, age_s in rows:
            tx.execute(
                "INSERT INTO workerd_requests (id, workflow, params, status, completed_at)"
                " VALUES (%s, 'ship', '{}', %s, %s)",
                (key * 16, status, columns.at(tx.now - age_s * SECOND)),
            )

    store.run(insert)
    assert store.read(requests.failed_lately) == {"ship": 2}


def test_a_queuing_request_is_cancelled_at_once(store: Store, config: Config, actor: Actor) -> None:
    """A second cancel conflicts."""
    params = requests.checked_params(config, None)
    store.run(lambda tx: requests.submit(tx, "ship", params, b"r" * 16))
    assert store.run(lambda tx: requests.cancel(tx, actor, b"r" * 16)) == "ended"
    assert store.read(lambda tx: requests.ended(tx, b"r" * 16))
    with pytest.raises(Conflict):
        store.run(lambda tx: requests.cancel(tx, actor, b"r" * 16))
    (listed,) = store.read(lambda tx: requests.list_(tx, workflow="ship")).requests
    assert (listed["status"], "jobs" in listed) == ("cancelled", False)
