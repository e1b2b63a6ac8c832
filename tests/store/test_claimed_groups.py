"""Groups of jobs that other programs inserted, filled at the claim."""

from __future__ import annotations

from tests.support.rows import Rows
from workerd.group import parse_template
from workerd.store import claimed_groups, claims
from workerd.store.base import Store
from workerd.store.claims import ClaimBatch, NodeIdent

NODE = NodeIdent(b"n" * 16, "one")
ODD = "💶 'x' \"y\" \\ %s"


def claim(store: Store) -> ClaimBatch:
    template = parse_template("{tenant}")
    return store.run(lambda tx: claimed_groups.fill(tx, claims.claim(tx, "h", 10, NODE), template))


def test_a_plain_insert_gets_its_group_at_the_claim(store: Store, store_url: str) -> None:
    """Unless it brings one."""
    rows = Rows(store_url)
    odd = rows.insert("h", {"tenant": ODD})
    own = rows.insert("h", {"tenant": "a"}, group_key="own")
    assert len(claim(store).claims) == 2
    assert rows.last(odd)["group_key"] == ODD
    assert rows.last(own)["group_key"] == "own"


def test_vars_that_give_no_group_fail_the_job(store: Store, store_url: str) -> None:
    """The others of its batch are claimed."""
    rows = Rows(store_url)
    wrong = rows.insert("h", {"tenant": None})
    right = rows.insert("h", {"tenant": "é" * 191})
    batch = claim(store)
    assert [claim.id for claim in batch.claims] == [right]
    [outcome] = batch.broken
    assert (outcome.id, outcome.status) == (wrong, "failure")
    assert "got null; correct the vars" in (outcome.error or "")
