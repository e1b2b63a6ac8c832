"""Rescue: claims of dead nodes are lost, those of live ones left alone."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest

from tests.support.dispatching import MakeHarness, insert_jobs, is_registered, job_state
from tests.support.storing import claims
from workerd.dispatcher import rescue
from workerd.dispatcher.monitored_store import MonitoredStore
from workerd.dispatcher.rescue import Rescue
from workerd.dispatcher.tasks import Run, TaskRunner
from workerd.job import new_id
from workerd.outcome import Outcome, Reason
from workerd.runtime.loop import Loop
from workerd.runtime.outcome_sender import OutcomeSender
from workerd.store import nodes
from workerd.store.base import Store
from workerd.store.claims import NodeIdent
from workerd.store.nodes import NodeInfo, NodeRecord

OTHER = NodeRecord(id=new_id(), name="other", host="elsewhere", pid=1, boot_id="", version="0")
DEAD = NodeIdent(OTHER.id, OTHER.name)


def test_claims_of_a_dead_node_are_rescued(make_harness: MakeHarness, store: Store) -> None:
    """When its lease is over, its claims are closed as lost in its name, and its row is removed."""
    store.run(lambda tx: nodes.register(tx, OTHER, 0.1))
    ids = insert_jobs(store, "h", 3)
    claims(store, "h", node=DEAD)
    harness = make_harness(lease=0.9)
    harness.start()
    harness.until(lambda: not is_registered(store, OTHER.id))
    assert {job_state(store, job)[2] for job in ids} == {2}
    assert {(o.reason, o.node_id) for o in harness.ingester.outcomes} == {(Reason.LOST, OTHER.id)}


def test_a_live_node_is_left_alone(make_harness: MakeHarness, store: Store) -> None:
    """Its claims are its own for as long as its lease runs."""
    store.run(lambda tx: nodes.register(tx, OTHER, 60.0))
    insert_jobs(store, "h", 3)
    claims(store, "h", node=DEAD)
    harness = make_harness(lease=0.6)
    harness.start()
    harness.until(lambda: harness.is_up)
    harness.serve(1.5)
    assert not harness.ingester.outcomes


@pytest.mark.slow
def test_a_lease_counts_as_over_only_after_the_store_answered_for_a_lease(
    make_harness: MakeHarness, store: Store
) -> None:
    """Right after its start a node rescues no other: an outage may have kept them from renewing."""
    store.run(lambda tx: nodes.register(tx, OTHER, 0.01))
    insert_jobs(store, "h", 3)
    claims(store, "h", node=DEAD)
    harness = make_harness(lease=4.0, poll=0.05)
    harness.start()
    harness.until(lambda: harness.is_up)
    harness.serve(2.0)
    assert not harness.ingester.outcomes
    harness.until(lambda: len(harness.ingester.outcomes) == 3)


def test_former_incarnations_are_rescued_at_once_but_after_the_spool(
    make_harness: MakeHarness, store: Store
) -> None:
    """The lock shows that they are dead; what they spooled is written first."""
    harness = make_harness(lease=600.0)
    former = NodeRecord(id=OTHER.id, name="test", host="here", pid=1, boot_id="", version="0")
    store.run(lambda tx: nodes.register(tx, former, 600.0))
    ids = insert_jobs(store, "h", 3)
    claims(store, "h", node=NodeIdent(former.id, former.name))
    harness.paths.incarnations.write_text(f"{former.id.hex()}\n{harness.incarnation.hex()}\n")
    harness.ingester.paused = True
    harness.start()
    harness.until(lambda: harness.beat.info.get("settlement") == "writing")
    harness.serve(0.2)
    assert {job_state(store, job)[0] for job in ids} == {"inprogress"}
    harness.ingester.resume()
    harness.until(lambda: not is_registered(store, former.id))
    assert {job_state(store, job)[2] for job in ids} == {2}


def test_claims_of_a_node_without_a_row_are_rescued(make_harness: MakeHarness, store: Store) -> None:
    """A claim that was committed after its node's row had been removed is found too, after a lease."""
    ids = insert_jobs(store, "h", 3)
    claims(store, "h", node=DEAD)
    harness = make_harness(lease=0.9)
    harness.start()
    harness.until(lambda: all(job_state(store, job)[2] == 2 for job in ids))
    assert {(o.reason, o.node_id) for o in harness.ingester.outcomes} == {(Reason.LOST, OTHER.id)}


class AnsweringStore(MonitoredStore):
    """One that has always answered."""

    @property
    def answered_for_s(self) -> float:
        return math.inf


class FakeTasks(TaskRunner):
    """Wakes nobody."""

    def wake(self, run: Run, delay_s: float = 0.0) -> None:
        pass


class Clock:
    """The monotonic seconds that a rescue reads, set by the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(rescue, "time", SimpleNamespace(monotonic=lambda: self.now))


def rescue_of(store: Store, *, lease: float) -> tuple[Rescue, list[Outcome]]:
    """A rescue, and the outcomes that it sends."""
    lost: list[Outcome] = []
    sender = SimpleNamespace(send_all=lost.extend, barrier=lambda lives, on_done: on_done())
    rescuer = Rescue(
        FakeTasks(Loop()),
        AnsweringStore(store, 1.0),
        cast("OutcomeSender", sender),
        new_id(),
        frozenset(),
        lease,
    )
    return rescuer, lost


def test_a_claim_whose_row_is_locked_counts_as_rescued_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its outcome is sent again until the ingester could write it."""
    clock = Clock(monkeypatch)
    rescuer, lost = rescue_of(store, lease=10.0)
    insert_jobs(store, "h", 3)
    claims(store, "h", node=DEAD)
    rescuer.rescue()  # sees them for the first time
    for times in range(1, 4):
        clock.now += 20
        rescuer.rescue()
        assert len(lost) == 3 * times
        assert rescuer.rescue() == 0.0  # they are still there: deferred
    assert rescuer.rescued == 3


@pytest.mark.parametrize("seen", [True, False], ids=["it registered", "it held nothing"])
def test_a_node_that_loses_its_row_again_has_as_long_to_register(
    store: Store, monkeypatch: pytest.MonkeyPatch, seen: bool
) -> None:
    """What was seen before it had a row in between counts no more."""
    clock = Clock(monkeypatch)
    rescuer, lost = rescue_of(store, lease=10.0)
    insert_jobs(store, "h", 3)
    claims(store, "h", node=DEAD)
    rescuer.rescue()
    if seen:
        store.run(lambda tx: nodes.register(tx, OTHER, 3600.0))
        clock.now += 20
        rescuer.rescue()
        store.run(lambda tx: tx.execute("DELETE FROM workerd_nodes"))
    else:
        store.run(lambda tx: tx.execute("DELETE FROM workerd_jobs"))
        clock.now += 20
        rescuer.rescue()
        insert_jobs(store, "h", 3)
        claims(store, "h", node=DEAD)
    rescuer.rescue()
    assert not lost
    clock.now += 10
    rescuer.rescue()
    assert len(lost) == 3


def renewals(store: Store, lease_until: str) -> Callable[[], None]:
    """Renews the lease of OTHER at each call, as a living node does; its value is always `lease_until`."""
    turn = itertools.count()

    def renew() -> None:
        until = f"{lease_until}.{next(turn) % 1000:06}"
        store.run(
            lambda tx: tx.execute(
                "UPDATE workerd_nodes SET lease_until = %s WHERE id = %s", (until, OTHER.id)
            )
        )

    return renew


@pytest.mark.slow
@pytest.mark.parametrize(
    "lease_until", ["2001-01-01 00:00:00", "2069-01-01 00:00:00"], ids=["forward", "back"]
)
def test_a_node_that_renews_lives_however_the_clock_of_the_store_was_set(
    make_harness: MakeHarness, store: Store, lease_until: str
) -> None:
    """Its lease looks over, or over in years; it is dead once it has not changed for a whole lease."""
    lease_s = 2.0
    other = NodeRecord(id=OTHER.id, name=OTHER.name, info=msgspec.json.encode(NodeInfo(lease_s=lease_s)))
    store.run(lambda tx: nodes.register(tx, other, lease_s))
    renew = renewals(store, lease_until)
    renew()
    ids = insert_jobs(store, "h", 3)
    claims(store, "h", node=DEAD)
    harness = make_harness(lease=lease_s)
    harness.start()
    harness.until(lambda: harness.is_up)
    end = time.monotonic() + 3 * lease_s
    while time.monotonic() < end:
        renew()
        harness.serve(lease_s / 10)
    assert not harness.ingester.outcomes
    assert {job_state(store, job)[0] for job in ids} == {"inprogress"}
    harness.until(lambda: not is_registered(store, OTHER.id))
    assert {(o.reason, o.node_id) for o in harness.ingester.outcomes} == {(Reason.LOST, OTHER.id)}


@pytest.mark.slow
def test_a_node_with_a_longer_lease_has_as_long_to_renew_it(make_harness: MakeHarness, store: Store) -> None:
    """Each node has its own configuration, and publishes the length of its lease."""
    patient = NodeRecord(id=OTHER.id, name=OTHER.name, info=msgspec.json.encode(NodeInfo(lease_s=3.0)))
    store.run(lambda tx: nodes.register(tx, patient, 0.01))
    insert_jobs(store, "h", 3)
    claims(store, "h", node=DEAD)
    harness = make_harness(lease=0.6)
    harness.start()
    harness.until(lambda: harness.is_up)
    harness.serve(1.8)
    assert not harness.ingester.outcomes
    harness.until(lambda: len(harness.ingester.outcomes) == 3)
