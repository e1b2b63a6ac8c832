"""Nodes: one live incarnation per name, leases by the store's clock, claims held."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.storing import NODE, claims, close, enqueue, outcome, sql
from workerd import clock
from workerd.errors import NodeNameTaken
from workerd.store import claims as store_claims
from workerd.store import held_attempts, nodes
from workerd.store.base import Store
from workerd.store.nodes import NodeInfo, NodeRecord
from workerd.store.polls import poll


def record(number: int, name: str = "one", **given: Any) -> NodeRecord:
    return NodeRecord(id=bytes([number]) * 16, name=name, host="here", pid=number, **given)


def register(store: Store, node: NodeRecord, lease: float = 30.0, former: tuple[bytes, ...] = ()) -> int:
    return store.run(lambda tx: nodes.register(tx, node, lease, former=former))


def listed(store: Store) -> list[NodeRecord]:
    return store.read(nodes.list_)


def test_a_node_is_listed_with_what_it_reports(store: Store) -> None:
    """Its row has all that was registered, and a lease from the store's now."""
    node = record(1, "näme😀", boot_id="b-1", version="1.2", info=b'{"a":1}')
    now = register(store, node)
    (found,) = listed(store)
    assert (found.name, found.host, found.pid, found.boot_id) == ("näme😀", "here", 1, "b-1")
    assert (found.version, found.info, found.started_at) == ("1.2", b'{"a":1}', now)
    assert found.lease_until == now + 30 * clock.SECOND


@pytest.mark.parametrize("info", [b"{", b"[]", b"\xff", b'{"x": ' + b"[" * 100_000, b"", None])
def test_what_a_node_published_may_be_anything(info: bytes | None) -> None:
    """Unreadable JSON, however deep, counts as none."""
    assert NodeRecord(id=NODE, name="a", info=info).published == NodeInfo()


def test_a_second_live_node_of_a_name_is_refused(store: Store) -> None:
    """Unless its lease is over or it is a former incarnation of the same state folder."""
    first, second = record(1), record(2)
    register(store, first)
    register(store, first)  # the same incarnation again
    with pytest.raises(NodeNameTaken, match=r"on here, process 1.*node\.name"):
        register(store, second)
    register(store, record(3, "other"))
    register(store, second, former=(first.id,))
    assert {n.id for n in listed(store)} == {first.id, second.id, record(3).id}
    sql(store, "UPDATE workerd_nodes SET lease_until = '2001-01-01 00:00:00' WHERE name = 'one'")
    register(store, record(4))


def test_of_two_simultaneous_registrations_one_is_refused(
    store: Store, store_url: str, opened: Callable[..., Store]
) -> None:
    """Two nodes of one name that register in the same moment: one gets it."""
    together = threading.Barrier(2)
    ends: list[str] = []

    def work(own: Store, number: int) -> None:
        own.read(lambda tx: tx.now)
        together.wait()
        try:
            register(own, record(number))
            ends.append("in")
        except NodeNameTaken:
            ends.append("refused")

    threads = [threading.Thread(target=work, args=(opened(store_url), n)) for n in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ends) == ["in", "refused"]
    assert len(listed(store)) == 1


def test_a_lease_is_renewed_by_the_stores_clock(store: Store) -> None:
    """Renewing returns the store's time, or that the row is gone."""
    node = record(1)
    first = register(store, node, 1.0)
    now = store.run(lambda tx: nodes.renew(tx, node.id, 60.0, b'{"x":2}'))
    assert now is not None
    assert now > first
    (found,) = listed(store)
    assert (found.lease_until, found.info) == (now + 60 * clock.SECOND, b'{"x":2}')
    assert store.run(lambda tx: nodes.renew(tx, b"?" * 16, 60.0)) is None


def test_a_node_whose_lease_is_over_is_found(store: Store) -> None:
    """By the store's clock, not by the caller's."""
    register(store, record(1, "dead"), -1.0)
    register(store, record(2, "alive"))
    assert [n.name for n in store.read(nodes.over)] == ["dead"]


def test_a_node_stays_while_it_holds_claims(store: Store) -> None:
    """Its row is what rescuers find its claims by."""
    node = NodeRecord(id=NODE.id, name=NODE.name)
    register(store, node)
    enqueue(store, "h")
    (claim,) = claims(store, "h")
    assert store.run(lambda tx: nodes.remove(tx, node.id)) is False
    assert len(listed(store)) == 1
    assert close(store, [outcome(claim)]) == 1
    assert store.run(lambda tx: nodes.remove(tx, node.id)) is True
    assert listed(store) == []


def test_claims_of_an_incarnation_without_a_row_are_found(store: Store) -> None:
    """A COMMIT that came late may leave such; a node with a row is none."""
    enqueue(store, "h")
    claims(store, "h")
    assert store.read(nodes.strays) == [NODE.id]
    register(store, NodeRecord(id=NODE.id, name=NODE.name))
    assert store.read(nodes.strays) == []


def test_claims_held_by_a_node(store: Store) -> None:
    """Its `inprogress` rows by key, with the columns that decide their outcome; no rows of other nodes."""
    made = sorted(enqueue(store, "h", unique_key=f"k{n}", max_attempts=n) for n in (1, 2, 3))
    enqueue(store, "x")
    claims(store, "x", node=store_claims.NodeIdent(b"o" * 16, "two"))
    taken = {c.id: c for c in claims(store, "h")}
    held = store.read(lambda tx: held_attempts.held(tx, NODE.id))
    assert [row.id for row in held] == made
    for row in held:
        claim = taken[row.id]
        assert (row.ref, row.claimed_at, row.handler) == (claim.ref, claim.claimed_at, "h")
        assert (row.unique_key, row.max_attempts) == (claim.unique_key, claim.max_attempts)
        assert (row.failures, row.crashes, row.losses) == (0, 0, 0)
    assert len(store.read(lambda tx: held_attempts.held(tx, NODE.id, 2))) == 2


def test_cancels_of_own_claims_are_found(store: Store) -> None:
    """Set by anyone on a row that is in progress, they are read by its node."""
    made = enqueue(store, "h")
    enqueue(store, "h")
    claims(store, "h")
    sql(store, "UPDATE workerd_jobs SET cancel_requested_at = claimed_at WHERE id = %s", made)
    assert store.alone(lambda tx: poll(tx, NODE.id, []), write=False).cancels == [(made, 1)]
    assert store.alone(lambda tx: poll(tx, b"o" * 16, []), write=False).cancels == []


def test_rows_in_progress_without_a_claim_block_no_other(store: Store) -> None:
    """A row that another program set to `inprogress`, without a claim, does not hide the claimed ones."""
    made = enqueue(store, "h")
    claims(store, "h")
    enqueue(store, "h")
    sql(
        store,
        f"UPDATE workerd_jobs SET status = 'inprogress', node_id = x'{NODE.id.hex()}' WHERE status = 'new'",
    )
    assert [row.id for row in store.read(lambda tx: held_attempts.held(tx, NODE.id))] == [made]
