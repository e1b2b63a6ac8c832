"""The audit's rows: in the order of the store's clock, found by indexes, removed when they are old."""

from __future__ import annotations

from typing import Any

import pytest

from workerd.clock import SECOND
from workerd.errors import InvalidValue
from workerd.store import audit
from workerd.store.base import Store, Tx


def insert(store: Store, at: int | None = None, **given: Any) -> None:
    def work(tx: Tx) -> None:
        if at is not None:
            tx.now = at
        audit.insert(
            tx, **{"actor": "ann", "role": "operator", "via": "cli", "action": "cancel", "target": "t",
            "detail": None, "address": None, **given},
        )  # fmt: skip

    store.run(work)


def listed(store: Store, **filters: Any) -> list[str | None]:
    return [row.target for row in store.read(lambda tx: audit.list_(tx, limit=100, **filters)).rows]


def test_newest_first_with_filters_and_pages(store: Store) -> None:
    """By actor, by target, since a time; pages repeat and omit none."""
    start = 1_900_000_000 * SECOND
    for n in range(5):
        insert(store, start + n, actor="ann" if n % 2 else "bob", target=f"t{n}")
    assert listed(store) == ["t4", "t3", "t2", "t1", "t0"]
    assert listed(store, actor="ann") == ["t3", "t1"]
    assert listed(store, actor="bob", target="t2") == ["t2"]
    insert(store, start + 10 * SECOND, target="late")
    assert listed(store, since=start + 5 * SECOND) == ["late"]
    first = store.read(lambda tx: audit.list_(tx, limit=4))
    rest = store.read(lambda tx: audit.list_(tx, limit=4, after=first.next))
    assert [row.target for row in first.rows + rest.rows] == ["late", "t4", "t3", "t2", "t1", "t0"]
    assert rest.next is None
    with pytest.raises(InvalidValue):
        store.read(lambda tx: audit.list_(tx, limit=4, after="x"))


def test_acts_on_many_jobs_are_found_by_each(store: Store) -> None:
    """A slice names the ids of its jobs; the act's target is their handler, or nothing."""
    insert(store, target="job-1")
    insert(store, target="mail", detail='{"ids":["job-1","job-2"]}')
    insert(store, target=None, detail='{"ids":["job-1"]}')
    insert(store, target="mail", action="pause")
    found = store.read(lambda tx: audit.of_job(tx, "job-1", "mail", 0, limit=10))
    assert [row.target for row in found] == [None, "mail", "job-1"]
    assert len(store.read(lambda tx: audit.of_job(tx, "job-2", "mail", 0, limit=10))) == 1
    assert not store.read(lambda tx: audit.of_job(tx, "job-1", "mail", tx.now + 60 * SECOND, limit=10))


def test_old_acts_are_removed(store: Store) -> None:
    """The oldest first, a slice at a time."""
    start = 1_900_000_000 * SECOND
    for n in range(6):
        insert(store, start + n * SECOND, target=f"t{n}")
    assert store.run(lambda tx: audit.purge(tx, start + 4 * SECOND, limit=3)) == 3
    assert listed(store) == ["t5", "t4", "t3"]
    assert store.run(lambda tx: audit.purge(tx, start + 4 * SECOND, limit=3)) == 1
    assert listed(store) == ["t5", "t4"]
