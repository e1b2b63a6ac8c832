"""Short runs that lie ahead in a worker's lane: nobody waits behind a long one, nobody else is blamed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pool.harness import Harness, make_pool
from workerd.job import Claim, Status, id_text
from workerd.messages import Assignment
from workerd.outcome import Reason
from workerd.pool.assignment_queue import MAX_MESSAGE_BYTES, AssignmentQueue

HANDLERS = ("noop", "gate", "prints_text", "segfault", "pid", "echo")
AHEAD = 6


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Harness]:
    with Harness(tmp_path, make_pool(*HANDLERS)) as harness:
        harness.up()
        quick(harness)
        yield harness


def quick(node: Harness) -> None:
    """Until the pool knows its runs as so short that some may lie ahead."""
    claims = [node.claim("noop") for _ in range(300)]
    node.give(*claims)
    assert {outcome.reason for outcome in node.outcomes(claims)} == {Reason.OK}
    node.settled()


def behind(node: Harness, bad: Claim, count: int = AHEAD) -> list[Claim]:
    """Jobs that are given together with `bad`, before and behind it."""
    claims = [node.claim("noop") for _ in range(count)]
    node.give(*claims[: count // 2], bad, *claims[count // 2 :])
    return claims


# -- the lane


def assignment(serial: int, size: int = 0) -> Assignment:
    claim = Claim(id=bytes(16), attempt=1, claimed_at=0, mono=0, handler="h", vars=b"x" * size, run_at=0)
    return Assignment(serial, claim, 0.0, 0)


def test_what_is_taken_back_was_not_taken() -> None:
    """Each assignment comes to exactly one side, and the lane is empty after."""
    lane = AssignmentQueue()
    for serial in range(1, 9):
        assert lane.put(assignment(serial))
    taken = os.read(lane.fileno(), MAX_MESSAGE_BYTES)
    assert int.from_bytes(taken[:8], "big") == 1
    assert lane.take_all() == set(range(2, 9))
    assert lane.take_all() == set()
    lane.close_writing_end()
    assert os.read(lane.fileno(), MAX_MESSAGE_BYTES) == b""
    lane.close()


def test_what_is_too_long_is_announced() -> None:
    """The channel has it; taken back it can be all the same."""
    lane = AssignmentQueue()
    long = assignment(7, MAX_MESSAGE_BYTES)
    assert not lane.put(long)
    assert lane.put_marker(long)
    assert lane.take_all() == {7}
    lane.close()


def test_a_full_lane_says_so() -> None:
    """Nothing waits and nothing is lost: what was put is there."""
    lane = AssignmentQueue()
    put = 0
    while lane.put(assignment(put, MAX_MESSAGE_BYTES // 2)):
        put += 1
    assert lane.take_all() == set(range(put))
    lane.close()


# -- the pool


def test_jobs_behind_a_long_one_are_run_by_others(tmp_path: Path, marks: Path) -> None:
    """What was short until now turns out long: it keeps nobody."""
    with Harness(tmp_path, make_pool(*HANDLERS, workers=2)) as node:
        node.up()
        quick(node)
        long = node.claim("gate", folder=str(marks))
        rest = behind(node, long, 40)
        assert {outcome.reason for outcome in node.outcomes(rest)} == {Reason.OK}
        assert not node.ingester.of(long)
        (marks / "go").touch()
        assert node.outcome(long).reason is Reason.OK
        node.settled()


@pytest.mark.parametrize("how", ["segfault", "kill"])
def test_a_death_blames_what_ran_and_not_what_lay_ahead(node: Harness, marks: Path, how: str) -> None:
    """Everything else runs once, in its first attempt."""
    bad = node.claim("segfault") if how == "segfault" else node.claim("gate", folder=str(marks))
    rest = behind(node, bad)
    if how == "kill":
        node.until((marks / "gate").exists)
        os.kill(int((marks / "gate").read_text()), signal.SIGKILL)
    assert node.outcome(bad).reason is Reason.CRASHED
    assert {(o.reason, o.attempt) for o in node.outcomes(rest)} == {(Reason.OK, 1)}
    assert len(node.ingester.outcomes) == 300 + len(rest) + 1
    node.settled()


def test_what_lies_ahead_is_held_and_can_be_cancelled(node: Harness, marks: Path) -> None:
    """It is in the inventory, and a cancel ends it before it has begun."""
    long = node.claim("gate", folder=str(marks))
    rest = behind(node, long)
    node.until((marks / "gate").exists)
    done = {outcome.ref for outcome in node.ingester.outcomes}
    assert node.holdings(1) >= {long.ref, *(claim.ref for claim in rest)} - done
    node.cancel(rest[-1])
    cancelled = node.outcome(rest[-1])
    assert (cancelled.status, cancelled.started_at) == (Status.CANCELLED, None)
    (marks / "go").touch()
    assert {outcome.reason for outcome in node.outcomes([long, *rest[:-1]])} == {Reason.OK}
    node.settled()


@pytest.mark.parametrize("how", ["give_back", "lease", "drain"])
def test_what_lies_ahead_is_given_back_with_what_waits(node: Harness, marks: Path, how: str) -> None:
    """A pause, a lost lease and a drain leave only what has begun."""
    long = node.claim("gate", folder=str(marks))
    rest = behind(node, long)
    node.until((marks / "gate").exists)
    match how:
        case "give_back":
            node.give_back()
        case "lease":
            node.lease(False)
        case "drain":
            node.drain(10)
    last = node.outcomes(rest[AHEAD // 2 :])
    assert {outcome.status for outcome in last} == {Status.NEW}
    (marks / "go").touch()
    assert node.outcome(long).reason is Reason.OK


def test_the_deadline_of_a_run_that_lay_ahead_counts_from_its_own_start(node: Harness, marks: Path) -> None:
    """It is kept by force like any other, and hits nobody else."""
    long = node.claim("gate", folder=str(marks), deadline_ms=200, max_attempts=1)
    rest = behind(node, long)
    assert node.outcome(long).reason is Reason.DEADLINE
    # What waits for a second is given back to other nodes.
    assert {(o.reason, o.attempt) for o in node.outcomes(rest)} <= {(Reason.OK, 1), (None, 1)}
    node.settled()


def test_every_line_belongs_to_the_job_that_printed_it(node: Harness) -> None:
    """Also when the worker goes on to the next without a word to the pool."""
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


def test_times_of_a_run_that_lay_ahead_are_in_order(node: Harness) -> None:
    """No attempt begins after it has ended, and what it says of its run time fits between."""
    claims = [node.claim("echo", value=n) for n in range(200)]
    node.give(*claims)
    for outcome in node.outcomes(claims):
        assert outcome.started_at is not None
        assert outcome.finished_at is not None
        assert outcome.usage.run_us is not None
        assert outcome.claimed_at <= outcome.started_at
        assert outcome.started_at + outcome.usage.run_us <= outcome.finished_at + 1


def test_nothing_lies_behind_what_comes_over_the_channel(node: Harness, marks: Path) -> None:
    """It could not be taken back: its body would be read as another's."""
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


def test_long_vars_and_short_ones_keep_their_order(node: Harness) -> None:
    """What does not fit the lane comes over the channel, in its turn."""
    sizes = [10, MAX_MESSAGE_BYTES, 10, 10, 3 * MAX_MESSAGE_BYTES, 10]
    claims: list[Any] = [node.claim("echo", value="x" * size) for size in sizes]
    node.give(*claims)
    assert [len(outcome.payload or b"") for outcome in node.outcomes(claims)] == [size + 2 for size in sizes]
    node.settled()
