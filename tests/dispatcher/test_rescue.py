"""Rescue: claims of dead nodes are lost, those of live ones left alone."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import msgspec
import pytest

from tests.support.dispatching import MakeHarness, insert_jobs, is_registered, job_state
from tests.support.storing import claims
from workerd.job import new_id
from workerd.outcome import Reason
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


@pytest.mark.parametrize(
    "lease_until", ["2001-01-01 00:00:00", "2069-01-01 00:00:00"], ids=["forward", "back"]
)
def test_a_node_that_renews_lives_however_the_clock_of_the_store_was_set(
    make_harness: MakeHarness, store: Store, lease_until: str
) -> None:
    """Its lease looks over, or over in years; it is dead once it has not changed for a whole lease."""
    lease_s = 0.9
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
