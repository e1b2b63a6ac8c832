"""The pool between dispatcher and ingester: claims in, exactly one outcome out for each."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pool.harness import PoolHarness, alive, make_pool, process_state, released, warm_up
from workerd.job import Claim, Status
from workerd.messages import Claims
from workerd.outcome import Reason
from workerd.pool import claim_queue, monitor, prefetch


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PoolHarness]:
    monkeypatch.setattr(monitor, "STUCK_S", 1e6)  # nothing is released for having waited too long
    with PoolHarness(tmp_path, make_pool("gate", "noop", "echo", "pid", "stopping", "swallows")) as harness:
        harness.up()
        yield harness


def test_handlers_are_announced_with_their_signatures(harness: PoolHarness) -> None:
    """To the ingester."""
    harness.until(lambda: len(harness.ingester.seen) == 6)
    assert b"seconds" not in (harness.ingester.seen["gate"] or b"")
    assert b"folder" in (harness.ingester.seen["gate"] or b"")


def test_times_of_an_outcome_are_ordered(harness: PoolHarness) -> None:
    """claimed <= started <= finished in store time, and the run time fits between."""
    claim = harness.claim("echo", value=[1, {"a": None}])
    harness.give(claim)
    outcome = harness.outcome(claim)
    assert (outcome.status, outcome.payload, outcome.payload_type) == (
        Status.COMPLETED, b'[1,{"a":null}]', "json",
    )  # fmt: skip
    assert outcome.started_at is not None
    assert outcome.finished_at is not None
    assert claim.claimed_at <= outcome.started_at <= outcome.finished_at
    assert outcome.usage.run_us is not None
    assert outcome.usage.run_us <= outcome.finished_at - outcome.started_at


def test_a_release_returns_waiting_jobs_of_the_named_handlers(harness: PoolHarness, marks: Path) -> None:
    """No attempt is used; running jobs and those of other handlers stay."""
    warm_up(harness)
    running = harness.claim("gate", folder=str(marks))
    waiting = [harness.claim("noop") for _ in range(3)]
    kept = harness.claim("pid")
    harness.give(running, *waiting, kept)
    harness.release("noop")
    outcomes = harness.outcomes(waiting)
    assert all(map(released, outcomes))
    assert not harness.ingester.of(running)
    assert not harness.ingester.of(kept)
    (marks / "go").touch()
    assert {o.reason for o in harness.outcomes([running, kept])} == {Reason.OK}


def test_a_job_with_a_rate_does_not_wait_for_a_slow_run(
    tmp_path: Path, marks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was claimed at a moment that its rate allowed; short jobs are claimed ahead all the same."""
    monkeypatch.setattr(monitor, "STUCK_S", 1e6)
    pool = make_pool("noop", "gate", keys={"rated": True})
    with PoolHarness(tmp_path, pool) as harness:
        harness.up()
        warm_up(harness)
        running, waiting = harness.claim("gate", folder=str(marks)), harness.claim("noop")
        harness.give(running, waiting)
        assert released(harness.outcome(waiting))
        (marks / "go").touch()
        assert harness.outcome(running).reason is Reason.OK


@pytest.fixture
def fair_harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PoolHarness]:
    """A pool of a fair handler, where claims may be overtaken however long they wait."""
    monkeypatch.setattr(monitor, "STUCK_S", 1e6)
    monkeypatch.setattr(claim_queue, "MAX_OVERTAKEN_S", 1e6)
    with PoolHarness(tmp_path, make_pool("noop", "gate", keys={"fair": True})) as harness:
        harness.up()
        yield harness


def in_order(harness: PoolHarness, claims: list[Claim]) -> list[bytes]:
    """The ids of these jobs in the order in which they began, once all have ended."""
    return [o.id for o in sorted(harness.outcomes(claims), key=lambda outcome: outcome.started_at or 0)]


def sent_while_one_runs(harness: PoolHarness, marks: Path, *batches: list[Claim]) -> list[bytes]:
    """The ids of these jobs in the order in which they begin, where all come during the run of another."""
    running = harness.claim("gate", folder=str(marks))
    harness.give(running)
    harness.until((marks / "gate").exists)
    for claims in batches:
        harness.dispatcher.send(Claims(claims))  # more than it demands, for it has measured no run
    sent = [claim for claims in batches for claim in claims]
    harness.until(lambda: harness.info().get("waiting") == len(sent))
    (marks / "go").touch()
    return in_order(harness, [running, *sent])[1:]


def test_a_group_that_was_idle_starts_before_what_waits(fair_harness: PoolHarness, marks: Path) -> None:
    """Among those that were idle the order stays."""
    waiting = [fair_harness.claim("noop") for _ in range(3)]
    late = [fair_harness.claim("noop", is_ahead=True) for _ in range(2)]
    begun = sent_while_one_runs(fair_harness, marks, waiting, late[:1], late[1:])
    assert begun == [claim.id for claim in (*late, *waiting)]


def test_a_group_that_was_idle_starts_before_nothing_that_is_more_urgent(
    fair_harness: PoolHarness, marks: Path
) -> None:
    """It is before the others all the same."""
    urgent = [fair_harness.claim("noop", priority=-1) for _ in range(3)]
    others = [fair_harness.claim("noop") for _ in range(2)]
    late = fair_harness.claim("noop", is_ahead=True)
    begun = sent_while_one_runs(fair_harness, marks, [*urgent, *others], [late])
    assert begun == [claim.id for claim in (*urgent, late, *others)]


@pytest.mark.slow
def test_a_group_that_was_idle_starts_before_what_is_queued_at_a_worker(
    fair_harness: PoolHarness, marks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where runs take long enough that it matters."""
    monkeypatch.setattr(prefetch, "SLOW_RUN_NS", 1 << 60)
    monkeypatch.setattr(prefetch, "LONG_RUN_S", 0.0)
    warm_up(fair_harness)
    running = fair_harness.claim("gate", folder=str(marks))
    queued = [fair_harness.claim("noop") for _ in range(3)]
    late = fair_harness.claim("noop", is_ahead=True)
    fair_harness.give(running, *queued)
    fair_harness.until(lambda: fair_harness.info().get("waiting") == 3)
    fair_harness.until((marks / "gate").exists)
    fair_harness.dispatcher.send(Claims([late]))
    fair_harness.until(lambda: fair_harness.info().get("waiting") == 4)
    (marks / "go").touch()
    begun = in_order(fair_harness, [running, *queued, late])
    assert begun == [claim.id for claim in (running, late, *queued)]


def test_without_lease_no_job_is_started(harness: PoolHarness, marks: Path) -> None:
    """Waiting jobs are released, running ones see ctx.stopping; claims are taken again with the lease."""
    warm_up(harness)
    running, waiting = harness.claim("stopping", folder=str(marks)), harness.claim("noop")
    harness.give(running, waiting)
    harness.until((marks / "began").exists)
    harness.lease(False)
    assert released(harness.outcome(waiting))
    assert harness.outcome(running).payload == b'"saw it"'
    harness.until(lambda: not harness.dispatcher.demand.handlers)
    harness.lease(True)
    harness.until(lambda: harness.dispatcher.demand.handlers)
    assert harness.run("noop").reason is Reason.OK


def test_nothing_is_started_after_the_lease_though_nobody_says_that_it_is_over(
    harness: PoolHarness, marks: Path
) -> None:
    """As when the dispatcher hangs: waiting jobs are released; the next LeaseState makes good."""
    warm_up(harness)
    running, *waiting = harness.claim("gate", folder=str(marks)), *[harness.claim("noop") for _ in range(3)]
    harness.give(running, *waiting)
    harness.until((marks / "gate").exists)
    harness.lease(True, time.monotonic_ns())
    harness.until(lambda: harness.info().get("lease_held") is False)
    (marks / "go").touch()
    assert harness.outcome(running).reason is Reason.OK
    assert all(map(released, harness.outcomes(waiting)))
    harness.until(lambda: not harness.dispatcher.demand.handlers)
    harness.dispatcher.send(Claims([late := harness.claim("noop")]))
    assert released(harness.outcome(late))
    harness.lease(True)
    harness.until(lambda: harness.dispatcher.demand.handlers)
    assert harness.run("noop").reason is Reason.OK


@pytest.mark.parametrize("said", [True, False])
def test_what_a_worker_had_not_begun_does_not_begin_under_the_next_lease(
    harness: PoolHarness, marks: Path, said: bool
) -> None:
    """As when the whole node is stopped, and its workers wake up last: another may have run it by now."""
    worker = harness.run("pid").pid
    assert worker is not None
    os.kill(worker, signal.SIGSTOP)
    harness.until(lambda: process_state(worker) == "T")
    stale = harness.claim("gate", folder=str(marks))
    harness.give(stale)
    harness.until(lambda: stale.ref in harness.holdings(1) and not harness.dispatcher.jobs)
    harness.lease(True, time.monotonic_ns())
    if said:
        harness.lease(False, time.monotonic_ns())
    harness.lease(True)
    assert stale.ref in harness.holdings(2)  # the pool has read the leases, and its worker is stopped
    os.kill(worker, signal.SIGCONT)
    assert released(harness.outcome(stale))
    assert not (marks / "gate").exists()
    assert harness.run("pid").pid == worker


def test_a_lease_that_is_heard_of_late_stops_no_run(harness: PoolHarness, marks: Path) -> None:
    """Only what has not begun is released: the node may have had its lease all the time."""
    warm_up(harness)
    running, waiting = harness.claim("stopping", folder=str(marks)), harness.claim("noop")
    harness.give(running, waiting)
    harness.until((marks / "began").exists)
    harness.lease(True, time.monotonic_ns())
    harness.lease(True)
    assert released(harness.outcome(waiting))
    assert running.ref in harness.holdings(1)
    harness.lease(False)
    assert harness.outcome(running).payload == b'"saw it"'


def test_a_new_ingester_gets_unacknowledged_outcomes(harness: PoolHarness) -> None:
    """In order, with the same numbers, and none that was acknowledged."""
    harness.run("noop")
    harness.settled()
    harness.ingester.silent = True
    claims = [harness.claim("noop") for _ in range(50)]
    harness.give(*claims)
    harness.until(lambda: len(harness.ingester.outcomes) == 51)
    harness.ingester.down()
    late = harness.claim("noop")
    harness.give(late)
    harness.ingester.silent = False
    harness.ingester.outcomes.clear()
    harness.ingester.received.clear()
    harness.ingester.up()
    harness.outcome(late)
    assert harness.ingester.received == list(range(1, 52))
    assert {o.ref for o in harness.ingester.outcomes} == {c.ref for c in [*claims, late]}
    harness.settled()


def test_a_hold_without_a_limit_is_warned_of_once(tmp_path: Path) -> None:
    """Its handler is to get a limit; nothing is held until then."""
    with PoolHarness(tmp_path, make_pool("raises")) as harness:
        harness.up()
        for _ in range(2):
            claim = harness.claim("raises", kind="hold")
            harness.give(claim)
            outcome = harness.outcome(claim)
            assert (outcome.status, outcome.hold) == (Status.RETRY, None)
        found = [event for event in harness.log_events() if event["event"] == "hold.ignored"]
        assert [(event["level"], event["handler"]) for event in found] == [("warning", "raises")]


def test_holdings_name_waiting_running_and_unacknowledged_attempts(harness: PoolHarness, marks: Path) -> None:
    """All of them and nothing else (law 2)."""
    warm_up(harness)
    harness.settled()
    harness.ingester.silent = True
    done = harness.claim("noop")
    harness.give(done)
    harness.outcome(done)
    running, waiting = harness.claim("gate", folder=str(marks)), harness.claim("pid")
    harness.give(running, waiting)
    harness.until((marks / "gate").exists)
    assert harness.holdings(7) == {done.ref, running.ref, waiting.ref}
    (marks / "go").touch()


def test_without_acknowledgements_demand_ends(tmp_path: Path) -> None:
    """Back-pressure (law 7): it returns with the acknowledgements."""
    with PoolHarness(tmp_path, make_pool("noop", workers=2)) as harness:
        warm_up(harness)
        harness.ingester.silent = True
        harness.dispatcher.jobs.extend(harness.claim("noop") for _ in range(12000))
        harness.dispatcher.give()
        harness.until(lambda: not harness.dispatcher.demand.handlers)
        held = len(harness.dispatcher.jobs)
        assert held > 4000
        harness.ingester.down()
        harness.ingester.silent = False
        harness.ingester.up()
        harness.until(lambda: not harness.dispatcher.jobs)
        harness.until(lambda: len({o.ref for o in harness.ingester.outcomes}) >= 12000)


def test_a_cancel_of_a_waiting_job_ends_it_unstarted(tmp_path: Path, marks: Path) -> None:
    """It has neither start time nor pid."""
    with PoolHarness(tmp_path, make_pool("gate", "noop")) as harness:
        harness.up()
        for _ in range(20):  # so that the pool knows that its jobs are short and takes some ahead
            harness.run("noop")
        running, waiting = harness.claim("gate", folder=str(marks)), harness.claim("noop")
        harness.give(running, waiting)
        harness.until((marks / "gate").exists)
        if waiting not in harness.dispatcher.jobs:
            harness.cancel(waiting)
            outcome = harness.outcome(waiting)
            assert (outcome.status, outcome.started_at, outcome.pid) == (Status.CANCELLED, None, None)
        (marks / "go").touch()
        assert harness.outcome(running).reason is Reason.OK


# -- draining and exit


def test_a_drain_finishes_running_jobs_and_releases_waiting_ones(harness: PoolHarness, marks: Path) -> None:
    """Then the pool exits with status 0 and leaves no process."""
    warm_up(harness)
    running, waiting = harness.claim("gate", folder=str(marks)), harness.claim("noop")
    harness.give(running, waiting)
    harness.until((marks / "gate").exists)
    harness.drain(60.0)
    assert released(harness.outcome(waiting))
    assert harness.beats[-1].state == "draining"
    (marks / "go").touch()
    assert harness.outcome(running).reason is Reason.OK
    harness.until(lambda: harness.status is not None)
    assert harness.status == 0
    assert not alive(int((marks / "gate").read_text()))


def test_a_job_that_outlasts_the_drain_is_interrupted(harness: PoolHarness) -> None:
    """It is killed, retried at once, and no attempt is used."""
    claim = harness.claim("swallows", failures=2)
    harness.give(claim)
    harness.until(lambda: any(w["state"] == "running" for w in harness.info().get("workers", ())))
    harness.drain(0.1)
    outcome = harness.outcome(claim)
    assert (outcome.status, outcome.reason) == (Status.RETRY, Reason.INTERRUPTED)
    assert outcome.next is not None
    assert (outcome.next.delay_us, outcome.next.failures) == (0, 2)
    harness.until(lambda: harness.status is not None)
    assert harness.status == 0


@pytest.mark.parametrize("resumable", [False, True])
def test_the_end_of_an_overlap_interrupts_or_kills(tmp_path: Path, marks: Path, *, resumable: bool) -> None:
    """A run that is resumable may save its place; the other is killed. Neither is asked to stop before."""
    with PoolHarness(tmp_path, make_pool("gate", policy={"resumable": resumable})) as harness:
        claim = harness.claim("gate", folder=str(marks))
        harness.give(claim)
        harness.until((marks / "gate").exists)
        harness.drain(0.1, overlap=True)
        outcome = harness.outcome(claim)
        assert (outcome.status, outcome.reason) == (Status.RETRY, Reason.INTERRUPTED)
        error = "Interrupted: its pool stops" if resumable else "The overlap of a reload was over"
        assert (outcome.error or "").startswith(error)
        harness.until(lambda: harness.status is not None)
        assert harness.status == 0


def test_a_stop_cuts_a_drain_short(harness: PoolHarness, marks: Path) -> None:
    """Running jobs are interrupted at once."""
    claim = harness.claim("gate", folder=str(marks))
    harness.give(claim)
    harness.until((marks / "gate").exists)
    harness.drain(3600.0)
    harness.until(lambda: harness.beats[-1].state == "draining")
    harness.stop()
    assert harness.outcome(claim).reason is Reason.INTERRUPTED
    harness.until(lambda: harness.status is not None)


def test_a_drain_waits_for_acknowledgements(harness: PoolHarness) -> None:
    """The pool lives until an ingester has taken every outcome."""
    harness.ingester.silent = True
    claim = harness.claim("noop")
    harness.give(claim)
    harness.outcome(claim)
    harness.drain(0.1)
    harness.until(lambda: harness.beats[-1].state == "draining")
    beats = len(harness.beats)
    harness.until(lambda: len(harness.beats) > beats)
    assert harness.status is None
    harness.ingester.down()
    harness.ingester.silent = False
    harness.ingester.up()
    harness.until(lambda: harness.status is not None)
    assert [o.ref for o in harness.ingester.of(claim)] == [claim.ref] * 2
    assert harness.status == 0


def test_ctx_stopping_is_set_at_the_drain(harness: PoolHarness, marks: Path) -> None:
    """In running jobs."""
    claim = harness.claim("stopping", folder=str(marks))
    harness.give(claim)
    harness.until((marks / "began").exists)
    harness.drain(60.0)
    assert harness.outcome(claim).payload == b'"saw it"'


def test_the_workers_of_a_killed_pool_die(tmp_path: Path, marks: Path) -> None:
    """By the parent-death signal."""
    with PoolHarness(tmp_path, make_pool("gate", workers=2)) as harness:
        harness.give(harness.claim("gate", folder=str(marks)))
        harness.until((marks / "gate").exists)
        worker = int((marks / "gate").read_text())
        assert harness.child is not None
        harness.child.kill(signal.SIGKILL)
        harness.until(lambda: not alive(worker))


def test_a_pool_without_supervisor_kills_its_descendants(tmp_path: Path, marks: Path) -> None:
    """End of file on the control channel ends pool, workers and what those started."""
    with PoolHarness(tmp_path, make_pool("leaves_family")) as harness:
        harness.give(harness.claim("leaves_family", folder=str(marks)))
        names = ("plain", "setsid", "double")
        harness.until(lambda: all((marks / name).exists() for name in names))
        harness.control.close()
        harness.until(lambda: harness.status is not None)
        for name in names:
            harness.until(lambda name=name: not alive(int((marks / name).read_text())))


# -- loading


@pytest.mark.parametrize("module", ["pool_broken", "no_such_module"])
def test_a_pool_that_cannot_import_its_handler_exits_with_the_reason(tmp_path: Path, module: str) -> None:
    """It demands nothing before it has loaded, so its jobs stay `new`."""
    with PoolHarness(tmp_path, make_pool("noop", module=module)) as harness:
        harness.until(lambda: harness.status is not None)
        assert harness.status == 78
        assert module in harness.beats[-1].trouble
        assert harness.dispatcher.demands == 0


def test_an_import_that_hangs_is_killed_at_load_timeout(tmp_path: Path) -> None:
    """By SIGALRM, which works even when the interpreter hangs."""
    with PoolHarness(tmp_path, make_pool("noop", module="pool_hangs", load_timeout=0.3)) as harness:
        harness.until(lambda: harness.status is not None)
        assert harness.status == -signal.SIGALRM
        assert "load_timeout" in harness.beats[-1].trouble


def test_an_import_that_exits_ends_the_pool(tmp_path: Path) -> None:
    """`os._exit` in a module is the pool's exit status."""
    with PoolHarness(tmp_path, make_pool("noop", module="pool_exits")) as harness:
        harness.until(lambda: harness.status is not None)
        assert harness.status == 9
