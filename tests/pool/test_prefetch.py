"""Prefetching: short attempts are queued at a busy worker and revoked behind a long run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pool.harness import Harness, make_pool
from workerd.job import Claim, Status, id_text
from workerd.outcome import Reason
from workerd.pool.assignment_queue import MAX_MESSAGE_BYTES

HANDLERS = ("noop", "gate", "prints_text", "segfault", "pid", "echo")
QUEUED = 6
"""Jobs that are sent together with a long one."""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Harness]:
    with Harness(tmp_path, make_pool(*HANDLERS)) as harness:
        harness.up()
        warm_up_prefetch(harness)
        yield harness


def warm_up_prefetch(node: Harness) -> None:
    """Run short jobs until the pool prefetches them."""
    claims = [node.claim("noop") for _ in range(300)]
    node.give(*claims)
    assert {outcome.reason for outcome in node.outcomes(claims)} == {Reason.OK}
    node.settled()


def give_around(node: Harness, bad: Claim, count: int = QUEUED) -> list[Claim]:
    """Send short jobs before and behind `bad`, in one message; returns the short ones."""
    claims = [node.claim("noop") for _ in range(count)]
    node.give(*claims[: count // 2], bad, *claims[count // 2 :])
    return claims


def test_jobs_queued_behind_a_long_run_move_to_other_workers(tmp_path: Path, marks: Path) -> None:
    """A handler whose runs were short may have a long one."""
    with Harness(tmp_path, make_pool(*HANDLERS, workers=2)) as node:
        node.up()
        warm_up_prefetch(node)
        long = node.claim("gate", folder=str(marks))
        rest = give_around(node, long, 40)
        assert {outcome.reason for outcome in node.outcomes(rest)} == {Reason.OK}
        assert not node.ingester.of(long)
        (marks / "go").touch()
        assert node.outcome(long).reason is Reason.OK
        node.settled()


@pytest.mark.parametrize("how", ["segfault", "kill"])
def test_a_death_ends_the_running_attempt_and_no_queued_one(node: Harness, marks: Path, how: str) -> None:
    """All others run once, in their first attempt (law 4)."""
    bad = node.claim("segfault") if how == "segfault" else node.claim("gate", folder=str(marks))
    rest = give_around(node, bad)
    if how == "kill":
        node.until((marks / "gate").exists)
        os.kill(int((marks / "gate").read_text()), signal.SIGKILL)
    assert node.outcome(bad).reason is Reason.CRASHED
    assert {(o.reason, o.attempt) for o in node.outcomes(rest)} == {(Reason.OK, 1)}
    assert len(node.ingester.outcomes) == 300 + len(rest) + 1
    node.settled()


def test_a_queued_attempt_is_held_and_can_be_cancelled(node: Harness, marks: Path) -> None:
    """It is in the holdings, and a cancel ends it unstarted."""
    long = node.claim("gate", folder=str(marks))
    rest = give_around(node, long)
    node.until((marks / "gate").exists)
    done = {outcome.ref for outcome in node.ingester.outcomes}
    assert node.holdings(1) >= {long.ref, *(claim.ref for claim in rest)} - done
    node.cancel(rest[-1])
    cancelled = node.outcome(rest[-1])
    assert (cancelled.status, cancelled.started_at) == (Status.CANCELLED, None)
    (marks / "go").touch()
    assert {outcome.reason for outcome in node.outcomes([long, *rest[:-1]])} == {Reason.OK}
    node.settled()


@pytest.mark.parametrize("how", ["release", "lease", "drain"])
def test_queued_attempts_are_released_with_waiting_claims(node: Harness, marks: Path, how: str) -> None:
    """At a release, a lost lease and a drain only the running attempt stays."""
    long = node.claim("gate", folder=str(marks))
    rest = give_around(node, long)
    node.until((marks / "gate").exists)
    match how:
        case "release":
            node.release()
        case "lease":
            node.lease(False)
        case "drain":
            node.drain(10)
    last = node.outcomes(rest[QUEUED // 2 :])
    assert {outcome.status for outcome in last} == {Status.NEW}
    (marks / "go").touch()
    assert node.outcome(long).reason is Reason.OK


def test_the_deadline_of_a_queued_attempt_counts_from_its_start(node: Harness, marks: Path) -> None:
    """It is enforced like any other, and hits no other attempt."""
    long = node.claim("gate", folder=str(marks), deadline_ms=200, max_attempts=1)
    rest = give_around(node, long)
    assert node.outcome(long).reason is Reason.DEADLINE
    # Jobs that wait for a second are released to other nodes.
    assert {(o.reason, o.attempt) for o in node.outcomes(rest)} <= {(Reason.OK, 1), (None, 1)}
    node.settled()


def test_output_is_logged_for_the_job_that_printed_it(node: Harness) -> None:
    """Also when the worker starts the next job before the pool has read the result."""
    claims = {}
    for number in range(120):
        claim = node.claim("prints_text", text=f"line {number}\n") if number % 3 else node.claim("noop")
        claims[id_text(claim.id)] = claim, number
        node.give(claim)
    assert {o.reason for o in node.outcomes([claim for claim, _ in claims.values()])} == {Reason.OK}
    printed = [event for event in node.log_events() if event["event"] == "output"]
    assert [(event["line"], event["job"]) for event in printed] == [
        (f"line {number}", job) for job, (_, number) in claims.items() if number % 3
    ]


def test_times_of_a_queued_attempt_are_ordered(node: Harness) -> None:
    """No attempt starts after its end, and the run time fits between."""
    claims = [node.claim("echo", value=n) for n in range(200)]
    node.give(*claims)
    for outcome in node.outcomes(claims):
        assert outcome.started_at is not None
        assert outcome.finished_at is not None
        assert outcome.usage.run_us is not None
        assert outcome.claimed_at <= outcome.started_at
        assert outcome.started_at + outcome.usage.run_us <= outcome.finished_at + 1


def test_nothing_is_queued_behind_an_assignment_on_the_channel(node: Harness, marks: Path) -> None:
    """It could not be revoked: its frame would be read as the next one's."""
    node.give(node.claim("gate", folder=str(marks)))
    node.until((marks / "gate").exists)
    sizes = [2 * MAX_MESSAGE_BYTES if n % 4 == 0 else 5 for n in range(200)]
    claims = [node.claim("echo", value="x" * size) for size in sizes]
    node.give(*claims)
    (marks / "go").touch()
    outcomes = node.outcomes(claims)
    assert [len(outcome.payload or b"") - 2 for outcome in outcomes] == sizes
    assert len(node.ingester.outcomes) == 300 + 201
    node.settled()


def test_long_and_short_assignments_keep_their_order(node: Harness) -> None:
    """Those that are too long for the queue are sent over the channel."""
    sizes = [10, MAX_MESSAGE_BYTES, 10, 10, 3 * MAX_MESSAGE_BYTES, 10]
    claims: list[Any] = [node.claim("echo", value="x" * size) for size in sizes]
    node.give(*claims)
    assert [len(outcome.payload or b"") for outcome in node.outcomes(claims)] == [size + 2 for size in sizes]
    node.settled()
