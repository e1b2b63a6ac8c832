"""A deadline is a deadline: whatever the handler does, it and all that it started is gone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pool.harness import Harness, make_pool
from workerd.job import Status
from workerd.outcome import Outcome, Reason

ENDLESS = ("python_loop", "looking_c", "blind_c", "swallows", "waits_for_child", "leaves_family")
STUBBORN = ("blocks_soft_signal", "default_soft_signal", "stops_itself")
DEADLINE = 0.3
GRACE = 0.2
SLACK = 2.0
"""Seconds; the promise is 0.25, a busy machine that runs tests gets more."""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def pids_in(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in folder.iterdir() if not path.suffix]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Harness]:
    pool = make_pool(*ENDLESS, *STUBBORN, "heeds_deadline", "noop", "pid", policy={"grace": GRACE})
    with Harness(tmp_path, pool) as harness:
        harness.up()
        yield harness


def overrun(node: Harness, handler: str, **values: object) -> tuple[Outcome, float]:
    """The outcome, and the seconds from its hard deadline to its end by the pool's own clock."""
    outcome = node.run(handler, deadline_ms=int(DEADLINE * 1000), **values)
    assert outcome.started_at is not None
    assert outcome.finished_at is not None
    took = (outcome.finished_at - outcome.started_at) / 1e6
    return outcome, took - DEADLINE - GRACE


@pytest.mark.parametrize("handler", ENDLESS)
def test_an_endless_handler_is_gone_after_its_hard_deadline(node: Harness, marks: Path, handler: str) -> None:
    """Loops, C code and swallowers end as `deadline`, with their stack, and leave no process behind."""
    values = {"folder": str(marks)} if handler in ("waits_for_child", "leaves_family") else {}
    outcome, late = overrun(node, handler, **values)
    assert (outcome.status, outcome.reason, outcome.success) == (Status.RETRY, Reason.DEADLINE, False)
    assert handler in (outcome.stack or "")
    assert late < SLACK
    for pid in [outcome.pid, *pids_in(marks)]:
        assert pid is not None
        node.until(lambda pid=pid: not alive(pid), within=SLACK)
    assert len(pids_in(marks)) == {"waits_for_child": 1, "leaves_family": 3}.get(handler, 0)
    assert node.run("noop").reason is Reason.OK


@pytest.mark.parametrize("handler", ["python_loop", "looking_c"])
def test_code_that_looks_at_signals_ends_at_the_soft_deadline(tmp_path: Path, handler: str) -> None:
    """What can be interrupted is, long before the hard deadline."""
    pool = make_pool(handler, policy={"deadline": 0.1, "grace": 60.0})
    with Harness(tmp_path, pool) as node:
        outcome = node.run(handler)
        assert (outcome.reason, outcome.exit_signal) == (Reason.DEADLINE, None)
        assert handler in (outcome.stack or "")


@pytest.mark.parametrize("handler", STUBBORN)
def test_a_handler_that_escapes_the_signals_does_not_escape_the_kill(node: Harness, handler: str) -> None:
    """Blocked signals, a default disposition and a stopped process change nothing but the stack's source."""
    outcome, late = overrun(node, handler)
    assert outcome.reason is Reason.DEADLINE
    assert late < SLACK
    assert outcome.stack or handler == "default_soft_signal"


def test_a_handler_may_heed_its_deadline(node: Harness) -> None:
    """Who catches DeadlineExceeded and returns in time has done its job; its worker is replaced."""
    before = node.run("pid")
    outcome, _ = overrun(node, "heeds_deadline")
    assert outcome.status is Status.COMPLETED
    assert outcome.payload == b'"tidied up with 0 s left"'
    after = node.run("pid")
    assert after.payload != before.payload


def test_the_own_deadline_of_a_job_comes_before_the_handlers(tmp_path: Path) -> None:
    """`deadline_ms` of the claim decides; 0 means none."""
    with Harness(tmp_path, make_pool("nap", policy={"deadline": 0.05})) as node:
        first = node.claim("nap", seconds=0.3)
        second = node.claim("nap", seconds=0.3, deadline_ms=0)
        node.give(first, second)
        assert node.outcome(first).reason is Reason.DEADLINE
        assert node.outcome(second).reason is Reason.OK


def test_the_next_job_starts_at_once_after_a_kill(node: Harness) -> None:
    """The job that waited behind the killed one runs on a fresh worker."""
    bad, good = node.claim("blind_c", deadline_ms=100), node.claim("pid")
    node.give(bad, good)
    first, second = node.outcomes([bad, good])
    assert first.reason is Reason.DEADLINE
    assert second.reason is Reason.OK
    assert second.started_at is not None
    assert first.finished_at is not None
    assert (second.started_at - first.finished_at) / 1e6 < SLACK


def test_a_cancel_ends_a_running_job(tmp_path: Path, marks: Path) -> None:
    """By signal where the handler can be interrupted."""
    with Harness(tmp_path, make_pool("gate", policy={"grace": 60.0})) as node:
        claim = node.claim("gate", folder=str(marks))
        node.give(claim)
        node.until((marks / "gate").exists)
        node.cancel(claim)
        outcome = node.outcome(claim)
        assert (outcome.status, outcome.reason, outcome.exit_signal) == (
            Status.CANCELLED, Reason.CANCELLED, None,
        )  # fmt: skip


def test_a_cancel_ends_a_handler_that_swallows_it_by_force(tmp_path: Path) -> None:
    """After `grace` the worker is killed, and the attempt is `cancelled`, not crashed."""
    with Harness(tmp_path, make_pool("swallows", "noop", policy={"grace": 0.1})) as node:
        claim = node.claim("swallows")
        node.give(claim)
        node.until(lambda: any(w["state"] == "running" for w in node.info().get("workers", ())))
        node.cancel(claim)
        outcome = node.outcome(claim)
        assert (outcome.status, outcome.exit_signal) == (Status.CANCELLED, 9)
        assert node.run("noop").reason is Reason.OK


@pytest.mark.parametrize("how", ["dies", "raises"])
def test_what_was_cancelled_is_not_tried_again_however_it_ends(tmp_path: Path, marks: Path, how: str) -> None:
    """A handler that fails or dies of its cancel is cancelled, and says what became of it."""
    with Harness(tmp_path, make_pool("fails_when_cancelled")) as node:
        claim = node.claim("fails_when_cancelled", folder=str(marks), how=how)
        node.give(claim)
        node.until((marks / "began").exists)
        node.cancel(claim)
        outcome = node.outcome(claim)
        assert (outcome.status, outcome.reason, outcome.next) == (Status.CANCELLED, Reason.CANCELLED, None)
        assert outcome.exit_code == (4 if how == "dies" else None)


def test_a_cancel_of_what_waits_needs_no_worker(tmp_path: Path, marks: Path) -> None:
    """It ends without having run."""
    with Harness(tmp_path, make_pool("gate", "noop")) as node:
        node.up()
        for _ in range(20):  # so that the pool knows that its jobs are short and takes some ahead
            node.run("noop")
        running, waiting = node.claim("gate", folder=str(marks)), node.claim("noop")
        node.give(running, waiting)
        node.until((marks / "gate").exists)
        if waiting not in node.dispatcher.jobs:
            node.cancel(waiting)
            outcome = node.outcome(waiting)
            assert (outcome.status, outcome.started_at, outcome.pid) == (Status.CANCELLED, None, None)
        (marks / "go").touch()
        assert node.outcome(running).reason is Reason.OK


def test_a_job_in_another_pool_shows_no_pause(tmp_path: Path, node: Harness) -> None:
    """A pool whose worker is being killed does not keep another from working."""
    (tmp_path / "other").mkdir()
    with Harness(tmp_path / "other", make_pool("noop")) as other:
        other.up()
        bad = node.claim("blind_c", deadline_ms=100)
        node.give(bad)
        longest = 0.0
        while not node.ingester.of(bad):
            began = time.monotonic()
            assert other.run("noop").reason is Reason.OK
            longest = max(longest, time.monotonic() - began)
            node.loop.turn(0)
        assert longest < SLACK
