"""Schedules are listed, paused, resumed and run on both engines."""

from __future__ import annotations

import msgspec
import pytest

from workerd.clock import SECOND
from workerd.config.handler_config import HandlerConfig, PoolConfig
from workerd.config.model import Config
from workerd.errors import InvalidValue, NotFound
from workerd.job import new_id
from workerd.operations import jobs, schedules
from workerd.operations.actor import Actor
from workerd.redaction import REDACTED
from workerd.store import handlers, nodes, schedule_control
from workerd.store import schedules as stored_schedules
from workerd.store.base import Store
from workerd.store.nodes import ClockSetBack, NodeInfo, NodeRecord


@pytest.fixture
def synced(store: Store, config: Config) -> Store:
    """A store that has the configured schedules."""
    store.run(lambda tx: schedule_control.upsert(tx, stored_schedules.wanted(config)))
    return store


def test_configured_schedules_are_listed_before_their_first_run(store: Store, config: Config) -> None:
    """With as many next times as are asked for."""
    (row,) = store.read(lambda tx: schedules.list_(tx, config))
    assert (row["name"], row["kind"], row["last_tick"]) == ("beat", "cron", None)
    document, times = store.read(lambda tx: schedules.find(tx, config, "beat", times=3))
    assert document["next_at"] == times[0]
    assert len(times) == len(set(times)) == 3
    with pytest.raises(NotFound, match="known are: beat"):
        store.read(lambda tx: schedules.find(tx, config, "nope"))


def test_a_paused_schedule_has_no_next_time(synced: Store, config: Config, actor: Actor) -> None:
    """Resuming returns whether it was paused."""
    paused = synced.run(lambda tx: schedules.pause(tx, actor, config, "beat"))
    assert (paused["paused_by"], paused["next_at"]) == ("me", None)
    resumed, was_paused = synced.run(lambda tx: schedules.resume(tx, actor, config, "beat"))
    assert was_paused
    assert (resumed["paused_by"], resumed["paused_at"]) == (None, None)
    assert resumed["next_at"] is not None
    assert not synced.run(lambda tx: schedules.resume(tx, actor, config, "beat"))[1]
    with pytest.raises(NotFound):
        synced.run(lambda tx: schedules.pause(tx, actor, config, "nope"))


def test_a_schedule_is_late_from_its_first_missed_tick(synced: Store, config: Config, actor: Actor) -> None:
    """By the time since then; not while it is paused."""

    def late_s() -> float:
        return synced.read(lambda tx: schedules.lateness(tx, config))["beat"]

    assert late_s() == 0
    synced.run(lambda tx: tx.execute("UPDATE workerd_schedules SET last_tick = '2026-01-01 00:00:00'"))
    assert late_s() > 24 * 3600
    synced.run(lambda tx: schedules.pause(tx, actor, config, "beat"))
    assert late_s() == 0


def test_a_schedule_without_a_node_for_its_handler_says_so(synced: Store, config: Config) -> None:
    """Until one has it."""

    def note() -> object:
        return synced.read(lambda tx: schedules.find(tx, config, "beat"))[0]["note"]

    assert note() == "No live node has the handler beat; its jobs wait for one."
    synced.run(lambda tx: nodes.register(tx, NodeRecord(id=new_id(), name="one"), 60.0))
    synced.run(lambda tx: handlers.seen(tx, "beat", None, "one"))
    assert note() is None


def test_run_now_enqueues_a_job(synced: Store, config: Config, actor: Actor) -> None:
    """Also of a paused schedule."""
    synced.run(lambda tx: schedules.pause(tx, actor, config, "beat"))
    job_id = synced.run(lambda tx: schedules.run_now(tx, actor, config, "beat"))
    assert synced.read(lambda tx: jobs.get(tx, job_id))["handler"] == "beat"


NIGHTLY = {"handler": "pay", "cron": "0 2 * * *", "vars": {"password": "hunter2", "region": "eu"}}


@pytest.fixture
def guarded(config: Config) -> Config:
    """The configuration, in which the passwords of one handler are redacted."""
    pay = HandlerConfig(name="pay", call="m:f", pool="q", redact=("password",))
    pools = {**config.pools, "q": PoolConfig(name="q", handlers=(pay,))}
    return msgspec.structs.replace(config, pools=pools)


def test_what_a_schedule_shows_may_be_sent_back(store: Store, guarded: Config, actor: Actor) -> None:
    """As the form to edit one does: what is redacted stays what it was, and is no text "[redacted]"."""
    shown, _ = store.run(lambda tx: schedules.set_(tx, actor, guarded, "x", NIGHTLY))
    assert shown["vars"] == {"password": REDACTED, "region": "eu"}
    sent = {**NIGHTLY, "cron": "0 3 * * *", "vars": {**shown["vars"], "region": "us"}}
    store.run(lambda tx: schedules.set_(tx, actor, guarded, "x", sent))
    row = store.read(lambda tx: stored_schedules.find(tx, "x"))
    assert msgspec.json.decode(row.vars or b"") == {"password": "hunter2", "region": "us"}
    assert row.expression == "0 3 * * *"


@pytest.mark.parametrize(("name", "change"), [("y", {}), ("x", {"handler": "beat"})])
def test_a_mark_is_not_taken_for_a_value(
    store: Store, guarded: Config, actor: Actor, name: str, change: dict[str, str]
) -> None:
    """Where a schedule of another name or target is made of what one shows."""
    store.run(lambda tx: schedules.set_(tx, actor, guarded, "x", NIGHTLY))
    sent = {**NIGHTLY, **change, "vars": {"password": REDACTED}}
    with pytest.raises(InvalidValue, match=r"^vars\.password: expected a value"):
        store.run(lambda tx: schedules.set_(tx, actor, guarded, name, sent))


def test_a_clock_that_was_set_back_is_told(synced: Store, config: Config) -> None:
    """For an hour, with every schedule; the newest of what the nodes saw."""
    now = synced.read(lambda tx: tx.now)
    for ago_s, by_s in ((7200, 50.0), (60, 600.0)):
        info = NodeInfo(clock_set_back=ClockSetBack(now - ago_s * SECOND, by_s))
        record = NodeRecord(id=new_id(), name=f"{by_s}", info=msgspec.json.encode(info))
        assert synced.read(lambda tx: schedules.list_(tx, config))[0]["note"] is None
        synced.run(lambda tx, r=record: nodes.register(tx, r, 60.0))
    (row,) = synced.read(lambda tx: schedules.list_(tx, config))
    assert row["note"].startswith("The store's clock was set back by 10 min 00 s at 20")
    assert synced.read(lambda tx: schedules.find(tx, config, "beat"))[0]["note"] == row["note"]
