"""The pool between dispatcher and ingester: claims in, exactly one outcome out for each."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pool.harness import Harness, alive, make_pool, released, warm_up
from workerd.job import Status
from workerd.outcome import Reason


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Harness]:
    with Harness(tmp_path, make_pool("gate", "noop", "echo", "pid", "stopping", "swallows")) as harness:
        harness.up()
        yield harness


def test_handlers_are_announced_with_their_signatures(node: Harness) -> None:
    """To the ingester."""
    node.until(lambda: len(node.ingester.seen) == 6)
    assert b"seconds" not in (node.ingester.seen["gate"] or b"")
    assert b"folder" in (node.ingester.seen["gate"] or b"")


def test_times_of_an_outcome_are_ordered(node: Harness) -> None:
    """claimed <= started <= finished in store time, and the run time fits between."""
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


def test_a_release_returns_waiting_jobs_of_the_named_handlers(node: Harness, marks: Path) -> None:
    """No attempt is used; running jobs and those of other handlers stay."""
    warm_up(node)
    running = node.claim("gate", folder=str(marks))
    waiting = [node.claim("noop") for _ in range(3)]
    kept = node.claim("pid")
    node.give(running, *waiting, kept)
    node.release("noop")
    outcomes = node.outcomes(waiting)
    assert all(map(released, outcomes))
    assert not node.ingester.of(running)
    assert not node.ingester.of(kept)
    (marks / "go").touch()
    assert {o.reason for o in node.outcomes([running, kept])} == {Reason.OK}


def test_without_lease_no_job_is_started(node: Harness, marks: Path) -> None:
    """Waiting jobs are released, running ones see ctx.stopping; claims are taken again with the lease."""
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


def test_a_new_ingester_gets_unacknowledged_outcomes(node: Harness) -> None:
    """In order, with the same numbers, and none that was acknowledged."""
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


def test_holdings_name_waiting_running_and_unacknowledged_attempts(node: Harness, marks: Path) -> None:
    """All of them and nothing else (law 2)."""
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


def test_without_acknowledgements_demand_ends(tmp_path: Path) -> None:
    """Back-pressure (law 7): it returns with the acknowledgements."""
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


def test_a_cancel_of_a_waiting_job_ends_it_unstarted(tmp_path: Path, marks: Path) -> None:
    """It has neither start time nor pid."""
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


# -- draining and exit


def test_a_drain_finishes_running_jobs_and_releases_waiting_ones(node: Harness, marks: Path) -> None:
    """Then the pool exits with status 0 and leaves no process."""
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


def test_a_job_that_outlasts_the_drain_is_interrupted(node: Harness) -> None:
    """It is killed, retried at once, and no attempt is used."""
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
    """Running jobs are interrupted at once."""
    claim = node.claim("gate", folder=str(marks))
    node.give(claim)
    node.until((marks / "gate").exists)
    node.drain(3600.0)
    node.until(lambda: node.beats[-1].state == "draining")
    node.stop()
    assert node.outcome(claim).reason is Reason.INTERRUPTED
    node.until(lambda: node.status is not None)


def test_a_drain_waits_for_acknowledgements(node: Harness) -> None:
    """The pool lives until an ingester has taken every outcome."""
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


def test_ctx_stopping_is_set_at_the_drain(node: Harness, marks: Path) -> None:
    """In running jobs."""
    claim = node.claim("stopping", folder=str(marks))
    node.give(claim)
    node.until((marks / "began").exists)
    node.drain(60.0)
    assert node.outcome(claim).payload == b'"saw it"'


def test_the_workers_of_a_killed_pool_die(tmp_path: Path, marks: Path) -> None:
    """By the parent-death signal."""
    with Harness(tmp_path, make_pool("gate", workers=2)) as node:
        node.give(node.claim("gate", folder=str(marks)))
        node.until((marks / "gate").exists)
        worker = int((marks / "gate").read_text())
        assert node.child is not None
        node.child.kill(signal.SIGKILL)
        node.until(lambda: not alive(worker))


def test_a_pool_without_supervisor_kills_its_descendants(tmp_path: Path, marks: Path) -> None:
    """End of file on the control channel ends pool, workers and what those started."""
    with Harness(tmp_path, make_pool("leaves_family")) as node:
        node.give(node.claim("leaves_family", folder=str(marks)))
        names = ("plain", "setsid", "double")
        node.until(lambda: all((marks / name).exists() for name in names))
        node.control.close()
        node.until(lambda: node.status is not None)
        for name in names:
            node.until(lambda name=name: not alive(int((marks / name).read_text())))


# -- loading


@pytest.mark.parametrize("module", ["pool_broken", "no_such_module"])
def test_a_pool_that_cannot_import_its_handler_exits_with_the_reason(tmp_path: Path, module: str) -> None:
    """It demands nothing before it has loaded, so its jobs stay `new`."""
    with Harness(tmp_path, make_pool("noop", module=module)) as node:
        node.until(lambda: node.status is not None)
        assert node.status == 78
        assert module in node.beats[-1].trouble
        assert node.dispatcher.demands == 0


def test_an_import_that_hangs_is_killed_at_load_timeout(tmp_path: Path) -> None:
    """By SIGALRM, which works even when the interpreter hangs."""
    with Harness(tmp_path, make_pool("noop", module="pool_hangs", load_timeout=0.3)) as node:
        node.until(lambda: node.status is not None)
        assert node.status == -signal.SIGALRM
        assert "load_timeout" in node.beats[-1].trouble


def test_an_import_that_exits_ends_the_pool(tmp_path: Path) -> None:
    """`os._exit` in a module is the pool's exit status."""
    with Harness(tmp_path, make_pool("noop", module="pool_exits")) as node:
        node.until(lambda: node.status is not None)
        assert node.status == 9
