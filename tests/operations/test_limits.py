"""Limits as people see them, on both engines without a daemon."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.support import storing
from tests.support.configuring import with_keys
from tests.support.rows import Rows
from workerd.clock import SECOND
from workerd.config.handler_config import HandlerConfig, PoolConfig
from workerd.config.limit_config import LimitConfig
from workerd.config.model import Config, NodeConfig, StoreConfig
from workerd.dispatcher.limited_handlers import LimitedHandlers
from workerd.errors import InvalidValue, NotFound
from workerd.ingester import writer
from workerd.job import Claim, Status, id_text
from workerd.operations import audit, figures, jobs
from workerd.operations import limits as operations
from workerd.operations.actor import Actor
from workerd.operations.why import explain
from workerd.outcome import Hold
from workerd.rate_limit import Rate
from workerd.store import handlers, limits, nodes, stats
from workerd.store.base import Store, Tx
from workerd.store.claims import NodeIdent

NODE = NodeIdent(storing.NODE.id, "one")


def configured(url: str = "", **limit: object) -> Config:
    handler = HandlerConfig(name="charge", call="m:f", pool="p", limit="stripe")
    return Config(
        node=NodeConfig(name="one"),
        store=StoreConfig(url=url) if url else StoreConfig(),
        pools={"p": PoolConfig(name="p", handlers=(handler,))},
        limits={"stripe": LimitConfig(**limit)},  # type: ignore[arg-type]
    )


@pytest.fixture
def rows(store: Store, store_url: str) -> Rows:
    """The store of a live node that has the handler."""
    store.run(lambda tx: nodes.register(tx, nodes.NodeRecord(id=NODE.id, name="one"), 60.0))
    store.run(lambda tx: handlers.seen(tx, "charge", None, "one"))
    return Rows(store_url)


def claim(store: Store, config: Config, wanted: int = 10) -> list[Claim]:
    limited = LimitedHandlers(config)

    def work(tx: Tx) -> list[Claim]:
        locked = limited.lock(tx, ["charge"])
        return limited.claim(tx, "charge", locked, wanted, NODE, None, 1 << 20).batch.claims

    return store.run(work)


def why(store: Store, config: Config, job_id: bytes) -> str:
    return explained(store, config, job_id)[0]


def explained(store: Store, config: Config, job_id: bytes) -> list[str]:
    return store.read(lambda tx: explain(tx, config, job_id, {}))[1]


def test_a_limit_shows_who_has_it_and_what_waits(store: Store, rows: Rows) -> None:
    """Lists and counts have what stands in the queues of groups too."""
    config = configured(concurrency=3, group_concurrency=1, rate=Rate(100, 60 * SECOND, 100))
    made = [rows.insert("charge", group_key=group) for group in ("a", "a", "b", None)]
    running = claim(store, config)
    assert len(running) == 3
    [limit] = store.read(lambda tx: operations.list_(tx, config))
    assert limit | {"holders": [], "groups": []} == {
        "name": "stripe", "configured": True, "concurrency": 3, "group_concurrency": 1, "rate": "100/1m",
        "burst": None, "group_rate": None, "handlers": ["charge"], "used": 3, "waiting": 1,
        "held_until": None, "groups": [], "holders": [],
    }  # fmt: skip
    assert {(h["job_id"], h["group"]) for h in limit["holders"]} == {
        (id_text(made[0]), "a"), (id_text(made[2]), "b"), (id_text(made[3]), ""),
    }  # fmt: skip
    assert {group["group"] for group in limit["groups"]} == {"a", "b", ""}
    assert why(store, config, made[1]) == (
        f'The limit "stripe" is full: 3 of 3 running: {", ".join(id_text(c.id) for c in running)}.'
    )
    [depth] = store.read(lambda tx: figures.depths(tx, ["charge"]))
    assert depth.counts == {"new": 1, "inprogress": 3}
    assert depth.oldest_s is not None
    assert store.read(lambda tx: stats.by_handler(tx, ["charge"]))["charge"].due == 1
    for handler in (None, "charge"):
        listed = store.read(lambda tx, h=handler: jobs.list_(tx, handler=h, status=Status.NEW))
        assert [job["id"] for job in listed.jobs] == [id_text(made[1])]
    assert "charge" in store.read(handlers.names_of_jobs)
    assert len(store.read(handlers.names_of_jobs)) == 1
    assert store.read(lambda tx: operations.used(tx, config)) == {"stripe": 3}


def test_why_names_rates_and_holds(store: Store, rows: Rows) -> None:
    """With the time at which the next start is allowed."""
    config = configured(rate=Rate(1, 3600 * SECOND, 1))
    first, second = (rows.insert("charge", group_key="a") for _ in range(2))
    [claimed] = claim(store, config)
    assert claimed.id == first
    assert why(store, config, second).startswith(
        'The rate of the limit "stripe", 1/1h, allows the next start'
    )
    outcome = storing.outcome(claimed, hold=Hold("group", 60 * SECOND))
    store.run(lambda tx: writer.close(tx, [outcome], NODE.id))
    sentences = store.read(lambda tx: explain(tx, config, second, {}))[1]
    assert sentences[1].startswith('No job under the limit "stripe" for the group "a" starts until 20')


def test_why_names_the_handler_that_a_slot_is_kept_for(store: Store, rows: Rows) -> None:
    """To jobs of others, if it is the only one that is free."""
    config = configured(concurrency=1)
    row = storing.job(store, rows.insert("charge")).row
    key = limits.RateKey("stripe", "limit", "")

    def reasons(handler: str, config: Config) -> list[str]:
        store.run(lambda tx: limits.write_next(tx, {key: (handler, tx.now + SECOND)}))
        return store.read(lambda tx: operations.why_waiting(tx, config, row))

    assert reasons("refund", config) == ['The only free slot of the limit "stripe" is reserved for "refund".']
    assert reasons("charge", config) == []
    assert reasons("refund", configured(concurrency=2)) == []


def test_a_hold_is_ended_by_hand(store: Store, rows: Rows) -> None:
    """Of a group or of the whole limit; the other stays. An act that changes nothing is not recorded."""
    config, ann = configured(concurrency=5), Actor("ann", "cli")

    def held() -> tuple[bool, list[str]]:
        [found] = store.read(lambda tx: operations.list_(tx, config))
        return found["held_until"] is not None, [one["group"] for one in found["groups"] if one["held_until"]]

    def unhold(group: str | None) -> bool:
        found, was_held = store.run(lambda tx: operations.unhold(tx, ann, config, "stripe", group))
        assert [found] == store.read(lambda tx: operations.list_(tx, config))
        return was_held

    for _ in range(2):
        rows.insert("charge", group_key="a b")
    outcomes = [
        storing.outcome(one, hold=Hold(scope, 60 * SECOND))
        for one, scope in zip(claim(store, config), ("limit", "group"), strict=True)
    ]
    store.run(lambda tx: writer.close(tx, outcomes, NODE.id))
    job_id = rows.insert("charge", group_key="a b")
    assert held() == (True, ["a b"])
    ways = [sentence.partition("this hold. ")[2] for sentence in explained(store, config, job_id)[:2]]
    assert ways == [
        "`workerd limits unhold stripe` ends it.", "`workerd limits unhold stripe --group 'a b'` ends it.",
    ]  # fmt: skip
    assert not unhold("b")
    assert unhold("a b")
    assert held() == (True, [])
    assert claim(store, config) == []
    assert unhold(None)
    assert not unhold(None)
    assert held() == (False, [])
    assert [one.id for one in claim(store, config)] == [job_id]
    acts = store.read(audit.list_).audit
    assert [(act["action"], act["target"], act["detail"]) for act in acts] == [
        ("unhold", "stripe", None),
        ("unhold", "stripe", {"group": "a b"}),
    ]
    with pytest.raises(NotFound, match='Limit "strip" not found; known are: stripe'):
        store.run(lambda tx: operations.unhold(tx, ann, config, "strip"))
    with pytest.raises(InvalidValue, match="no space at its end"):
        unhold("a b ")


def test_the_hold_of_a_removed_limit_is_ended_too(store: Store, rows: Rows) -> None:
    """It is shown as long as it is held."""
    rows.sql("INSERT INTO workerd_rates (limit_name, held_until) VALUES ('gone', '2099-01-01 00:00:00')")
    config, ann = configured(concurrency=1), Actor("ann", "cli")
    found, was_held = store.run(lambda tx: operations.unhold(tx, ann, config, "gone"))
    assert was_held
    assert (found["configured"], found["held_until"]) == (False, None)
    assert [one["name"] for one in store.read(lambda tx: operations.list_(tx, config))] == ["stripe"]


def test_why_fills_the_group_of_a_plain_insert(store: Store, rows: Rows) -> None:
    """That has none yet, as the limit as a whole lets nothing be looked at."""
    config = with_keys(configured(concurrency=1, group_concurrency=1), "charge", group="{tenant}")
    rows.insert("charge", {"tenant": "x"})
    claim(store, config)
    second = rows.insert("charge", {"tenant": "x"})
    sentences = explained(store, config, second)
    assert sentences[1].startswith('The limit "stripe" for the group "x" is full: 1 of 1 run')


def test_why_tells_that_groups_take_turns(store: Store, rows: Rows) -> None:
    """The oldest job is not the next one of a fair handler."""
    config = configured(concurrency=1)
    ids = [rows.insert("charge", group_key=group) for group in ("a", "a", "b")]
    assert explained(store, config, ids[2])[-1] == (
        "3 jobs of charge wait; lower priority numbers go first, then jobs that were due earlier."
    )
    config = with_keys(config, "charge", fair=True)
    assert explained(store, config, ids[2])[-1] == (
        "3 jobs of charge wait; lower priority numbers go first, then the groups take turns; "
        "within a group, jobs due earlier go first."
    )


def test_a_limit_that_was_removed_shows_until_its_jobs_end(store: Store, rows: Rows) -> None:
    """It is marked as not configured."""
    config = configured(concurrency=1)
    rows.insert("charge")
    claim(store, config)
    [limit] = store.read(lambda tx: operations.list_(tx, Config()))
    assert (limit["name"], limit["configured"], limit["used"]) == ("stripe", False, 1)


def test_limits_of_handlers_that_only_another_node_has(store: Store, rows: Rows) -> None:
    """A node that serves HTTP alone tells what they wait for, too, and how many do."""
    config = configured(concurrency=1)
    info = nodes.NodeInfo(limits=dict(config.limits), limit_of={"charge": "stripe"}, fair=["charge"])
    record = nodes.NodeRecord(id=b"o" * 16, name="other", info=msgspec.json.encode(info))
    store.run(lambda tx: nodes.register(tx, record, 60.0))
    made = [rows.insert("charge") for _ in range(3)]
    [running] = claim(store, config)
    sentences = explained(store, Config(), made[2])
    assert sentences[0] == f'The limit "stripe" is full: 1 of 1 running: {id_text(running.id)}.'
    assert sentences[-1].endswith("then the groups take turns; within a group, jobs due earlier go first.")
    [limit] = store.read(lambda tx: operations.list_(tx, Config()))
    assert (limit["handlers"], limit["waiting"], limit["concurrency"]) == (["charge"], 2, 1)


def test_a_different_configuration_of_another_node_is_named(
    store: Store, store_url: str, tmp_path: Path
) -> None:
    """The lower values hold, and are shown."""
    config = configured(store_url, concurrency=5, rate=Rate(5, SECOND, 5))
    theirs = LimitConfig(concurrency=2, rate=Rate(100, SECOND, 100), burst=100)
    info = msgspec.json.encode(nodes.NodeInfo(limits={"stripe": theirs}))
    other = nodes.NodeRecord(id=b"o" * 16, name="other", info=info)
    assert operations.differing(config) == []
    store.run(lambda tx: nodes.register(tx, other, 60.0))
    assert operations.differing(config) == [
        "limits.stripe: configured differently on other; the lower of each value holds"
    ]
    [limit] = store.read(lambda tx: operations.list_(tx, config))
    assert (limit["concurrency"], limit["rate"], limit["burst"]) == (2, "5/1s", None)


@pytest.mark.parametrize("limit_of", [{}, {"charge": "paypal"}])
def test_a_handler_that_another_node_has_under_another_limit_is_named(
    store: Store, store_url: str, limit_of: dict[str, str]
) -> None:
    """Both limits let its jobs start, so that neither holds for all of them."""
    config = configured(store_url, concurrency=5)
    for name, handler in (("other", "charge"), ("without", "refund")):
        published = nodes.NodeInfo(handlers={handler: nodes.HandlerFigures()}, limit_of=limit_of)
        record = nodes.NodeRecord(id=name.encode().ljust(16), name=name, info=msgspec.json.encode(published))
        store.run(lambda tx, r=record: nodes.register(tx, r, 60.0))  # type: ignore[misc]
    assert operations.differing(config) == ["handlers.charge: limit differs on other; each counts separately"]
