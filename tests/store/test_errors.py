"""Error groups: counted exactly, by the transaction that closes the attempts."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.storing import NODE, claims, close, enqueue, job, outcome, sql, value
from workerd.clock import SECOND
from workerd.errors import InvalidValue, NotFound
from workerd.ingester import writer
from workerd.job import Claim, Status
from workerd.outcome import NextAttempt, Outcome, Reason
from workerd.store import errors, retention
from workerd.store import outcomes as store_outcomes
from workerd.store.base import Store
from workerd.store.errors import GroupRow
from workerd.store.retention import RetentionLimits

FP, OTHER_FP = bytes(range(8)), b"\xff" * 8
EVERYTHING = RetentionLimits(completed=2**60, failure=2**60)


def failed(claim: Claim, fingerprint: bytes = FP, **given: Any) -> Outcome:
    given = {"error": "broken", "error_class": "builtins.ValueError", **given}
    return outcome(claim, given.pop("status", Status.FAILURE), fingerprint=fingerprint, **given)


def fail(
    store: Store, count: int = 1, fingerprint: bytes = FP, handler: str = "h", **given: Any
) -> list[Claim]:
    """Let so many jobs fail; their claims."""
    for _ in range(count):
        enqueue(store, "h")
    taken = claims(store, "h")
    assert close(store, [failed(claim, fingerprint, **given) for claim in taken]) == len(taken)
    return taken


def new_errors(store: Store, outcomes: list[Outcome]) -> list[str]:
    batch = store.run(lambda tx: writer.close(tx, outcomes, NODE.id))
    return [handler for _, handler in batch.new_errors]


def groups(store: Store, **filters: Any) -> list[GroupRow]:
    return store.read(lambda tx: errors.list_(tx, **{"limit": 100, **filters})).rows


def group(store: Store, fingerprint: bytes = FP) -> GroupRow:
    return store.read(lambda tx: errors.get(tx, fingerprint))


def bad_rows(store: Store) -> int:
    count: int = value(store, "SELECT COUNT(*) FROM workerd_jobs WHERE fingerprint IS NOT NULL")
    return count


def test_a_failure_makes_a_group(store: Store) -> None:
    """Row and group have class and fingerprint; the group's newest failure is this one."""
    (claim,) = fail(store)
    row = job(store, claim.id).row
    assert (row.error_class, row.fingerprint) == ("builtins.ValueError", FP)
    found = group(store)
    assert (found.handler, found.error_class, found.error) == ("h", "builtins.ValueError", "broken")
    assert (found.job_id, found.attempt, found.count) == (claim.id, 1, 1)
    assert found.first_seen == found.last_seen == row.finished_at
    assert sum(found.hours) == 1
    assert len(found.hours) == errors.HOURS


def test_success_makes_none(store: Store) -> None:
    enqueue(store, "h")
    (claim,) = claims(store, "h")
    close(store, [outcome(claim)])
    assert groups(store) == []
    assert job(store, claim.id).row.fingerprint is None


def test_a_batch_counts_each_of_its_groups_once(store: Store) -> None:
    """Many failures of several groups and successes in one transaction."""
    for _ in range(30):
        enqueue(store, "h")
    taken = claims(store, "h")
    told = [failed(c, OTHER_FP if n % 3 else FP, error=f"no {n}") for n, c in enumerate(taken[:27])]
    assert new_errors(store, told + [outcome(c) for c in taken[27:]]) == ["h", "h"]
    assert {g.fingerprint: g.count for g in groups(store)} == {FP: 9, OTHER_FP: 18}
    fail(store, 3)
    assert group(store).count == 12
    assert bad_rows(store) == 30


def test_an_outcome_without_effect_is_not_counted(store: Store) -> None:
    """Law 1: late and repeated outcomes change nothing, groups neither."""
    (claim,) = fail(store)
    assert close(store, [failed(claim)]) == 0
    assert group(store).count == 1


def test_retries_count_by_attempt(store: Store) -> None:
    enqueue(store, "h")
    for _ in range(3):
        (claim,) = claims(store, "h")
        close(store, [failed(claim, status=Status.RETRY, reason=Reason.ERROR, next=NextAttempt(0, 1, 0, 0))])
    assert (group(store).count, group(store).attempt) == (3, 3)
    assert bad_rows(store) == 3
    assert job(store, claim.id).row.fingerprint is None  # the fourth, which waits


def test_a_batch_without_effect_beside_one_with(store: Store) -> None:
    first, second = fail(store), (enqueue(store, "h"), claims(store, "h"))[1]
    assert close(store, [failed(first[0]), failed(second[0], OTHER_FP)]) == 1
    assert (group(store).count, group(store, OTHER_FP).count) == (1, 1)


def test_a_resolved_group_opens_again_when_it_comes_back(store: Store) -> None:
    fail(store)
    store.run(lambda tx: errors.resolve(tx, FP, "ann"))
    assert (groups(store), group(store).resolved_by) == ([], "ann")
    assert [g.fingerprint for g in groups(store, everything=True)] == [FP]
    enqueue(store, "h")
    (claim,) = claims(store, "h")
    assert new_errors(store, [failed(claim)]) == ["h"]
    assert (group(store).resolved_at, group(store).resolved_by) == (None, None)
    enqueue(store, "h")
    assert new_errors(store, [failed(claims(store, "h")[0])]) == []
    assert group(store).count == 3


def test_a_failure_from_before_does_not_open_it(store: Store) -> None:
    """It ended before the group was resolved, and came from the spool later: counted, nothing more."""
    fail(store)
    enqueue(store, "h")
    (claim,) = claims(store, "h")
    store.run(lambda tx: errors.resolve(tx, FP, "ann"))
    assert new_errors(store, [failed(claim, finished_at=claim.claimed_at)]) == []
    assert group(store).count == 2
    assert group(store).resolved_at is not None
    assert group(store).job_id != claim.id or group(store).last_seen == claim.claimed_at


def test_a_muted_group_is_left_out_and_counts_on(store: Store) -> None:
    fail(store)
    now = store.read(lambda tx: tx.now)
    store.run(lambda tx: errors.mute(tx, FP, now + 3600 * SECOND))
    store.run(lambda tx: errors.resolve(tx, FP, "ann"))
    enqueue(store, "h")
    assert new_errors(store, [failed(claims(store, "h")[0])]) == []
    assert groups(store) == []
    assert group(store).count == 2
    store.run(lambda tx: errors.mute(tx, FP, now - 1))
    assert [g.count for g in groups(store)] == [2]


def test_what_is_not_there_is_not_found(store: Store) -> None:
    for act in (
        lambda tx: errors.get(tx, FP),
        lambda tx: errors.resolve(tx, FP, "ann"),
        lambda tx: errors.mute(tx, FP, 0),
    ):
        with pytest.raises(NotFound):
            store.run(act)


def test_pages_and_filters(store: Store) -> None:
    """Last failed first; pages lose and repeat nothing, also among groups of one moment."""
    for n in range(5):
        enqueue(store, f"h{n % 2}")
        (claim,) = claims(store, f"h{n % 2}")
        close(store, [failed(claim, bytes([n]) * 8, finished_at=claim.claimed_at)])
    sql(store, "UPDATE workerd_errors SET last_seen = '2026-01-01 00:00:00.000000' WHERE handler = 'h0'")
    found: list[bytes] = []
    after = None
    while True:
        page = store.read(lambda tx, after=after: errors.list_(tx, limit=2, after=after))
        found += [g.fingerprint for g in page.rows]
        after = page.next
        if after is None:
            break
    assert sorted(found) == [bytes([n]) * 8 for n in range(5)]
    assert found[:2] == [bytes([3]) * 8, bytes([1]) * 8]
    assert {g.handler for g in groups(store, handler="h1")} == {"h1"}
    assert len(groups(store, since=1_780_000_000 * SECOND)) == 2
    with pytest.raises(InvalidValue):
        groups(store, after="1.2")


def test_a_group_goes_with_the_last_of_its_jobs(store: Store) -> None:
    """Whatever the order in which they are removed."""
    first, last = fail(store, 3), fail(store, 1)
    fail(store, 1, OTHER_FP)
    sql(
        store, "UPDATE workerd_jobs SET ingested_at = '2001-01-01 00:00:00.000000' WHERE id <> %s", last[0].id
    )
    limits = RetentionLimits(completed=None, failure=1_600_000_000 * SECOND)
    assert store.run(lambda tx: retention.purge_jobs(tx, limits, limit=100)).rows == 4
    assert [g.fingerprint for g in groups(store)] == [FP]
    assert group(store).count == 4
    assert first
    assert store.run(lambda tx: retention.purge_jobs(tx, EVERYTHING, limit=100)).rows == 1
    assert groups(store, everything=True) == []


def test_many_writers_count_exactly(store_url: str, store: Store, opened: Callable[..., Store]) -> None:
    """Four connections close batches of overlapping groups at the same time: no deadlock costs a count."""
    prints = [bytes([n]) * 8 for n in range(6)]
    for _ in range(200):
        enqueue(store, "h")
    taken = claims(store, "h", 200)
    shares = [taken[n::4] for n in range(4)]
    seen: list[str] = []

    def work(share: list[Claim], connection: Store) -> None:
        for start in range(0, len(share), 5):
            part = share[start : start + 5]
            told = [failed(c, prints[(start + n) % 6], finished_at=c.claimed_at) for n, c in enumerate(part)]
            batch = connection.run(lambda tx, told=told: writer.close(tx, told, NODE.id), retry_for_s=60)
            seen.extend(handler for _, handler in batch.new_errors)

    connections = [opened(store_url) for _ in shares]
    threads = [threading.Thread(target=work, args=pair) for pair in zip(shares, connections, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(g.count for g in groups(store)) == bad_rows(store) == 200
    assert Counter(seen) == {"h": 6}


def test_a_locked_group_keeps_only_its_own_waiting(store: Store, store_url: str, opened: Any) -> None:
    """What `writer` asks before it waits for no lock."""
    fail(store)
    fail(store, 1, OTHER_FP)
    enqueue(store, "h")
    (claim,) = claims(store, "h")
    if store.read(lambda tx: tx.dialect.name) == "sqlite":
        return  # one writer at a time: there are no locked rows
    other = opened(store_url)

    def locking(tx: Any) -> None:
        tx.query("SELECT 1 FROM workerd_errors WHERE fingerprint = %s FOR UPDATE", (FP,))
        free = store.run(
            lambda tx: errors.lockable(tx, [failed(claim), failed(claim, OTHER_FP), outcome(claim)])
        )
        assert [o.fingerprint for o in free] == [OTHER_FP, None]

    other.run(locking)
    assert store.run(lambda tx: len(store_outcomes.lockable(tx, [outcome(claim)]))) == 1
