"""Prefetching: short attempts are queued at a busy worker and revoked behind a long run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pool.harness import PoolHarness, make_pool
from workerd.job import Claim, Status, id_text
from workerd.outcome import Reason
from workerd.pool import monitor
from workerd.pool.assignment_queue import MAX_MESSAGE_BYTES

HANDLERS = ("noop", "gate", "prints_text", "segfault", "pid", "echo")
QUEUED = 6
"""Jobs that are sent together with a long one."""


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PoolHarness]:
    monkeypatch.setattr(monitor, "STUCK_S", 1e6)  # nothing is released for having waited too long
    with PoolHarness(tmp_path, make_pool(*HANDLERS)) as harness:
        harness.up()
        warm_up_prefetch(harness)
        yield harness


def warm_up_prefetch(harness: PoolHarness) -> None:
    """Run short jobs until the pool prefetches them."""
    claims = [harness.claim("noop") for _ in range(300)]
    harness.give(*claims)
    assert {outcome.reason for outcome in harness.outcomes(claims)} == {Reason.OK}
    harness.settled()


def give_around(harness: PoolHarness, bad: Claim, count: int = QUEUED) -> list[Claim]:
    """Send short jobs before and behind `bad`, in one message; returns the short ones."""
    claims = [harness.claim("noop") for _ in range(count)]
    harness.give(*claims[: count // 2], bad, *claims[count // 2 :])
    return claims


def test_jobs_queued_behind_a_long_run_move_to_other_workers(tmp_path: Path, marks: Path) -> None:
    """A handler whose runs were short may have a long one."""
    with PoolHarness(tmp_path, make_pool(*HANDLERS, workers=2)) as harness:
        harness.up()
        warm_up_prefetch(harness)
        long = harness.claim("gate", folder=str(marks))
        rest = give_around(harness, long, 40)
        assert {outcome.reason for outcome in harness.outcomes(rest)} == {Reason.OK}
        assert not harness.ingester.of(long)
        (marks / "go").touch()
        assert harness.outcome(long).reason is Reason.OK
        harness.settled()


@pytest.mark.parametrize("how", ["segfault", "kill"])
def test_a_death_ends_the_running_attempt_and_no_queued_one(
    harness: PoolHarness, marks: Path, how: str
) -> None:
    """All others run once, in their first attempt (law 4)."""
    bad = harness.claim("segfault") if how == "segfault" else harness.claim("gate", folder=str(marks))
    rest = give_around(harness, bad)
    if how == "kill":
        harness.until((marks / "gate").exists)
        os.kill(int((marks / "gate").read_text()), signal.SIGKILL)
    assert harness.outcome(bad).reason is Reason.CRASHED
    assert {(o.reason, o.attempt) for o in harness.outcomes(rest)} == {(Reason.OK, 1)}
    assert len(harness.ingester.outcomes) == 300 + len(rest) + 1
    harness.settled()


def test_a_queued_attempt_is_held_and_can_be_cancelled(harness: PoolHarness, marks: Path) -> None:
    """It is in the holdings, and a cancel ends it unstarted."""
    long = harness.claim("gate", folder=str(marks))
    rest = give_around(harness, long)
    harness.until((marks / "gate").exists)
    done = {outcome.ref for outcome in harness.ingester.outcomes}
    assert harness.holdings(1) >= {long.ref, *(claim.ref for claim in rest)} - done
    harness.cancel(rest[-1])
    cancelled = harness.outcome(rest[-1])
    assert (cancelled.status, cancelled.started_at) == (Status.CANCELLED, None)
    (marks / "go").touch()
    assert {outcome.reason for outcome in harness.outcomes([long, *rest[:-1]])} == {Reason.OK}
    harness.settled()


@pytest.mark.parametrize("how", ["release", "lease", "drain"])
def test_queued_attempts_are_released_with_waiting_claims(
    harness: PoolHarness, marks: Path, how: str
) -> None:
    """At a release, a lost lease and a drain only the running attempt stays."""
    long = harness.claim("gate", folder=str(marks))
    rest = give_around(harness, long)
    harness.until((marks / "gate").exists)
    match how:
        case "release":
            harness.release()
        case "lease":
            harness.lease(False)
        case "drain":
            harness.drain(10)
    last = harness.outcomes(rest[QUEUED // 2 :])
    assert {outcome.status for outcome in last} == {Status.NEW}
    (marks / "go").touch()
    assert harness.outcome(long).reason is Reason.OK


def test_queued_attempts_do_not_begin_after_the_lease(harness: PoolHarness, marks: Path) -> None:
    """The worker itself sees that it is over, as after a time in which the whole node was stopped."""
    long = harness.claim("gate", folder=str(marks))
    rest = give_around(harness, long)
    harness.until((marks / "gate").exists)
    harness.lease(True, time.monotonic_ns())
    harness.until(lambda: harness.info().get("lease_held") is False)
    (marks / "go").touch()
    last = harness.outcomes(rest[QUEUED // 2 :])
    assert {(outcome.status, outcome.started_at) for outcome in last} == {(Status.NEW, None)}
    assert harness.outcome(long).reason is Reason.OK
    harness.settled()


def test_the_deadline_of_a_queued_attempt_counts_from_its_start(harness: PoolHarness, marks: Path) -> None:
    """It is enforced like any other, and hits no other attempt."""
    long = harness.claim("gate", folder=str(marks), deadline_ms=200, max_attempts=1)
    rest = give_around(harness, long)
    assert harness.outcome(long).reason is Reason.DEADLINE
    # Jobs that wait for a second are released to other nodes.
    assert {(o.reason, o.attempt) for o in harness.outcomes(rest)} <= {(Reason.OK, 1), (None, 1)}
    harness.settled()


def test_output_is_logged_for_the_job_that_printed_it(harness: PoolHarness) -> None:
    """Also when the worker starts the next job before the pool has read the result."""
    claims = {}
    for number in range(120):
        claim = harness.claim("prints_text", text=f"line {number}\n") if number % 3 else harness.claim("noop")
        claims[id_text(claim.id)] = claim, number
        harness.give(claim)
    assert {o.reason for o in harness.outcomes([claim for claim, _ in claims.values()])} == {Reason.OK}
    printed = [event for event in harness.log_events() if event["event"] == "output"]
    assert [(event["line"], event["job"]) for event in printed] == [
        (f"line {number}", job) for job, (_, number) in claims.items() if number % 3
    ]


def test_times_of_a_queued_attempt_are_ordered(harness: PoolHarness) -> None:
    """No attempt starts after its end, and the run time fits between."""
    claims = [harness.claim("echo", value=n) for n in range(200)]
    harness.give(*claims)
    for outcome in harness.outcomes(claims):
        assert outcome.started_at is not None
        assert outcome.finished_at is not None
        assert outcome.usage.run_us is not None
        assert outcome.claimed_at <= outcome.started_at
        assert outcome.started_at + outcome.usage.run_us <= outcome.finished_at + 1


def test_nothing_is_queued_behind_an_assignment_on_the_channel(harness: PoolHarness, marks: Path) -> None:
    """It could not be revoked: its frame would be read as the next one's."""
    harness.give(harness.claim("gate", folder=str(marks)))
    harness.until((marks / "gate").exists)
    sizes = [2 * MAX_MESSAGE_BYTES if n % 4 == 0 else 5 for n in range(200)]
    claims = [harness.claim("echo", value="x" * size) for size in sizes]
    harness.give(*claims)
    (marks / "go").touch()
    outcomes = harness.outcomes(claims)
    assert [len(outcome.payload or b"") - 2 for outcome in outcomes] == sizes
    assert len(harness.ingester.outcomes) == 300 + 201
    harness.settled()


def test_long_and_short_assignments_keep_their_order(harness: PoolHarness) -> None:
    """Those that are too long for the queue are sent over the channel."""
    sizes = [10, MAX_MESSAGE_BYTES, 10, 10, 3 * MAX_MESSAGE_BYTES, 10]
    claims: list[Any] = [harness.claim("echo", value="x" * size) for size in sizes]
    harness.give(*claims)
    assert [len(outcome.payload or b"") for outcome in harness.outcomes(claims)] == [
        size + 2 for size in sizes
    ]
    harness.settled()
