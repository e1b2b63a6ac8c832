"""The sentences that explain a job's state, on both engines without a daemon."""

from __future__ import annotations

import shlex
import time
from typing import Any

import msgspec
import pytest

from tests.support import storing
from tests.support.configuring import with_keys
from workerd.clock import SECOND
from workerd.config.handler_config import HandlerConfig, PoolConfig
from workerd.config.model import Config, NodeConfig, PickupConfig
from workerd.errors import NotFound
from workerd.job import Status
from workerd.job_spec import JobSpec, check
from workerd.operations import handlers as operations
from workerd.operations.actor import Actor
from workerd.operations.why import explain
from workerd.outcome import Reason
from workerd.store import duplicates, handlers, nodes
from workerd.store.base import Store

CONFIG = Config(
    node=NodeConfig(name="one"),
    pools={"p": PoolConfig(name="p", handlers=(HandlerConfig(name="mail", call="m:f", pool="p"),))},
)


def why(store: Store, job_id: bytes, **pool: Any) -> list[str]:
    """The sentences; `pool`: what the supervisor reports of the handler's pool."""
    pools = {"p": {"handlers": ["mail"], **pool}} if pool else {}
    return store.read(lambda tx: explain(tx, CONFIG, job_id, pools))[1]


@pytest.fixture
def live(store: Store) -> Store:
    """The store of a live node that has the handler."""
    node = nodes.NodeRecord(id=storing.NODE.id, name="one")
    store.run(lambda tx: nodes.register(tx, node, 60.0))
    store.run(lambda tx: handlers.seen(tx, "mail", None, "one"))
    return store


def test_a_job_without_a_live_node_names_what_is_missing(store: Store) -> None:
    """A local pool that is not up is named first."""
    job_id = storing.enqueue(store, "mail")
    assert why(store, job_id) == ["No node is alive. `workerd run` starts one."]
    quarantined = why(store, job_id, state="quarantined", quarantined=True, trouble="m has no f.")
    assert quarantined == ["The pool p is quarantined here and will be restarted later: m has no f."]
    with pytest.raises(NotFound):
        why(store, bytes(16))


def test_a_waiting_job_names_what_is_ahead_of_it(live: Store) -> None:
    """Busy workers, other jobs, else only a free worker; a live node without its handler otherwise."""
    first = storing.enqueue(live, "mail")
    assert why(live, first, state="up", workers=[{"job": None}]) == [
        "The job waits for a worker of mail on one."
    ]
    busy = {"job": "j", "handler": "mail", "since": time.monotonic() - 90}
    (sentence,) = why(live, first, state="up", workers=[busy])
    assert sentence.startswith("All 1 worker of the pool p here are busy: mail for 1 min 3")
    storing.enqueue(live, "mail")
    assert "2 jobs of mail wait" in why(live, first)[0]
    assert "No live node has the handler other" in why(live, storing.enqueue(live, "other"))[0]


def test_a_paused_handler_names_who_paused_it_and_why(live: Store) -> None:
    """And the command that resumes it."""
    actor = Actor("cli:me@host", "cli")
    live.run(lambda tx: operations.pause(tx, actor, CONFIG, "mail", "maintenance"))
    (sentence,) = why(live, storing.enqueue(live, "mail"))
    assert sentence.startswith("The handler mail is paused, by cli:me@host at ")
    assert sentence.endswith(" (maintenance). `workerd resume mail` resumes it.")


def test_a_command_quotes_a_name_for_the_shell(live: Store) -> None:
    """It works as it is shown."""
    live.run(lambda tx: handlers.seen(tx, "a; b's", None, "one"))
    live.run(lambda tx: operations.pause(tx, Actor("cli:me@host", "cli"), CONFIG, "a; b's", None))
    (sentence,) = why(live, storing.enqueue(live, "a; b's"))
    assert shlex.split(sentence.split("`")[1]) == ["workerd", "resume", "a; b's"]


def test_a_scheduled_job_names_its_time(live: Store) -> None:
    """And how to start it now."""
    (sentence,) = why(live, storing.enqueue(live, "mail", delay=3600 * SECOND))
    assert "in 1 h 00 min. `workerd job retry` makes it due now." in sentence


def test_a_job_behind_another_of_its_key_names_what_that_does(live: Store) -> None:
    """It runs, or waits itself to be tried again, or is no more: then none is named."""
    job = check(JobSpec(handler="mail", unique_key="k", on_conflict="follow"))
    live.run(lambda tx: duplicates.insert(tx, [job]))
    [running] = storing.claims(live, "mail")
    [follower] = live.run(lambda tx: duplicates.insert(tx, [job]))
    until = "The job waits until the {} job with its unique key, k, has ended."
    assert why(live, follower.id) == [until.format("running")]
    storing.close(live, [storing.outcome(running, Status.RETRY)])
    assert why(live, follower.id) == [until.format("waiting")]
    live.run(lambda tx: tx.execute("DELETE FROM workerd_jobs WHERE id = %s", (running.id,)))
    (sentence,) = why(live, follower.id)
    assert sentence.startswith("No other live job has its unique key, k")


def test_a_job_that_may_expire_names_the_time(live: Store) -> None:
    """By its own time or by its handler's; nothing of it once it runs."""
    expiring = with_keys(CONFIG, "mail", expires=3600.0)

    def said(config: Config, job_id: bytes) -> list[str]:
        return [
            text for text in live.read(lambda tx: explain(tx, config, job_id, {}))[1] if "expires" in text
        ]

    plain = storing.enqueue(live, "mail")
    later = storing.enqueue(live, "mail", delay=60 * SECOND, expires_in=7200 * SECOND)
    assert said(CONFIG, plain) == []
    assert len(said(expiring, plain)) == 1
    assert len(said(CONFIG, later)) == 1
    assert "in 2 h" in said(expiring, later)[0]
    assert [claim.id for claim in storing.claims(live, "mail")] == [plain]
    assert said(expiring, plain) == []


def test_a_running_job_names_its_node(live: Store) -> None:
    """It also reports that the node is lost."""
    job_id = storing.enqueue(live, "mail")
    storing.claims(live, "mail")
    assert why(live, job_id)[0].startswith("The job runs on one, for ")
    live.run(lambda tx: tx.execute("DELETE FROM workerd_nodes"))
    assert why(live, job_id)[-1].startswith("Its node has not renewed its lease")


def test_an_ended_job_names_its_outcome_and_earlier_attempts(live: Store) -> None:
    """The signal that killed the process, and the error of each attempt."""
    job_id = storing.enqueue(live, "mail")
    storing.finish(live, "mail", Status.RETRY, error="refused")
    storing.finish(live, "mail", Status.FAILURE, reason=Reason.CRASHED, exit_signal=11, error="died")
    assert why(live, job_id) == [
        "The job ended as failure: attempt 2 lost its process (SIGSEGV) on one: died",
        "Attempt 1 asked for a retry on one: refused",
    ]


@pytest.mark.parametrize("is_alone", [True, False])
def test_a_job_that_pickup_keeps_names_the_window(live: Store, is_alone: bool) -> None:
    """With its next time; another node that has the handler may have other times."""
    if not is_alone:
        other = nodes.NodeRecord(id=bytes(16), name="two")
        live.run(lambda tx: nodes.register(tx, other, 60.0))
        live.run(lambda tx: handlers.seen(tx, "mail", None, "two"))
    job_id = storing.enqueue(live, "mail")
    for pickup, start in (
        (
            PickupConfig(jobs="0 3 * * *"),
            "This node takes jobs only at the times of pickup.jobs (0 3 * * *)",
        ),
        (PickupConfig(enabled=False), "This node takes no jobs: pickup.enabled is false."),
    ):
        config = msgspec.structs.replace(CONFIG, pickup=pickup)
        (reason,) = live.read(lambda tx, c=config: explain(tx, c, job_id, {}))[1]
        assert reason.startswith(start)
        assert ("T03:00:00Z." in reason) == bool(pickup.jobs)
        assert ("Another node may take the job sooner." in reason) != is_alone
