"""A walk through a handler's queue finds groups that stand between others."""

from __future__ import annotations

from collections import Counter
from uuid import uuid4

import pytest

from tests.support.rows import Rows
from workerd.group import parse_template
from workerd.store import group_queues, hidden_groups
from workerd.store.base import Store
from workerd.store.claim_window import LimitedHandler

HANDLER = LimitedHandler("h", None, None, fair=True)


def insert(rows: Rows, *groups: str | None, together: bool = False) -> None:
    """Jobs of these groups, each due a microsecond after the one before, or all together."""
    marks = ", ".join(["(%s, 'h', %s, %s)"] * len(groups))
    params: list[object] = []
    for number, group in enumerate(groups):
        params += [uuid4().bytes, group, f"2026-01-01 00:00:00.{0 if together else number:06}"]
    rows.sql(f"INSERT INTO workerd_jobs (id, handler, group_key, run_at) VALUES {marks}", *params)


def walked(store: Store, handler: LimitedHandler = HANDLER, *passed: str) -> Counter[str]:
    """What a whole walk has parked, by group."""
    found: Counter[str] = Counter()
    place = None
    while True:
        step = store.run(lambda tx, at=place: hidden_groups.walk(tx, handler, set(passed), at))
        found.update({group: len(jobs) for group, jobs in step.parked.items()})
        place = step.place
        if place is None:
            return found


@pytest.mark.parametrize("together", [False, True])
def test_the_first_jobs_of_each_other_group_are_parked(store: Store, store_url: str, together: bool) -> None:
    """Some of each in each step, wherever they stand."""
    rows = Rows(store_url)
    insert(rows, *["a"] * 1500, *["b"] * 3, *["c"] * 250, *["a"] * 1500, "d", together=together)
    found = walked(store, HANDLER, "a")
    assert (found["b"], found["d"]) == (3, 1)
    assert 200 <= found["c"] <= 250
    assert store.read(lambda tx: group_queues.scan(tx, "h")).heads.keys() == {"b", "c", "d"}
    assert walked(store, HANDLER, "a")["c"] == 250 - found["c"]
    assert walked(store, HANDLER, "a") == {}
    waiting = rows.sql("SELECT COUNT(*) AS n FROM workerd_jobs WHERE status = 'new' AND queue IS NULL")
    assert waiting[0]["n"] == 3000


def test_rows_that_others_have_locked_stay(store: Store, store_url: str) -> None:
    """And those without a group where it is to be filled from the vars."""
    rows = Rows(store_url)
    insert(rows, "b", "b", None)
    filled = LimitedHandler("h", None, parse_template("{tenant}"), fair=True)
    if not rows.sqlite:
        with rows.connection() as other:
            cursor = other.cursor()
            cursor.execute("BEGIN")
            cursor.execute("SELECT 1 FROM workerd_jobs WHERE group_key = 'b' FOR UPDATE")
            assert walked(store, filled) == {}
            other.rollback()
    assert walked(store, filled) == {"b": 2}
