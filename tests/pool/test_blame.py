"""A death blames exactly one attempt, and nobody else loses anything."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.pool.harness import Harness, make_pool
from tests.pool.test_deadlines import alive
from workerd.config.model import RestartConfig
from workerd.job import Status
from workerd.outcome import Reason

DEATHS = [
    ("segfault", {}, signal.SIGSEGV, None),
    ("killed", {}, signal.SIGKILL, None),
    ("exits", {"code": 3}, None, 3),
    ("exits", {"code": 0}, None, 0),
]


@pytest.mark.parametrize(("handler", "values", "exit_signal", "exit_code"), DEATHS)
def test_a_worker_that_dies_ends_only_its_own_attempt(
    tmp_path: Path, handler: str, values: dict[str, int], exit_signal: int | None, exit_code: int | None
) -> None:
    """The jobs beside it and behind it run as if nothing had happened."""
    with Harness(tmp_path, make_pool(handler, "noop", workers=2)) as node:
        bad = node.claim(handler, **values)
        good = [node.claim("noop") for _ in range(20)]
        node.give(*good[:10], bad, *good[10:])
        outcome = node.outcome(bad)
        assert (outcome.status, outcome.reason) == (Status.RETRY, Reason.CRASHED)
        assert (outcome.exit_signal, outcome.exit_code) == (exit_signal, exit_code)
        if exit_signal == signal.SIGSEGV:
            assert "in segfault" in str(outcome.stack)
        assert outcome.next is not None
        assert (outcome.next.crashes, outcome.next.failures) == (1, 0)
        assert {o.reason for o in node.outcomes(good)} == {Reason.OK}
        assert len(node.ingester.outcomes) == 21


def test_a_kill_from_outside_blames_what_ran(tmp_path: Path, marks: Path) -> None:
    """Whoever sends SIGKILL, the attempt that was running is the one that crashed."""
    with Harness(tmp_path, make_pool("gate", "noop", workers=2)) as node:
        bad, good = node.claim("gate", folder=str(marks)), node.claim("gate", folder=str(marks))
        node.give(bad)
        node.until((marks / "gate").exists)
        os.kill(int((marks / "gate").read_text()), signal.SIGKILL)
        assert node.outcome(bad).exit_signal == signal.SIGKILL
        (marks / "go").touch()
        node.give(good)
        assert node.outcome(good).reason is Reason.OK


def test_a_forked_child_that_holds_the_channel_open_hides_no_death(tmp_path: Path, marks: Path) -> None:
    """The wait status is the authority; the child that was left is killed."""
    with Harness(tmp_path, make_pool("dies_with_child", "noop")) as node:
        outcome = node.run("dies_with_child", folder=str(marks))
        assert (outcome.reason, outcome.exit_code) == (Reason.CRASHED, 3)
        child = int((marks / "child").read_text())
        node.until(lambda: not alive(child))
        assert node.run("noop").reason is Reason.OK


def test_a_worker_that_lives_on_without_its_channel_is_killed(tmp_path: Path) -> None:
    """A handler that closes what is not its own is told so."""
    with Harness(tmp_path, make_pool("closes_channel", "noop")) as node:
        outcome = node.run("closes_channel")
        assert (outcome.reason, outcome.exit_signal) == (Reason.CRASHED, signal.SIGKILL)
        assert "channel" in (outcome.error or "")
        assert node.run("noop").reason is Reason.OK


def test_a_job_that_always_crashes_fails_in_the_end(tmp_path: Path) -> None:
    """At `max_crashes` it is a failure, reason crashed: poison never loops."""
    with Harness(tmp_path, make_pool("segfault", policy={"max_crashes": 3})) as node:
        claims = [node.claim("segfault", crashes=crashes) for crashes in range(3)]
        node.give(*claims)
        statuses = [outcome.status for outcome in node.outcomes(claims)]
        assert statuses == [Status.RETRY, Status.RETRY, Status.FAILURE]


def test_a_crash_once_is_a_success_the_second_time(tmp_path: Path, marks: Path) -> None:
    """The next attempt goes to a fresh worker."""
    with Harness(tmp_path, make_pool("crashes_if_first")) as node:
        assert node.run("crashes_if_first", folder=str(marks)).reason is Reason.CRASHED
        assert node.run("crashes_if_first", folder=str(marks)).reason is Reason.OK


def test_an_idle_worker_that_dies_costs_no_attempt(tmp_path: Path) -> None:
    """It is forked again; no outcome is made of it."""
    with Harness(tmp_path, make_pool("pid")) as node:
        first = node.run("pid")
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        second = node.run("pid")
        assert (second.reason, len(node.ingester.outcomes)) == (Reason.OK, 2)
        assert second.pid != first.pid


def test_a_pool_whose_workers_die_at_once_gives_up(tmp_path: Path) -> None:
    """After its restart intensity it ends, so that the supervisor holds it back; it says why."""
    pool = make_pool("noop", init="pool_faults:dies", restart=RestartConfig(intensity=2, period=60.0))
    with Harness(tmp_path, pool) as node:
        node.until(lambda: node.status is not None)
        assert node.status == 75
        assert node.beats[-1].state == "failed"
        assert "died without a job" in node.beats[-1].trouble
        assert not node.dispatcher.demand.handlers


def test_a_pool_whose_init_fails_says_what_was_raised(tmp_path: Path) -> None:
    """The sentence names the error."""
    pool = make_pool("noop", init="pool_faults:raises", restart=RestartConfig(intensity=1, period=60.0))
    with Harness(tmp_path, pool) as node:
        node.until(lambda: node.status is not None)
        assert "no database today" in node.beats[-1].trouble


@pytest.mark.parametrize("module", ["pool_broken", "no_such_module"])
def test_a_pool_that_cannot_import_its_handler_ends_with_the_reason(tmp_path: Path, module: str) -> None:
    """It asks for nothing before it has loaded, so its jobs stay where they are."""
    with Harness(tmp_path, make_pool("noop", module=module)) as node:
        node.until(lambda: node.status is not None)
        assert node.status == 78
        assert module in node.beats[-1].trouble
        assert node.dispatcher.demands == 0


def test_an_import_that_hangs_is_ended(tmp_path: Path) -> None:
    """At `load_timeout`, by a signal that needs nobody's help."""
    with Harness(tmp_path, make_pool("noop", module="pool_hangs", load_timeout=0.3)) as node:
        node.until(lambda: node.status is not None)
        assert node.status == -signal.SIGALRM
        assert "load_timeout" in node.beats[-1].trouble


def test_an_import_that_exits_ends_only_the_pool(tmp_path: Path) -> None:
    """`os._exit` in a module is the pool's exit status."""
    with Harness(tmp_path, make_pool("noop", module="pool_exits")) as node:
        node.until(lambda: node.status is not None)
        assert node.status == 9


@pytest.mark.parametrize("module", ["pool_hangs", "pool_exits", "pool_broken"])
def test_a_bad_import_in_the_worker_makes_the_pool_give_up(tmp_path: Path, module: str) -> None:
    """With `preload = false` the pool itself stays unharmed and says what is the matter."""
    pool = make_pool(
        "noop",
        module=module,
        preload=False,
        load_timeout=0.2,
        restart=RestartConfig(intensity=1, period=60.0),
    )
    with Harness(tmp_path, pool) as node:
        node.until(lambda: node.status is not None)
        assert node.status == 75
        assert node.beats[-1].trouble


def test_a_killed_pool_takes_its_workers_with_it(tmp_path: Path, marks: Path) -> None:
    """The parent-death signal reaches them."""
    with Harness(tmp_path, make_pool("gate", workers=2)) as node:
        node.give(node.claim("gate", folder=str(marks)))
        node.until((marks / "gate").exists)
        worker = int((marks / "gate").read_text())
        assert node.child is not None
        node.child.kill(signal.SIGKILL)
        node.until(lambda: not alive(worker))


def test_a_pool_without_its_supervisor_ends_with_all_below_it(tmp_path: Path, marks: Path) -> None:
    """The end of the control channel is the end of the pool, its workers and what they started."""
    with Harness(tmp_path, make_pool("leaves_family")) as node:
        node.give(node.claim("leaves_family", folder=str(marks)))
        names = ("plain", "setsid", "double")
        node.until(lambda: all((marks / name).exists() for name in names))
        node.control.close()
        node.until(lambda: node.status is not None)
        for name in names:
            node.until(lambda name=name: not alive(int((marks / name).read_text())))
