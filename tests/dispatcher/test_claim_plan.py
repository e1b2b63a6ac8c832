"""Which handlers may be claimed next, given the pools' capacities and earlier claims."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from workerd.dispatcher import claim_plan
from workerd.dispatcher.claim_plan import (
    LEAD_S,
    MAX_HANDLERS,
    NEWCOMERS,
    ClaimedBatch,
    ClaimOutlook,
    ClaimPlan,
    ClaimPlanner,
)
from workerd.dispatcher.pool_links import PoolLink, PoolLinks
from workerd.messages import Demand, ToDispatcher
from workerd.runtime.loop import Loop
from workerd.store.claims import ClaimBatch

MAX_ROWS = 100


class Pools:
    """Links of pools that reported their capacity, without a pool at the other end."""

    def __init__(self, folder: Path) -> None:
        self.loop = Loop()
        self.links: PoolLinks = PoolLinks(
            self.loop,
            folder / "dispatcher",
            process="dispatcher",
            incoming=ToDispatcher,
            peer_class=PoolLink,
            owner=self,
        )
        self.planner = ClaimPlanner(self.links, MAX_ROWS, fair=["fair"])
        self._ends: list[socket.socket] = []

    def on_peer_up(self, peer: PoolLink) -> None: ...

    def on_peer_down(self, peer: PoolLink) -> None: ...

    def on_peer_message(self, peer: PoolLink, message: object) -> None: ...

    def add(self, capacity: int, *handlers: str) -> PoolLink:
        ours, theirs = socket.socketpair()
        self._ends.append(theirs)
        link = PoolLink(self.links, ours)
        link.life = len(self._ends)
        self.links.peers[link.life] = link
        link.on_demand(Demand(received=0, room=capacity, handlers=handlers))
        return link

    def carry_out(
        self, plan: ClaimPlan, found: int | dict[str, int], outlook: ClaimOutlook | None = None
    ) -> None:
        """The plan's claims brought so many rows each, which fit into no pool and are not counted as sent."""
        self.planner.learn(
            plan,
            [
                ClaimedBatch(
                    share.link,
                    handler,
                    share.capacity,
                    ClaimBatch([], [], None, found if isinstance(found, int) else found[handler]),
                    outlook,
                )
                for share in plan.shares
                for handler in share.cursors
            ],
        )

    def close(self) -> None:
        for link in self.links.peers.values():
            link.channel.close()
        self.links.close()
        for end in self._ends:
            end.close()
        self.loop.close()


@pytest.fixture
def pools(tmp_path: Path) -> Iterator[Pools]:
    made = Pools(tmp_path)
    yield made
    made.close()


def shares(plan: ClaimPlan) -> list[tuple[int, int, list[str]]]:
    return [(share.link.life, share.capacity, list(share.cursors)) for share in plan.shares]


def test_each_pool_gets_its_capacity_and_all_together_the_batch(pools: Pools) -> None:
    """Pools without capacity get no share."""
    pools.add(70, "a")
    pools.add(0, "b")
    pools.add(70, "c")
    pools.add(70, "d")
    assert shares(pools.planner.plan()) == [(1, 70, ["a"]), (3, 30, ["c"])]


def test_idle_groups_do_not_wait_for_the_capacity_of_a_busy_pool(
    pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each announcement, and not of a pool that is full of long runs."""
    monkeypatch.setattr(claim_plan, "NEWCOMER_PAUSE_S", 60.0)
    monkeypatch.setattr(claim_plan, "NEWCOMER_BUSY_S", 1e6)
    link = pools.add(10, "fair")
    pools.carry_out(pools.planner.plan(), 10)
    link.on_demand(Demand(received=0, room=0, handlers=("fair",)))
    assert pools.planner.plan().shares == []
    pools.planner.announce(["fair"])
    [share] = pools.planner.plan().shares
    assert (share.capacity, share.idle_only) == (NEWCOMERS, True)
    assert pools.planner.plan().shares == []
    pools.planner.announce(["fair"])
    again = pools.planner.plan()
    assert again.shares == []
    assert again.wait_s is not None
    assert 0 < again.wait_s <= 60.0
    link.sent = NEWCOMERS
    assert pools.planner.plan().wait_s is None
    link.sent = 0
    monkeypatch.setattr(claim_plan, "NEWCOMER_BUSY_S", 0.0)
    assert pools.planner.plan().wait_s is None


def test_idle_groups_come_before_what_a_busy_pool_has_capacity_for(
    pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the pool waits for its capacity to grow or not: a claim of a few rows is over sooner."""
    monkeypatch.setattr(claim_plan, "NEWCOMER_BUSY_S", 1e6)
    for linger_s in (60.0, 0.0):
        monkeypatch.setattr(claim_plan, "NEWCOMER_PAUSE_S", 0.0)
        monkeypatch.setattr(claim_plan, "LINGER_S", linger_s)
        link = pools.add(10, "fair")
        pools.carry_out(pools.planner.plan(), 10)
        pools.planner.announce(["fair"])
        [share] = pools.planner.plan().shares
        assert (share.capacity, share.idle_only) == (NEWCOMERS, True)
        assert [share.idle_only for share in pools.planner.plan().shares] == ([] if linger_s else [False])
        link.on_demand(Demand(received=0, room=0, handlers=()))


def test_a_transaction_claims_for_a_bounded_number_of_handlers(pools: Pools) -> None:
    """They share its locks; the next one continues with other handlers."""
    names = [f"h{n}" for n in range(MAX_HANDLERS + 4)]
    pools.add(50, *names)
    first = pools.planner.plan()
    assert first.handlers == names[:MAX_HANDLERS]
    pools.carry_out(first, 5)
    assert pools.planner.plan().handlers == [*names[MAX_HANDLERS:], *names[: MAX_HANDLERS - 4]]


def test_pools_take_turns(pools: Pools) -> None:
    """The one that was served goes last."""
    for handler in ("a", "b"):
        pools.add(MAX_ROWS, handler)
    plan = pools.planner.plan()
    assert shares(plan) == [(1, MAX_ROWS, ["a"])]
    pools.carry_out(plan, MAX_ROWS)
    assert shares(pools.planner.plan()) == [(2, MAX_ROWS, ["b"])]


@pytest.mark.parametrize("pool_of", [{"a": 0, "b": 0}, {"a": 0, "b": 1}])
def test_handlers_take_turns_at_what_is_left_of_a_limit(pools: Pools, pool_of: dict[str, int]) -> None:
    """Whether of one pool or two; one that was asked for and got nothing comes first at the next slot."""
    for pool in (0, 1):
        pools.add(5, *(handler for handler in pool_of if pool_of[handler] == pool))
    served = []
    for _ in range(6):
        pools.planner.wake("ab")
        plan = pools.planner.plan()
        first, second = plan.handlers
        pools.carry_out(plan, {first: 1, second: 0}, ClaimOutlook(more=False, retry_in_s=None, busy=False))
        served.append(first)
        assert pools.planner.plan().shares == []
        pools.planner.wake(second)  # jobs of it alone were announced, while the limit is full
        pools.carry_out(pools.planner.plan(), 0, ClaimOutlook(more=False, retry_in_s=None, busy=False))
    assert served == ["a", "b"] * 3


def test_handlers_that_go_on_without_getting_anything_keep_no_other_waiting(pools: Pools) -> None:
    """As while they move the jobs of full groups out of the way."""
    busy = [f"h{n}" for n in range(MAX_HANDLERS)]
    pools.add(5, *busy)
    pools.add(5, "other")
    plan = pools.planner.plan()
    assert plan.handlers == busy
    pools.carry_out(plan, 0, ClaimOutlook(more=True, retry_in_s=None, busy=False))
    assert pools.planner.plan().handlers[0] == "other"


def test_a_handler_without_rows_is_left_out_until_it_is_announced(pools: Pools) -> None:
    """An idle node claims nothing; a wake-up that names no handler tries the few there are."""
    pools.add(5, "a", "b")
    pools.carry_out(pools.planner.plan(), 0)
    assert pools.planner.plan() == ClaimPlan([], None)
    assert pools.planner.unpromising() == {"a", "b"}
    assert not pools.planner.announce(["other"])
    assert pools.planner.announce(["b"])
    assert pools.planner.plan().handlers == ["b"]
    pools.carry_out(pools.planner.plan(), 0)
    assert pools.planner.announce()
    assert sorted(pools.planner.plan().handlers) == ["a", "b"]


def test_many_handlers_are_peeked_at_before_they_are_claimed_for(pools: Pools) -> None:
    """A wake-up that names no handler costs one statement, not one for each."""
    pools.add(5, "a", "b", "c")
    pools.carry_out(pools.planner.plan(), 0)
    assert pools.planner.announce()
    assert pools.planner.plan() == ClaimPlan([], None)
    assert pools.planner.to_peek() == ["a", "b", "c"]
    pools.planner.peeked()
    pools.planner.wake({"b"})
    assert pools.planner.to_peek() == []
    assert pools.planner.plan().handlers == ["b"]


def test_a_busy_pool_waits_for_its_capacity_to_grow(pools: Pools, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that just got all it asked for, and has little capacity now."""
    monkeypatch.setattr(claim_plan, "LINGER_S", 60.0)
    link = pools.add(10, "a")
    pools.carry_out(pools.planner.plan(), 10)
    assert pools.planner.is_busy()
    waiting = pools.planner.plan()
    assert waiting.shares == []
    assert waiting.wait_s is not None
    assert 0 < waiting.wait_s <= 60.0
    monkeypatch.setattr(claim_plan, "LINGER_S", 0.0)
    assert shares(pools.planner.plan()) == [(1, 10, ["a"])]
    pools.planner.forget_pool(link)
    assert not pools.planner.is_busy()


def test_a_refused_handler_is_found_and_left_out(pools: Pools) -> None:
    """Handlers are claimed for one at a time until it is found; the others go on."""
    pools.add(5, "bad", "good")
    plan = pools.planner.plan()
    assert pools.planner.bar(plan) is None
    plan = pools.planner.plan()
    assert len(plan.handlers) == 1
    assert pools.planner.bar(plan) == plan.handlers[0]
    rest = {handler for _ in range(4) for handler in pools.planner.plan().handlers}
    assert rest == {"bad", "good"} - {plan.handlers[0]}


def test_paused_handlers_are_not_planned(pools: Pools) -> None:
    """Those that were resumed are returned, to be announced."""
    pools.add(5, "a", "b")
    assert pools.planner.pause(frozenset({"a"})) == frozenset()
    assert pools.planner.plan().handlers == ["b"]
    assert pools.planner.pause(frozenset()) == {"a"}


@pytest.mark.parametrize(("retry_in_s", "lead_s"), [(10.0, LEAD_S), (1.5 * LEAD_S, 0.0)])
def test_what_a_rate_lets_start_later_is_claimed_a_moment_early(
    pools: Pools, monkeypatch: pytest.MonkeyPatch, retry_in_s: float, lead_s: float
) -> None:
    """A claim reads the store's clock some time later; one that was too early is tried again exactly then."""
    monkeypatch.setattr(claim_plan.time, "monotonic", lambda: 1000.0)
    pools.add(2, "h")
    pools.carry_out(pools.planner.plan(), 1, ClaimOutlook(more=False, retry_in_s=retry_in_s, busy=False))
    plan = pools.planner.plan()
    assert plan.shares == []
    assert plan.wait_s == pytest.approx(retry_in_s - lead_s)
