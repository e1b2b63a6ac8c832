"""Numbers of slots: a claim that reads few of them gives out what one that reads all of them would."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support import storing
from workerd.clock import SECOND
from workerd.config.limit_config import LimitConfig
from workerd.ingester import writer
from workerd.job import AttemptRef, Claim
from workerd.outcome import released
from workerd.rate_limit import Rate
from workerd.store import limited_claims, limits, reclaims, slot_numbers
from workerd.store.base import Store, Tx
from workerd.store.claim_window import LimitedHandler
from workerd.store.claims import NodeIdent
from workerd.store.limit_room import LockedLimit
from workerd.store.limited_batch import LimitedBatch
from workerd.store.queue_heads import QueueHeads
from workerd.store.reclaims import LimitScopes
from workerd.store.slot_numbers import NO_RANGE, SlotNumbers

HANDLER = LimitedHandler("h", "l", None, False)
NODES = 3


class Claimer:
    """The claims of one node, with where it remembers free numbers."""

    def __init__(self, store: Store, name: str = "one") -> None:
        self.store = store
        self.node = NodeIdent(name.encode().ljust(16), name)
        self.free_range = NO_RANGE

    def claim(
        self, wanted: int, concurrency: int, *, kept_for: str | None = None, rate: Rate | None = None
    ) -> list[Claim]:
        """`kept_for`: the handler for which the next slot is kept."""

        def work(tx: Tx) -> LimitedBatch:
            row = limits.lock(tx, ["l"])["l"]
            if kept_for is not None:
                row = row._replace(next_handler=kept_for, next_until=tx.now + limits.MAX_KEPT_US)
            limit = LockedLimit(LimitConfig(concurrency=concurrency, rate=rate), row, self.free_range)
            request = limited_claims.ClaimRequest(wanted, self.node)
            return limited_claims.claim(tx, HANDLER, request, limit, QueueHeads({}, False, None), None)

        batch = self.store.run(work)
        if batch.row is not None:
            self.free_range = batch.free_range
        return batch.batch.claims

    def close(self, claims: Sequence[Claim]) -> None:
        ended = [storing.outcome(claim) for claim in claims]
        self.store.run(lambda tx: writer.close(tx, ended, self.node.id))

    def release(self, claims: Sequence[Claim]) -> None:
        back = [released(claim) for claim in claims]
        self.store.run(lambda tx: writer.close(tx, back, self.node.id))


@pytest.fixture
def read_all(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return storing.note_reads_of_all_slots(monkeypatch)


def insert(store: Store, count: int) -> None:
    marks = ", ".join(["(%s, 'h')"] * count)
    made = [uuid.uuid4().bytes for _ in range(count)]
    store.run(lambda tx: tx.execute(f"INSERT INTO workerd_jobs (id, handler) VALUES {marks}", made))


def numbers(store: Store) -> list[int]:
    return [n for (n,) in store.read(lambda tx: tx.query("SELECT n FROM workerd_slots ORDER BY n"))]


def given(claims: Sequence[Claim]) -> list[int]:
    return [claim.limited.slot for claim in claims if claim.limited and claim.limited.slot is not None]


def test_of_a_limit_that_is_far_away_all_slots_are_read_once(store: Store, read_all: list[str]) -> None:
    """Then a claim reads those that it gives out, until it comes to the end of what was free."""
    insert(store, 60)
    claimer = Claimer(store)
    running = [claimer.claim(10, 1000)]
    assert (len(running[0]), read_all) == (10, ["l"])
    assert len(claimer.free_range) >= 20
    claimer.free_range = range(100, 900)
    for _ in range(3):
        running.append(claimer.claim(10, 1000))
        claimer.close(running.pop(0))
    assert len(read_all) == 1
    assert numbers(store) == given(running[0])
    claimer.free_range = range(990, 1000)
    assert given(claimer.claim(10, 1000)) == list(range(990, 1000))
    assert len(read_all) == 1
    assert len(claimer.claim(10, 1000)) == 10
    assert len(read_all) == 2


def test_a_claim_that_the_rate_lets_start_nothing_forgets_nothing(store: Store, read_all: list[str]) -> None:
    insert(store, 30)
    claimer = Claimer(store)
    rate = Rate(5, 3600 * SECOND, 5)
    claimer.free_range = range(100, 900)
    assert len(claimer.claim(10, 1000, rate=rate)) == 5
    assert claimer.claim(10, 1000, rate=rate) == []
    assert len(claimer.claim(10, 1000)) == 10
    assert read_all == []


def test_where_slots_beyond_the_limit_are_taken_no_range_is_remembered(
    store: Store, read_all: list[str]
) -> None:
    """It would be asked about in vain until they are free."""
    insert(store, 30)
    claimer = Claimer(store)
    claimer.free_range = range(500, 600)
    claimer.claim(1, 1000)
    for claims in range(1, 4):
        assert len(claimer.claim(2, 100)) == 2
        assert len(read_all) == claims


def test_a_number_that_another_node_gave_out_is_seen(store: Store, read_all: list[str]) -> None:
    """One of them is enough: all are read, and as many start as without it."""
    insert(store, 30)
    claimer, other = Claimer(store), Claimer(store, "two")
    claimer.claim(5, 1000)
    other.free_range = claimer.free_range[4:]
    taken = other.claim(1, 1000)
    assert given(taken) == [claimer.free_range[4]]
    again = claimer.claim(5, 1000)
    assert (len(again), len(read_all)) == (5, 2)
    assert len(set(numbers(store))) == 11


@pytest.mark.parametrize("running", [3, 8])
def test_slots_beyond_a_lowered_limit_count(store: Store, running: int) -> None:
    """Although all below it are free."""
    insert(store, 30)
    claimer = Claimer(store)
    claimer.free_range = range(500, 600)
    claimer.claim(running, 1000)
    claimer.free_range = range(100)
    assert len(claimer.claim(8, 8)) == 8 - running


def test_what_was_free_beyond_a_lowered_limit_is_forgotten(store: Store) -> None:
    insert(store, 30)
    claimer = Claimer(store)
    claimer.free_range = range(10, 100)
    assert len(claimer.claim(8, 16)) == 8
    assert max(numbers(store)) < 16


def test_the_slot_that_is_kept_for_another_handler_is_left(store: Store) -> None:
    """And no other, although the range that was free reaches to it."""
    insert(store, 30)
    claimer = Claimer(store)
    for left in range(7, 0, -1):
        claimer.free_range = range(8 - left - 1, 8)
        assert len(claimer.claim(1, 8, kept_for="other")) == 1
    assert claimer.claim(1, 8, kept_for="other") == []
    assert len(claimer.claim(1, 8, kept_for="h")) == 1


@pytest.mark.parametrize(
    ("config", "known"),
    [
        (LimitConfig(concurrency=100), range(10, 15)),
        (LimitConfig(concurrency=15), range(10, 15)),
        (LimitConfig(concurrency=14), NO_RANGE),
        (LimitConfig(concurrency=100, group_concurrency=1), NO_RANGE),
        (LimitConfig(group_concurrency=1), NO_RANGE),
        (LimitConfig(), NO_RANGE),
    ],
)
def test_a_free_range_is_used_where_no_other_slots_count(config: LimitConfig, known: range) -> None:
    """And below the limit, whatever it was when they were free."""
    assert LockedLimit(config, limits.RateRow(), range(10, 30)).numbers_for(5) == known
    assert LockedLimit(config, limits.RateRow(), range(10, 14)).numbers_for(5) == NO_RANGE


def test_a_free_range_is_found_wherever_it_is() -> None:
    """If it has room for two claims, and no slot beyond the limit is taken."""
    taken = [0, 1, 2, 7, 20, 21]
    bits = sum(1 << n for n in taken)
    found = {SlotNumbers(bits, {}).find_range([30, 31], 5, 60) for _ in range(300)}
    assert all(len(numbers) >= 10 for numbers in found)
    assert {numbers.stop for numbers in found} == {20, 60}
    assert all(not set(numbers) & {*taken, 30, 31} for numbers in found)
    assert SlotNumbers(bits, {}).find_range([30, 31], 7, 40) == NO_RANGE
    assert SlotNumbers(bits, {}).find_range([30, 31], 5, 21) == NO_RANGE
    assert SlotNumbers(0, {}).find_range([], 2**20, 2**40) == NO_RANGE
    assert SlotNumbers(0, {}).find_range([], 1, 2**40).stop == slot_numbers.RANGES_BELOW


class OneLimit(RuleBasedStateMachine):
    """Several nodes claim and end attempts of one limit, which is moved up and down."""

    store: Store

    def __init__(self) -> None:
        super().__init__()
        self.nodes = [Claimer(self.store, str(n)) for n in range(NODES)]
        self.running: list[tuple[int, Claim]] = []
        self.concurrency = 40
        insert(self.store, 400)
        self.waiting = 400

    @rule(node=st.integers(0, NODES - 1), wanted=st.integers(1, 9))
    def claim(self, node: int, wanted: int) -> None:
        room = max(0, self.concurrency - len(self.running))
        claims = self.nodes[node].claim(wanted, self.concurrency)
        assert len(claims) == min(wanted, room, self.waiting)
        assert all(n < self.concurrency for n in given(claims))
        self.waiting -= len(claims)
        self.running += [(node, claim) for claim in claims]

    @precondition(lambda self: self.running)
    @rule(data=st.data(), is_release=st.booleans())
    def end(self, data: Any, is_release: bool) -> None:
        first = data.draw(st.integers(0, len(self.running) - 1))
        ends = self.running[first : first + data.draw(st.integers(1, 12))]
        del self.running[first : first + len(ends)]
        for number, node in enumerate(self.nodes):
            own = [claim for of, claim in ends if of == number]
            if own and is_release:
                node.release(own)
                self.waiting += len(own)
            elif own:
                node.close(own)

    @rule(concurrency=st.sampled_from([5, 20, 40, 80, 300]))
    def move(self, concurrency: int) -> None:
        self.concurrency = concurrency

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def lose_slots(self, data: Any) -> None:
        """As where a limit begins to count what runs: it gets slots, even beyond the limit."""
        _, lost = self.running[data.draw(st.integers(0, len(self.running) - 1))]
        self.store.run(
            lambda tx: tx.execute("DELETE FROM workerd_slots WHERE id = %s AND attempt = %s", lost.ref)
        )

        def count(tx: Tx) -> list[AttemptRef]:
            limits.lock(tx, ["l"])
            return reclaims.count_running(tx, LimitScopes("l", ("limit",)), ["h"])

        assert self.store.run(count) == [lost.ref]

    @invariant()
    def what_runs_has_slots(self) -> None:
        rows = self.store.read(lambda tx: tx.query("SELECT n, id, attempt FROM workerd_slots"))
        assert sorted(row[1:] for row in rows) == sorted(tuple(claim.ref) for _, claim in self.running)
        assert len({row[0] for row in rows}) == len(rows)

    def teardown(self) -> None:
        self.store.run(lambda tx: tx.execute("DELETE FROM workerd_jobs"))
        self.store.run(lambda tx: tx.execute("DELETE FROM workerd_slots"))


def test_as_many_start_as_the_limit_allows_whatever_was_read(store: Store) -> None:
    """Random claims of three nodes, ends, releases, and changes of the limit."""

    class Machine(OneLimit):
        pass

    Machine.store = store
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Machine,
        settings=settings(
            max_examples=20, stateful_step_count=30, deadline=None, database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
