"""The pool between dispatcher and ingester: what it asks for, keeps, sends again and gives back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pool.harness import Harness, make_pool
from tests.pool.test_deadlines import alive
from workerd.job import Status
from workerd.outcome import Outcome, Reason


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Harness]:
    with Harness(tmp_path, make_pool("gate", "noop", "echo", "pid", "stopping", "swallows")) as harness:
        harness.up()
        yield harness


def released(outcome: Outcome) -> bool:
    return outcome.status is Status.NEW and outcome.reason is None and outcome.next is None


def warm_up(node: Harness) -> None:
    """Run short jobs until the pool takes some ahead."""
    node.until(lambda: [node.run("noop") for _ in range(20)] and node.dispatcher.demand.room > 5)


def hold(node: Harness, marks: Path, waiting: int) -> None:
    """One job runs behind the gate, and so many wait in the pool's hand."""
    warm_up(node)
    node.give(node.claim("gate", folder=str(marks)), *(node.claim("noop") for _ in range(waiting)))


def test_it_asks_for_no_more_than_its_workers_can_start(tmp_path: Path, marks: Path) -> None:
    """Before it knows that its jobs are short, the demand is the number of idle workers."""
    with Harness(tmp_path, make_pool("gate", workers=3)) as node:
        node.give(*(node.claim("gate", folder=str(marks), sign=f"gate{n}") for n in range(10)))
        node.until(lambda: all((marks / f"gate{n}").exists() for n in range(3)))
        assert len(node.dispatcher.jobs) == 7
        (marks / "go").touch()
        node.until(lambda: len(node.ingester.outcomes) == 10)


def test_it_takes_short_jobs_ahead_and_long_ones_not(node: Harness) -> None:
    """The buffer is some milliseconds of work, at most one batch."""
    warm_up(node)
    node.give(*(node.claim("noop") for _ in range(2000)))
    node.until(lambda: len(node.ingester.outcomes) >= 2020)
    assert 5 < node.dispatcher.most_at_once <= node.config.dispatcher.batch


def test_it_introduces_its_handlers(node: Harness) -> None:
    """The ingester hears of every handler, with its signature."""
    node.until(lambda: len(node.ingester.seen) == 6)
    assert b"seconds" not in (node.ingester.seen["gate"] or b"")
    assert b"folder" in (node.ingester.seen["gate"] or b"")


def test_times_of_an_outcome_are_in_order(node: Harness) -> None:
    """claimed <= started <= finished, in store time, and the run fits between."""
    claim = node.claim("echo", value=[1, {"a": None}])
    node.give(claim)
    outcome = node.outcome(claim)
    assert (outcome.status, outcome.payload, outcome.payload_type) == (
        Status.COMPLETED, b'[1,{"a":null}]', "json",
    )  # fmt: skip
    assert outcome.started_at is not None
    assert outcome.finished_at is not None
    assert claim.claimed_at <= outcome.started_at <= outcome.finished_at
    assert outcome.usage.run_us is not None
    assert outcome.usage.run_us <= outcome.finished_at - outcome.started_at


def test_give_back_releases_what_waits_and_leaves_what_runs(node: Harness, marks: Path) -> None:
    """No attempt is spent; the handlers that are named are given back, the others stay."""
    warm_up(node)
    running = node.claim("gate", folder=str(marks))
    waiting = [node.claim("noop") for _ in range(3)]
    kept = node.claim("pid")
    node.give(running, *waiting, kept)
    node.give_back("noop")
    outcomes = node.outcomes(waiting)
    assert all(map(released, outcomes))
    assert not node.ingester.of(running)
    assert not node.ingester.of(kept)
    (marks / "go").touch()
    assert {o.reason for o in node.outcomes([running, kept])} == {Reason.OK}


def test_what_waits_behind_a_long_job_is_given_back_after_a_while(node: Harness, marks: Path) -> None:
    """Another node may have room for it."""
    warm_up(node)
    running, waiting = node.claim("gate", folder=str(marks)), node.claim("noop")
    node.give(running, waiting)
    assert released(node.outcome(waiting))
    (marks / "go").touch()
    assert node.outcome(running).reason is Reason.OK


def test_a_drain_finishes_what_runs_and_gives_back_what_waits(node: Harness, marks: Path) -> None:
    """Then the pool ends with status 0, and nothing of it is left."""
    warm_up(node)
    running, waiting = node.claim("gate", folder=str(marks)), node.claim("noop")
    node.give(running, waiting)
    node.until((marks / "gate").exists)
    node.drain(60.0)
    assert released(node.outcome(waiting))
    assert node.beats[-1].state == "draining"
    (marks / "go").touch()
    assert node.outcome(running).reason is Reason.OK
    node.until(lambda: node.status is not None)
    assert node.status == 0
    assert not alive(int((marks / "gate").read_text()))


def test_what_outlasts_the_drain_is_interrupted(node: Harness) -> None:
    """It is killed, tried again at once, and counts as nothing."""
    claim = node.claim("swallows", failures=2)
    node.give(claim)
    node.until(lambda: any(w["state"] == "running" for w in node.info().get("workers", ())))
    node.drain(0.1)
    outcome = node.outcome(claim)
    assert (outcome.status, outcome.reason) == (Status.RETRY, Reason.INTERRUPTED)
    assert outcome.next is not None
    assert (outcome.next.delay_us, outcome.next.failures) == (0, 2)
    node.until(lambda: node.status is not None)
    assert node.status == 0


def test_a_stop_cuts_a_drain_short(node: Harness, marks: Path) -> None:
    """The second signal skips the wait."""
    claim = node.claim("gate", folder=str(marks))
    node.give(claim)
    node.until((marks / "gate").exists)
    node.drain(3600.0)
    node.until(lambda: node.beats[-1].state == "draining")
    node.stop()
    assert node.outcome(claim).reason is Reason.INTERRUPTED
    node.until(lambda: node.status is not None)


def test_a_drain_waits_for_the_acknowledgement(node: Harness) -> None:
    """What is not durable is not let go of: the pool stays until a new ingester has taken it."""
    node.ingester.silent = True
    claim = node.claim("noop")
    node.give(claim)
    node.outcome(claim)
    node.drain(0.1)
    node.until(lambda: node.beats[-1].state == "draining")
    beats = len(node.beats)
    node.until(lambda: len(node.beats) > beats)
    assert node.status is None
    node.ingester.down()
    node.ingester.silent = False
    node.ingester.up()
    node.until(lambda: node.status is not None)
    assert [o.ref for o in node.ingester.of(claim)] == [claim.ref] * 2
    assert node.status == 0


def test_a_handler_sees_that_its_node_stops(node: Harness, marks: Path) -> None:
    """ctx.stopping turns true at the drain."""
    claim = node.claim("stopping", folder=str(marks))
    node.give(claim)
    node.until((marks / "began").exists)
    node.drain(60.0)
    assert node.outcome(claim).payload == b'"saw it"'


def test_without_its_lease_it_starts_nothing(node: Harness, marks: Path) -> None:
    """It gives back what waits, tells what runs, and takes again when the lease is back."""
    warm_up(node)
    running, waiting = node.claim("stopping", folder=str(marks)), node.claim("noop")
    node.give(running, waiting)
    node.until((marks / "began").exists)
    node.lease(False)
    assert released(node.outcome(waiting))
    assert node.outcome(running).payload == b'"saw it"'
    node.until(lambda: not node.dispatcher.demand.handlers)
    node.lease(True)
    node.until(lambda: node.dispatcher.demand.handlers)
    assert node.run("noop").reason is Reason.OK


def test_a_new_ingester_gets_what_the_old_one_did_not_acknowledge(node: Harness) -> None:
    """In order, with the same numbers, and nothing that was acknowledged."""
    node.run("noop")
    node.settled()
    node.ingester.silent = True
    claims = [node.claim("noop") for _ in range(50)]
    node.give(*claims)
    node.until(lambda: len(node.ingester.outcomes) == 51)
    node.ingester.down()
    late = node.claim("noop")
    node.give(late)
    node.ingester.silent = False
    node.ingester.outcomes.clear()
    node.ingester.received.clear()
    node.ingester.up()
    node.outcome(late)
    assert node.ingester.received == list(range(1, 52))
    assert {o.ref for o in node.ingester.outcomes} == {c.ref for c in [*claims, late]}
    node.settled()


def test_a_new_dispatcher_starts_to_count_anew(node: Harness) -> None:
    """What runs and waits stays the pool's; the new one is asked for more."""
    node.run("noop")
    node.dispatcher.down()
    node.dispatcher.up()
    claims = [node.claim("noop") for _ in range(20)]
    node.dispatcher.jobs.extend(claims)
    node.outcomes(claims)
    assert node.dispatcher.demand.received <= 20


def test_the_inventory_names_what_runs_waits_and_is_not_acknowledged(node: Harness, marks: Path) -> None:
    """Nothing that the pool answers for is missing, nothing else is in it."""
    warm_up(node)
    node.settled()
    node.ingester.silent = True
    done = node.claim("noop")
    node.give(done)
    node.outcome(done)
    running, waiting = node.claim("gate", folder=str(marks)), node.claim("pid")
    node.give(running, waiting)
    node.until((marks / "gate").exists)
    assert node.holdings(7) == {done.ref, running.ref, waiting.ref}
    (marks / "go").touch()


def test_without_acknowledgements_it_takes_nothing_more_in_the_end(tmp_path: Path) -> None:
    """Back-pressure: the demand ends at a bound, and comes back with the acknowledgements."""
    with Harness(tmp_path, make_pool("noop", workers=2)) as node:
        warm_up(node)
        node.ingester.silent = True
        node.dispatcher.jobs.extend(node.claim("noop") for _ in range(12000))
        node.dispatcher.give()
        node.until(lambda: not node.dispatcher.demand.handlers)
        held = len(node.dispatcher.jobs)
        assert held > 4000
        node.ingester.down()
        node.ingester.silent = False
        node.ingester.up()
        node.until(lambda: not node.dispatcher.jobs)
        node.until(lambda: len({o.ref for o in node.ingester.outcomes}) >= 12000)


def test_a_long_run_is_told_before_it_ends(tmp_path: Path, marks: Path) -> None:
    """With its start, its process, and what it says of itself."""
    with Harness(tmp_path, make_pool("progresses")) as node:
        claim = node.claim("progresses", folder=str(marks))
        node.give(claim)
        node.until(lambda: node.ingester.progress)
        (told,) = node.ingester.progress
        assert (told.id, told.attempt, told.progress, told.note) == (claim.id, 1, 0.25, "a quarter")
        (marks / "go").touch()
        outcome = node.outcome(claim)
        assert (outcome.pid, outcome.started_at) == (told.pid, told.started_at)
        assert (outcome.progress, outcome.note) == (0.25, "a quarter")


def test_a_short_run_is_not_told_before_it_ends(node: Harness) -> None:
    """One statement is enough for it."""
    for _ in range(50):
        node.run("noop")
    assert not node.ingester.progress


@pytest.mark.parametrize("preload", [True, False])
def test_workers_are_recycled_after_their_jobs(tmp_path: Path, preload: bool) -> None:
    """`max_jobs = 1` gives every job a process of its own."""
    with Harness(tmp_path, make_pool("pid", max_jobs=1, preload=preload)) as node:
        pids = [node.run("pid").pid for _ in range(5)]
        assert len(set(pids)) == 5
        assert node.info()["strangers_killed"] == 0


def test_a_worker_that_has_grown_is_recycled(tmp_path: Path) -> None:
    """More than `max_rss` since its fork."""
    with Harness(tmp_path, make_pool("grows", "pid", max_rss=20 << 20)) as node:
        first = node.run("pid").pid
        node.run("grows", mebibytes=64)
        node.until(lambda: node.run("pid").pid != first)
        node.until(lambda: node.info()["worker_restarts"].get("max_rss"))


def test_an_old_worker_is_recycled_even_when_it_is_idle(tmp_path: Path) -> None:
    """`max_age` needs no job to be noticed."""
    with Harness(tmp_path, make_pool("pid", max_age=0.3)) as node:
        node.run("pid")
        node.until(lambda: node.info()["worker_restarts"].get("max_age"))


def test_a_worker_over_its_memory_is_killed_with_the_peak_in_the_error(tmp_path: Path) -> None:
    """Reason `oom`, as a crash."""
    with Harness(tmp_path, make_pool("hoards", memory_max=100 << 20)) as node:
        outcome = node.run("hoards", mebibytes=150)
        assert (outcome.status, outcome.reason) == (Status.RETRY, Reason.OOM)
        assert "102400 KiB" in (outcome.error or "")
        assert outcome.next is not None
        assert outcome.next.crashes == 1
