"""What people and programs may do, asked of both engines without a daemon."""

from __future__ import annotations

import pytest

from tests.support import storing
from workerd.clock import SECOND
from workerd.config.model import Config, HandlerConfig, PoolConfig, ScheduleConfig, WorkflowConfig
from workerd.errors import Conflict, HandlerNotFound, InvalidValue, NotFound
from workerd.operations import figures, handlers, jobs, requests, schedules
from workerd.operations.actor import Actor
from workerd.store.base import Store

ME = Actor("me", "client")


@pytest.fixture
def config() -> Config:
    """One handler that recurs, one that does not, one workflow."""
    beat = HandlerConfig(name="beat", call="m:f", pool="p", schedule=ScheduleConfig(cron="0 * * * *"))
    mail = HandlerConfig(name="mail", call="m:f", pool="p")
    return Config(
        pools={"p": PoolConfig(name="p", handlers=(beat, mail))},
        workflows={"ship": WorkflowConfig(name="ship", jobs=())},
    )


def test_configured_handlers_are_listed_beside_stored_ones(store: Store, config: Config) -> None:
    """A handler that no pool has announced yet is known by its configuration."""
    store.run(lambda tx: handlers.pause(tx, ME, config, "mail", "maintenance"))
    found = store.read(lambda tx: handlers.list_(tx, config))
    assert [(row["name"], row["paused_by"], row["pause_reason"]) for row in found] == [
        ("beat", None, None),
        ("mail", "me", "maintenance"),
    ]
    assert store.run(lambda tx: handlers.resume(tx, ME, config, "mail"))
    assert not store.run(lambda tx: handlers.resume(tx, ME, config, "mail"))
    with pytest.raises(HandlerNotFound, match="known are: beat, mail"):
        store.run(lambda tx: handlers.pause(tx, ME, config, "nope"))


def test_configured_schedules_are_listed_before_they_ran(store: Store, config: Config) -> None:
    """With their next times, of which a cron has as many as are asked for."""
    (row,) = store.read(lambda tx: schedules.list_(tx, config))
    assert (row["name"], row["kind"], row["last_tick"]) == ("beat", "cron", None)
    document, times = store.read(lambda tx: schedules.find(tx, config, "beat", times=3))
    assert document["next_at"] == times[0]
    assert len(times) == len(set(times)) == 3
    with pytest.raises(NotFound, match="known are: beat"):
        store.read(lambda tx: schedules.find(tx, config, "nope"))


def test_depths_count_by_status_and_know_the_oldest(store: Store) -> None:
    """A handler without jobs is there with nothing."""
    storing.enqueue(store, "mail")
    storing.enqueue(store, "mail", delay=3600 * SECOND)
    mail, beat = store.read(lambda tx: figures.depths(tx, ["mail", "beat"]))
    assert mail.counts == {"new": 1, "scheduled": 1}
    assert mail.oldest_s is not None
    assert mail.oldest_s >= 0
    assert (beat.counts, beat.oldest_s) == ({}, None)


def test_a_job_is_cancelled_once_and_runs_again(store: Store) -> None:
    """Cancel ends a waiting job; a second cancel conflicts; a retry is its next attempt."""
    job_id = storing.enqueue(store, "mail")
    assert not store.read(lambda tx: jobs.ended(tx, job_id))
    assert store.run(lambda tx: jobs.cancel(tx, ME, job_id)) == "ended"
    assert store.read(lambda tx: jobs.ended(tx, job_id))
    with pytest.raises(Conflict):
        store.run(lambda tx: jobs.cancel(tx, ME, job_id))
    assert store.run(lambda tx: jobs.retry(tx, ME, job_id)) == 2
    document = store.read(lambda tx: jobs.get(tx, job_id))
    assert (document["status"], len(document["attempts"])) == ("new", 2)


def test_a_request_is_submitted_once_by_its_id(store: Store, config: Config) -> None:
    """The same id again changes nothing; an unknown workflow names the known ones."""
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
