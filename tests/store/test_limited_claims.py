"""Claims by limit, group and turn: what starts, what waits, and what is given back."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterator

import msgspec
import pytest

from tests.support import storing
from tests.support.eventually import eventually
from tests.support.rows import Rows
from workerd import clock
from workerd.clock import SECOND
from workerd.config.limit_config import LimitConfig
from workerd.fairness import FairTurns
from workerd.group import parse_template
from workerd.ingester import writer
from workerd.job import Claim
from workerd.outcome import Hold, released
from workerd.rate_limit import Rate
from workerd.store import group_queues, held_attempts, job_control, limited_claims, limits
from workerd.store import slots as store_slots
from workerd.store.base import Store, Tx
from workerd.store.claim_window import LimitedHandler
from workerd.store.claims import NodeIdent
from workerd.store.limit_room import LockedLimit
from workerd.store.limited_batch import LimitedBatch
from workerd.store.queue_heads import QueueHeads
from workerd.store.slot_numbers import NO_RANGE

NODE = NodeIdent(b"n" * 16, "one")
ODD = "💶 'x' \"y\" \\ %s"


class Claimer:
    """One node's claims of one handler, with what it remembers."""

    def __init__(
        self, store: Store, config: LimitConfig | None = None, template: str = "", *, fair: bool = False
    ) -> None:
        self.store = store
        self.config = config
        parsed = parse_template(template) if template else None
        self.handler = LimitedHandler("h", None if config is None else "l", parsed, fair)
        self.turns = FairTurns({"heavy": 3}) if fair else None
        self.heads: dict[str, limited_claims.Waiting] = {}
        self.scan = True
        self.free_range = NO_RANGE
        self.last: LimitedBatch | None = None

    def claim(self, wanted: int = 10, *, idle_only: bool = False) -> list[Claim]:
        def work(tx: Tx) -> LimitedBatch:
            limit = None
            if self.config is not None:
                limit = LockedLimit(self.config, limits.lock(tx, ["l"])["l"], self.free_range)
            turns = None if self.turns is None else self.turns.trial()
            known = QueueHeads(self.heads, self.scan, None)
            request = limited_claims.ClaimRequest(wanted, NODE, idle_only=idle_only)
            return limited_claims.claim(tx, self.handler, request, limit, known, turns)

        batch = self.last = self.store.run(work)
        for group, head in batch.heads.items():
            if head is None:
                self.heads.pop(group, None)
            else:
                self.heads[group] = head
        if self.turns is not None and batch.turns is not None:
            self.turns.adopt(batch.turns)
        if batch.row is not None:
            self.free_range = batch.free_range
        return batch.batch.claims

    def close(self, claimed: Claim, *, hold: Hold | None = None) -> set[str]:
        outcome = storing.outcome(claimed, hold=hold)
        return self.store.run(lambda tx: writer.close(tx, [outcome], NODE.id)).freed

    def release(self, claimed: Claim) -> set[str]:
        return self.store.run(lambda tx: writer.close(tx, [released(claimed)], NODE.id)).freed


def insert(rows: Rows, *groups: str | None, priority: int = 0) -> list[bytes]:
    """Insert a job of each of these groups with one statement, in their order."""
    made = [uuid.uuid4().bytes for _ in groups]
    times = [f"2026-01-01 00:00:00.{number:06}" for number in range(len(groups))]
    marks = ", ".join([f"(%s, 'h', %s, %s, {priority})"] * len(groups))
    params = [value for row in zip(made, groups, times, strict=True) for value in row]
    rows.sql(f"INSERT INTO workerd_jobs (id, handler, group_key, run_at, priority) VALUES {marks}", *params)
    return made


def slots(rows: Rows) -> list[tuple[str, str, int]]:
    found = rows.sql("SELECT scope, group_key, n FROM workerd_slots ORDER BY scope, group_key, n")
    return sorted((row["scope"], row["group_key"], row["n"]) for row in found)


@pytest.fixture
def rows(store: Store, store_url: str) -> Iterator[Rows]:
    """Plain INSERTs; at the end no slot may be taken by what does not run."""
    found = Rows(store_url)
    yield found
    running = found.sql("SELECT COUNT(*) AS n FROM workerd_jobs WHERE status = 'inprogress'")[0]["n"]
    held = found.sql("SELECT COUNT(DISTINCT id) AS n FROM workerd_slots")[0]["n"]
    assert held <= running


def test_no_more_run_than_the_limit_allows(store: Store, rows: Rows) -> None:
    """What does not fit stays `new`; a slot that was freed is taken again."""
    claimer = Claimer(store, LimitConfig(concurrency=3))
    insert(rows, *[None] * 5)
    first = claimer.claim()
    assert len(first) == 3
    assert slots(rows) == [("limit", "", 0), ("limit", "", 1), ("limit", "", 2)]
    assert claimer.claim() == []
    assert rows.counts() == {"inprogress": 3, "new": 2}
    assert claimer.close(first[1]) == {"l"}
    [again] = claimer.claim()
    assert slots(rows) == [("limit", "", 0), ("limit", "", 1), ("limit", "", 2)]
    for claim in (first[0], first[2], again):
        claimer.close(claim)
    assert slots(rows) == []


def test_where_groups_do_not_count_the_first_rows_start(store: Store, rows: Rows) -> None:
    """Nobody looks for queues of groups; a hold may still name one."""
    claimer = Claimer(store, LimitConfig(concurrency=100))
    claimer.scan = False
    ids = insert(rows, *[ODD, None] * 35)
    rows.sql("UPDATE workerd_jobs SET cancel_requested_at = run_at WHERE id = %s", ids[1])
    claimed = claimer.claim(40)
    assert [claim.id for claim in claimed] == [ids[0], *ids[2:40]]
    assert [claim.limited and claim.limited.group for claim in claimed[:3]] == [ODD, ODD, ""]
    assert claimer.last is not None
    assert claimer.last.more
    for claim in claimed[3:36]:
        claimer.close(claim)
    assert len(claimer.claim(40)) == 30
    assert claimer.last.more is False
    assert [n for _, _, n in slots(rows)] == [*range(33), 36, 37, 38]
    assert claimer.claim(40) == []


def test_the_lowest_free_slots_are_taken(store: Store, rows: Rows) -> None:
    """Where no free range is known; also where each number of a word is taken."""
    claimer = Claimer(store, LimitConfig(concurrency=200))
    insert(rows, *[None] * 140)
    claimed = claimer.claim(130)
    for n in (3, 63, 127):
        claimer.close(claimed[n])
    assert len(claimer.claim(130)) == 10
    assert [n for _, _, n in slots(rows)] == list(range(137))


def test_slots_are_freed_whatever_their_numbers(store: Store, rows: Rows) -> None:
    """An attempt has other ones after a store that failed over has lost its own."""
    claimer = Claimer(store, LimitConfig(concurrency=9, group_concurrency=9))
    rows.insert("h", group_key="a")
    [claimed] = claimer.claim()
    others = rows.insert("h", group_key="b")
    [other] = claimer.claim()
    rows.sql("UPDATE workerd_slots SET n = 7 WHERE id = %s", claimed.id)
    claimer.close(claimed)
    assert {row["id"] for row in rows.sql("SELECT id FROM workerd_slots")} == {others}
    claimer.close(other)
    assert slots(rows) == []


def test_slots_are_freed_beside_others_that_are_being_freed(
    store: Store, rows: Rows, store_url: str, opened: Callable[[str], Store]
) -> None:
    """Nobody waits for the slot with the next number, which another transaction frees."""
    if rows.sqlite:
        pytest.skip("SQLite has one writer")
    ours, theirs = Claimer(store, LimitConfig(concurrency=20)), Claimer(opened(store_url))
    insert(rows, *[None] * 16)
    claimed = ours.claim(20)

    def work(tx: Tx) -> None:
        ending = {5, 12, 15}
        writer.close(tx, [storing.outcome(claimed[n]) for n in ending], NODE.id)
        outcomes = [storing.outcome(claim) for n, claim in enumerate(claimed) if n not in ending]
        theirs.store.run(lambda other: writer.close(other, outcomes, NODE.id), retry_for_s=0)

    store.run(work)
    assert slots(rows) == []


def test_a_group_has_slots_of_its_own(store: Store, rows: Rows) -> None:
    """Whatever its name; jobs without a group share one."""
    claimer = Claimer(store, LimitConfig(concurrency=20, group_concurrency=1))
    insert(rows, ODD, ODD, "é" * 191, "é" * 191, None, None)
    claimed = claimer.claim()
    assert Counter(rows.last(c.id)["group_key"] for c in claimed) == {ODD: 1, "é" * 191: 1, None: 1}
    assert claimer.claim() == []
    assert len([row for row in rows.sql("SELECT queue FROM workerd_jobs WHERE queue IS NOT NULL")]) == 3
    for claim in claimed:
        claimer.close(claim)
    assert len(claimer.claim()) == 3


@pytest.mark.slow
@pytest.mark.parametrize("template", ["", "{tenant}"])
def test_large_claims_share_by_weight(store: Store, rows: Rows, template: str) -> None:
    """Also while all that can be seen in front is of one group, and groups are filled from the vars."""
    claimer = Claimer(store, template=template, fair=True)
    groups = ["heavy"] * 1500 + ["light"] * 1500
    insert(rows, *groups)
    if template:
        rows.sql("UPDATE workerd_jobs SET vars = JSON_OBJECT('tenant', group_key), group_key = NULL")
    for _ in range(3):
        claimed = claimer.claim(400)
        found = Counter(rows.last(claim.id)["group_key"] for claim in claimed)
        assert found["heavy"] == pytest.approx(300, abs=2)
        assert found["light"] == pytest.approx(100, abs=2)


def test_a_full_group_does_not_hide_others(store: Store, rows: Rows) -> None:
    """Its jobs move out of the way, and come back in their order."""
    claimer = Claimer(store, LimitConfig(group_concurrency=1))
    *ids, other = insert(rows, *["a"] * 600, "b")
    claimed = []
    for _ in range(4):
        claimed += claimer.claim(1)
    assert [claim.id for claim in claimed] == [ids[0], other]
    claimer.close(claimed[0])
    assert [claim.id for claim in claimer.claim(5)] == [ids[1]]


def test_queues_of_groups_are_found_by_a_node_that_knows_none(store: Store, rows: Rows) -> None:
    """Also more than one scan finds, and after the group of a job was changed."""
    parker = Claimer(store, LimitConfig(group_concurrency=1))
    insert(rows, *[f"g{number // 2}" for number in range(40)])
    for claim in parker.claim(40):
        parker.close(claim)
    rows.sql("UPDATE workerd_jobs SET group_key = 'moved' WHERE group_key = 'g7' AND status = 'new'")
    other = Claimer(store, LimitConfig(group_concurrency=1))
    claimed = other.claim(40)
    claimed += other.claim(40)
    groups = {rows.last(claim.id)["group_key"] for claim in claimed}
    assert groups == {f"g{n}" for n in range(20) if n != 7} | {"moved"}
    assert store.read(lambda tx: group_queues.is_any(tx, "h")) is False


def test_a_scan_does_not_read_what_waits_in_a_full_group(store: Store, rows: Rows) -> None:
    """It goes from one group to the next, however many jobs one has."""
    if store.dialect.name != "mysql":
        pytest.skip("SQLite does not count what it reads")
    insert(rows, *["full"] * 3000, *[f"g{number}" for number in range(20)])
    for group in ("full", *[f"g{number}" for number in range(20)]):
        queue = group_queues.name("h", group)
        rows.sql("UPDATE workerd_jobs SET queue = %s WHERE group_key = %s", queue, group)

    def work(tx: Tx) -> tuple[int, list[str]]:
        sql = "SHOW SESSION STATUS LIKE 'Handler_read_next'"
        before = int(tx.query(sql)[0][1])
        found = group_queues.names(tx, "h").names
        return int(tx.query(sql)[0][1]) - before, found

    read, found = store.read(work)
    assert len(found) == 21
    assert read < 1000


def test_a_claim_does_not_read_what_waits_in_a_full_group(store: Store, rows: Rows) -> None:
    """It reads and asks as much as beside a full group of which nothing waits."""
    if store.dialect.name != "mysql":
        pytest.skip("SQLite does not count what it reads")
    claimer = Claimer(store, LimitConfig(group_concurrency=1))

    def read() -> int:
        found = store.read(lambda tx: tx.query("SHOW SESSION STATUS LIKE 'Handler_read%'"))
        return sum(int(count) for _, count in found)

    def read_by_a_claim() -> int:
        insert(rows, *["other"] * 5)
        claimer.scan = False
        before = read()
        [claimed] = claimer.claim(1)
        counted = read() - before
        assert claimed.limited is not None
        assert claimed.limited.group == "other"
        claimer.close(claimed)
        return counted

    insert(rows, "full", "full")
    claimer.claim()
    read_by_a_claim()
    alone = read_by_a_claim()
    waiting = insert(rows, *["full"] * 3000)
    rows.sql("UPDATE workerd_jobs SET queue = %s WHERE id >= %s AND group_key = 'full' AND status = 'new'",
             group_queues.name("h", "full"), min(waiting))  # fmt: skip
    assert read_by_a_claim() <= alone + 5


def test_a_job_whose_group_is_changed_leaves_the_queue_of_the_old_one(store: Store, rows: Rows) -> None:
    """It counts for the new one from then on."""
    claimer = Claimer(store, LimitConfig(group_concurrency=1))
    _, waits = insert(rows, "a", "a")
    assert len(claimer.claim()) == 1

    def change(tx: Tx) -> None:
        job_control.change_waiting(tx, job_control.lock_waiting(tx, waits), {"group_key": "b"}, None)

    store.run(change)
    [claimed] = claimer.claim()
    assert claimed.limited is not None
    assert (claimed.id, claimed.limited.group) == (waits, "b")


def test_a_lowered_limit_lets_what_runs_end(store: Store, rows: Rows) -> None:
    """Nothing starts until fewer run than the new one allows."""
    insert(rows, *[None] * 6)
    high, low = Claimer(store, LimitConfig(concurrency=4)), Claimer(store, LimitConfig(concurrency=2))
    claimed = high.claim()
    assert len(claimed) == 4
    for claim in claimed[:2]:
        low.close(claim)
        assert low.claim() == []
    low.close(claimed[2])
    assert len(low.claim()) == 1


def test_starts_are_bounded_by_the_rate(store: Store, rows: Rows) -> None:
    """The next fits at a time that the claim tells; a release gives its start back."""
    claimer = Claimer(store, LimitConfig(rate=Rate(5, 3600 * SECOND, 5), burst=2))
    insert(rows, *[None] * 4)
    first = claimer.claim()
    assert len(first) == 2
    assert claimer.claim() == []
    assert claimer.last is not None
    expected = first[0].claimed_at + 720 * SECOND
    assert claimer.last.retry_at == pytest.approx(expected, abs=2)
    assert claimer.close(first[1]) == set(), "it leaves nothing to others"
    assert claimer.release(first[0]) == {"l"}
    again = claimer.claim()
    assert [claim.id for claim in again] == [first[0].id]
    assert claimer.claim() == []


@pytest.mark.parametrize("name", ["rate", "group_rate"])
def test_a_rate_that_was_raised_holds_from_now_on(store: Store, rows: Rows, name: str) -> None:
    """Not only once the old one, of a start in ten minutes, would let the next start."""
    slow, quick = Rate(1, 600 * SECOND, 1), Rate(100, SECOND, 1)
    insert(rows, *["a"] * 3)
    assert len(Claimer(store, LimitConfig(**{name: slow})).claim()) == 1
    claimer = Claimer(store, LimitConfig(**{name: quick}))
    assert claimer.claim() == []
    assert claimer.last is not None
    retry_at = claimer.last.retry_at
    assert retry_at is not None
    assert retry_at <= store.read(lambda tx: tx.now) + SECOND
    eventually(claimer.claim)
    rows.sql("DELETE FROM workerd_slots")


def test_a_start_that_came_in_again_is_not_given_back(store: Store, rows: Rows) -> None:
    """Without it the bucket would have been full no less: one more start would be one too many."""
    claimer = Claimer(store, LimitConfig(rate=Rate(1, 3600 * SECOND, 1)))
    insert(rows, *[None] * 3)
    (first,) = claimer.claim()
    earlier = first.claimed_at - 7200 * SECOND
    rows.sql("UPDATE workerd_jobs SET claimed_at = %s WHERE status = 'inprogress'", clock.to_text(earlier))
    rows.sql("UPDATE workerd_rates SET tat = %s", clock.to_text(earlier + 3600 * SECOND))
    assert len(claimer.claim()) == 1, "an hour has passed since"
    assert claimer.release(msgspec.structs.replace(first, claimed_at=earlier)) == {"l"}
    assert rows.counts() == {"inprogress": 1, "new": 2}
    assert claimer.claim() == []


def test_groups_have_rates_of_their_own(store: Store, rows: Rows) -> None:
    """One that has used its rate up waits in its queue, others go on."""
    claimer = Claimer(store, LimitConfig(group_rate=Rate(1, 3600 * SECOND, 1)))
    ids = insert(rows, "a", "a", "b")
    claimed = claimer.claim()
    assert [claim.id for claim in claimed] == [ids[0], ids[2]]
    assert claimer.claim() == []
    assert claimer.last is not None
    assert claimer.last.retry_at is not None
    claimer.release(claimed[0])
    assert [claim.id for claim in claimer.claim()] == [ids[0]]


@pytest.mark.parametrize("scope", ["group", "limit"])
def test_a_hold_stops_a_group_or_the_limit(store: Store, rows: Rows, scope: str) -> None:
    """From the commit that records it on, for so long."""
    claimer = Claimer(store, LimitConfig(concurrency=10))
    first = rows.insert("h", group_key="a")
    [claimed] = claimer.claim()
    assert claimed.id == first
    claimer.close(claimed, hold=Hold(scope, 3600 * SECOND))  # type: ignore[arg-type]
    held = rows.insert("h", group_key="a")
    other = rows.insert("h", group_key="b")
    assert [claim.id for claim in claimer.claim()] == ([other] if scope == "group" else [])
    assert claimer.last is not None
    assert claimer.claim() == []
    assert claimer.last.retry_at is not None
    [hold] = store.read(limits.held)
    assert (hold.limit, hold.group) == ("l", "a" if scope == "group" else None)
    rows.sql("UPDATE workerd_rates SET held_until = '2020-01-01 00:00:00.000000'")
    assert held in {claim.id for claim in claimer.claim()}


def test_a_hold_of_a_group_holds_where_groups_do_not_count(store: Store, rows: Rows) -> None:
    """Also while no queue of a group is known, or looked for."""
    claimer = Claimer(store, LimitConfig(concurrency=10))
    claimer.scan = False
    rows.insert("h", group_key="a")
    [claimed] = claimer.claim()
    claimer.close(claimed, hold=Hold("group", 3600 * SECOND))
    _, _, other = insert(rows, "a", "a", "b")
    assert [claim.id for claim in claimer.claim()] == [other]
    assert claimer.claim() == []


def test_fair_groups_take_turns(store: Store, rows: Rows) -> None:
    """Also by single claims, with weights; what floods does not keep the others waiting."""
    claimer = Claimer(store, fair=True)
    insert(rows, *["heavy"] * 400, *["light"] * 10)
    order = [rows.last(claimer.claim(1)[0].id)["group_key"] for _ in range(16)]
    assert Counter(order) == {"heavy": 12, "light": 4}
    rows.insert("h", group_key="new")
    later = [rows.last(claimer.claim(1)[0].id)["group_key"] for _ in range(4)]
    assert "new" in later


def test_the_first_job_of_a_group_that_was_idle_is_ahead(store: Store, rows: Rows) -> None:
    """Of what its pool was given before; further ones are not."""
    claimer = Claimer(store, fair=True)
    insert(rows, *["a"] * 6)
    assert [claim.is_ahead for claim in claimer.claim(4)] == [True, False, False, False]
    [late, _] = [rows.insert("h", group_key="b") for _ in range(2)]
    claimed = claimer.claim(4)
    assert [claim.id for claim in claimed if claim.is_ahead] == [late]
    assert claimed[0].id == late


def test_of_one_claim_only_the_most_urgent_are_ahead(store: Store, rows: Rows) -> None:
    """Else the first job of an idle group would start before more urgent ones that come with it."""
    claimer = Claimer(store, fair=True)
    insert(rows, "a", "a", "b", priority=5)
    insert(rows, "c", priority=10)
    claimed = claimer.claim(4)
    assert [(claim.priority, claim.is_ahead) for claim in claimed] == [
        (5, True), (5, True), (5, False), (10, False),
    ]  # fmt: skip


def test_a_claim_for_idle_groups_leaves_the_others(store: Store, rows: Rows) -> None:
    """Their jobs wait for capacity; those of the idle ones do not."""
    claimer = Claimer(store, fair=True)
    ids = insert(rows, *["a"] * 6)
    claimer.claim(4)
    assert claimer.claim(2, idle_only=True) == []
    late = rows.insert("h", group_key="b")
    assert [claim.id for claim in claimer.claim(2, idle_only=True)] == [late]
    assert [claim.id for claim in claimer.claim(2)] == ids[4:]


@pytest.mark.parametrize("urgent", [5, 300])
def test_a_claim_for_idle_groups_takes_nothing_before_what_is_more_urgent(
    store: Store, rows: Rows, urgent: int
) -> None:
    """Wherever the jobs of the others stand; those of the same priority wait no longer for it."""
    claimer = Claimer(store, fair=True)
    more_urgent = insert(rows, *["a"] * urgent, priority=5)
    started = [claim.id for claim in claimer.claim(2)]
    [late] = insert(rows, "b", priority=10)
    assert claimer.claim(2, idle_only=True) == []
    [same] = insert(rows, "c", priority=5)
    assert [claim.id for claim in claimer.claim(2, idle_only=True)] == [same]
    while len(started) < urgent:
        started += [claim.id for claim in claimer.claim(min(40, urgent - len(started)))]
        assert claimer.claim(2, idle_only=True) == []
    assert started == more_urgent
    assert [claim.id for claim in claimer.claim(2)] == [late]


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [1, 2, 20, 300])
@pytest.mark.parametrize("are_parked", [False, True])
def test_smaller_priorities_come_first_whatever_the_turn(
    store: Store, rows: Rows, wanted: int, are_parked: bool
) -> None:
    """Also of two groups among many, whether those stand in their queues already or not."""
    claimer = Claimer(store, fair=True)
    waiting = insert(rows, *[f"g{n}" for n in range(60) for _ in range(4)], priority=10)
    if are_parked:
        del waiting[: len(claimer.claim(40))]
    waiting += insert(rows, *["y", "z"] * 40, *["z"] * 40, priority=5)
    order: list[int] = []
    while len(order) < len(waiting):
        claimed = claimer.claim(wanted)
        assert claimer.last is not None
        assert claimed or claimer.last.more
        order += [rows.last(claim.id)["priority"] for claim in claimed]
    assert order == [5] * 120 + [10] * (len(waiting) - 120)


def test_a_claim_for_idle_groups_moves_nothing(store: Store, rows: Rows) -> None:
    """What floods is moved out of the way by those claims for which nobody waits."""
    claimer = Claimer(store, fair=True)
    insert(rows, *["a"] * 300)
    claimer.claim(1)
    moved = "SELECT COUNT(*) AS n FROM workerd_jobs WHERE queue IS NOT NULL"
    before = rows.sql(moved)[0]["n"]
    late = rows.insert("h", group_key="b")
    assert [claim.id for claim in claimer.claim(2, idle_only=True)] == [late]
    assert rows.sql(moved)[0]["n"] == before
    claimer.claim(1)
    assert rows.sql(moved)[0]["n"] > before


def test_what_came_last_is_seen_behind_a_flood_and_stays_there(store: Store, rows: Rows) -> None:
    """Moved rows would leave dead entries at the end of the index, where each claim looks."""
    claimer = Claimer(store, fair=True)
    ids = insert(rows, *["a"] * 400)
    claimer.claim(1)
    last = rows.sql("SELECT id FROM workerd_jobs WHERE queue IS NULL ORDER BY run_at DESC LIMIT 20")
    assert [row["id"] for row in last] == ids[:-21:-1]
    late = rows.insert("h", group_key="b")
    assert late in [claim.id for claim in claimer.claim(2)]


def test_a_flood_of_one_group_starts_in_its_order(store: Store, rows: Rows) -> None:
    """In two round trips, with the rows of its queue, and with one for the scan of all queues."""
    claimer = Claimer(store, fair=True)
    ids = insert(rows, *["a"] * 400)
    started: list[bytes] = []
    while len(started) < len(ids):
        claimer.scan = len(started) % 100 == 0
        claimed = [claim.id for claim in claimer.claim(20)]
        assert len(claimed) == 20
        started += claimed
    assert started == ids


def test_a_lone_fair_group_gets_all(store: Store, rows: Rows) -> None:
    """Turns withhold nothing."""
    claimer = Claimer(store, fair=True)
    ids = insert(rows, *["a"] * 30)
    assert [claim.id for claim in claimer.claim(20)] == ids[:20]
    assert [claim.id for claim in claimer.claim(20)] == ids[20:]


def test_a_plain_insert_gets_its_group_at_the_claim(store: Store, rows: Rows) -> None:
    """Unless it brings one; vars that give none fail the job, whatever the limit."""
    claimer = Claimer(store, template="{tenant}")
    odd = rows.insert("h", {"tenant": ODD})
    own = rows.insert("h", {"tenant": "a"}, group_key="own")
    wrong = rows.insert("h", {"tenant": None})
    assert {claim.id for claim in claimer.claim()} == {odd, own}
    assert rows.last(odd)["group_key"] == ODD
    assert rows.last(own)["group_key"] == "own"
    assert claimer.last is not None
    [outcome] = claimer.last.batch.broken
    assert (outcome.id, outcome.status) == (wrong, "failure")
    assert "got null; correct the vars" in (outcome.error or "")


def test_a_cancelled_job_takes_no_slot(store: Store, rows: Rows) -> None:
    """A row that is not run uses nothing of its limit."""
    claimer = Claimer(store, LimitConfig(concurrency=1))
    rows.insert("h", cancel_requested_at="2026-01-01 00:00:00.000000")
    runs = rows.insert("h")
    assert claimer.claim() == []
    assert [claim.id for claim in claimer.claim()] == [runs]


@pytest.mark.parametrize(
    "config", [LimitConfig(concurrency=1), LimitConfig(group_concurrency=1, rate=Rate(1, SECOND, 1))]
)
def test_what_ends_at_the_claim_keeps_no_other_waiting(store: Store, rows: Rows, config: LimitConfig) -> None:
    """It has used nothing of the limit: the next claim may go on at once."""
    claimer = Claimer(store, config)
    insert(rows, *["a"] * 5)
    rows.sql("UPDATE workerd_jobs SET expires_at = '2026-01-02 00:00:00.000000'")
    runs = rows.insert("h", group_key="a", run_at="2026-01-03 00:00:00.000000")
    claims = 0
    while not (claimed := claimer.claim(2)):
        assert claimer.last is not None
        assert (len(claimer.last.batch.broken), claimer.last.more) == (1, True)
        claims += 1
    assert ([claim.id for claim in claimed], claims) == ([runs], 5)
    assert claimer.claim(2) == []
    assert claimer.last is not None
    assert claimer.last.more is False


def test_two_claims_of_one_limit_do_not_wait(
    store: Store, rows: Rows, store_url: str, opened: object
) -> None:
    """The second one leaves the limit out; slots are never given out twice."""
    if store_url.startswith("sqlite"):
        pytest.skip("SQLite has one writer")
    other = opened(store_url)  # type: ignore[operator]

    def work(tx: Tx) -> dict[str, limits.RateRow]:
        assert limits.lock(tx, ["l", "m"]).keys() == {"l", "m"}
        inner: dict[str, limits.RateRow] = other.run(lambda theirs: limits.lock(theirs, ["l", "k"]))
        return inner

    store.run(lambda tx: limits.lock(tx, ["k", "l", "m"]))
    assert store.run(work).keys() == {"k"}


def test_slots_and_rates_left_behind_are_swept(store: Store, rows: Rows) -> None:
    """When a person deletes the row of a running job."""
    claimer = Claimer(store, LimitConfig(concurrency=1, group_concurrency=1, group_rate=Rate(1, 1000, 1)))
    rows.insert("h", group_key="a")
    [claimed] = claimer.claim()
    assert store.run(lambda tx: store_slots.sweep(tx, 100)) == 0
    rows.sql("DELETE FROM workerd_jobs")
    assert store.run(lambda tx: store_slots.sweep(tx, 100)) == 2
    assert slots(rows) == []
    store.run(lambda tx: limits.sweep(tx, 100))
    assert [row["scope"] for row in rows.sql("SELECT scope FROM workerd_rates")] == ["limit"]
    assert claimed.limited is not None


def test_a_held_attempt_says_what_it_uses(store: Store, rows: Rows) -> None:
    """So that settlement and rescue free it."""
    claimer = Claimer(store, LimitConfig(concurrency=1, group_concurrency=1))
    rows.insert("h", group_key="a")
    claimer.claim()
    [held] = store.read(lambda tx: held_attempts.held(tx, NODE.id))
    assert held.limited is not None
    assert (held.limited.name, held.limited.group) == ("l", "a")
    store.run(lambda tx: writer.close(tx, [released(held)], NODE.id))
    assert slots(rows) == []
