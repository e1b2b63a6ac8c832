"""The runner of periodic tasks."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from workerd.dispatcher.tasks import BUSY_PAUSE_S, REFUSED_PAUSE_S, PeriodicTask, TaskRunner
from workerd.errors import InvalidValue, StoreAway, StoreBusy, StoreRefused, UnreadableRow
from workerd.runtime.loop import Loop


class Script:
    """A task that records each run in a shared list and follows its script."""

    def __init__(self, name: str, record: list[str], *steps: float | Exception | None) -> None:
        self.name = name
        self.record = record
        self.steps = list(steps)

    def run(self) -> float | None:
        self.record.append(self.name)
        step = self.steps.pop(0) if self.steps else None
        if isinstance(step, Exception):
            raise step
        return step


class TaskRunnerHarness:
    """A task runner whose lease task is `lease`, and its reports."""

    def __init__(self, loop: Loop, lease: Script, *tasks: PeriodicTask) -> None:
        self.blocked = False
        self.reports = 0
        self.lease = lease
        self.tasks = TaskRunner(loop)
        self.tasks.start(
            [PeriodicTask("lease", lease.run, needs_lease=False), *tasks],
            is_blocked=lambda: self.blocked,
            on_unavailable=self._on_unavailable,
            on_trouble=self._on_trouble,
        )

    def _on_unavailable(self) -> None:
        self.blocked = True
        self.tasks.wake(self.lease.run)

    def _on_trouble(self) -> None:
        self.reports += 1


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def test_one_task_a_turn_and_the_longest_waiting_first(loop: Loop) -> None:
    """A task that always has more to do does not keep the others from their turn."""
    record: list[str] = []
    busy, other = Script("busy", record, *[0.0] * 9), Script("other", record, 0.0)
    runner = TaskRunnerHarness(
        loop, Script("lease", record), PeriodicTask("busy", busy.run), PeriodicTask("other", other.run)
    )
    runner.tasks.wake(busy.run)
    runner.tasks.wake(other.run)
    for turn in range(1, 5):
        loop.turn(0.1)
        assert len(record) == turn
    assert record == ["busy", "other", "busy", "other"]


def test_while_blocked_only_the_lease_runs(loop: Loop) -> None:
    """The task that met the outage continues once the store is available again."""
    record: list[str] = []
    task = Script("task", record, StoreAway("gone"))
    runner = TaskRunnerHarness(loop, Script("lease", record, 0.0, None), PeriodicTask("task", task.run))
    runner.tasks.wake(task.run)
    loop.turn(0.1)
    assert record == ["task"]
    loop.turn(0.1)
    loop.turn(0.1)
    assert record == ["task", "lease", "lease"]
    runner.blocked = False
    runner.tasks.wake_all()
    loop.turn(0.1)
    assert record[-1] == "task"


def test_a_task_that_alone_finds_the_store_unavailable_rests(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once at no cost, then longer each time: what this server does not take stops no other task."""
    monkeypatch.setattr("workerd.dispatcher.tasks.AWAY_PAUSE_S", 3600.0)
    monkeypatch.setattr("workerd.dispatcher.tasks.REFUSED_PAUSE_S", 3600.0)
    record: list[str] = []
    refused = Script("refused", record, *[StoreAway("denied", 1142, answered=True)] * 9)
    other = Script("other", record)
    runner = TaskRunnerHarness(
        loop, Script("lease", record), PeriodicTask("refused", refused.run), PeriodicTask("other", other.run)
    )
    for _ in range(20):
        runner.blocked = False
        runner.tasks.wake(refused.run)
        runner.tasks.wake(other.run)
        loop.turn(0.1)
    assert record.count("refused") == 2
    assert record.count("other") >= 10


def test_a_task_may_find_the_store_unavailable_any_number_of_times(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a row, as in hours of an outage that only it sees."""
    monkeypatch.setattr("workerd.dispatcher.tasks.AWAY_PAUSE_S", 0.0)
    record: list[str] = []
    refused = Script("refused", record, *[StoreAway("denied", 1142, answered=True)] * 1100, None)
    runner = TaskRunnerHarness(loop, Script("lease", record), PeriodicTask("refused", refused.run))
    runner.tasks.wake(refused.run)
    for _ in range(3000):
        runner.blocked = False
        loop.turn(0.0)
    assert record.count("refused") == 1101


def test_all_tasks_are_woken_but_those_on_demand(loop: Loop) -> None:
    """Deregistration must not run because the store is back."""
    record: list[str] = []
    regular, last = Script("regular", record), Script("last", record)
    runner = TaskRunnerHarness(
        loop,
        Script("lease", record),
        PeriodicTask("regular", regular.run),
        PeriodicTask("last", last.run, on_demand=True),
    )
    runner.tasks.wake_all()
    for _ in range(3):
        loop.turn(0.02)
    assert record == ["regular"]
    runner.tasks.wake(last.run)
    loop.turn(0.1)
    assert record == ["regular", "last"]


def test_a_task_with_nothing_to_do_rests_for_its_period(loop: Loop) -> None:
    """None means: after the period; without a period: when woken."""
    record: list[str] = []
    periodic, woken = Script("periodic", record), Script("woken", record)
    runner = TaskRunnerHarness(
        loop,
        Script("lease", record),
        PeriodicTask("periodic", periodic.run, 0.02),
        PeriodicTask("woken", woken.run),
    )
    began = time.monotonic()
    runner.tasks.wake_all()
    while record.count("periodic") < 5:
        loop.turn(0.05)
    assert time.monotonic() - began >= 4 * 0.9 * 0.02  # a period is up to a tenth shorter
    assert record.count("woken") == 1


def test_a_wake_up_during_the_run_is_not_lost(loop: Loop) -> None:
    """A task that wakes itself while it runs is run again."""
    record: list[str] = []

    class Woken(Script):
        def run(self) -> float | None:
            if len(self.record) < 2:
                runner.tasks.wake(self.run)
            return super().run()

    task = Woken("task", record)
    runner = TaskRunnerHarness(loop, Script("lease", record), PeriodicTask("task", task.run))
    runner.tasks.wake(task.run)
    for _ in range(6):
        loop.turn(0.02)
    assert record == ["task"] * 3


def test_a_function_that_is_in_no_table_stays_asleep(loop: Loop) -> None:
    """A node that picks up no work has no task for it; waking it does nothing."""
    record: list[str] = []
    absent = Script("absent", record)
    runner = TaskRunnerHarness(loop, Script("lease", record))
    runner.tasks.wake(absent.run)
    loop.turn(0.02)
    assert record == []


@pytest.mark.parametrize(
    ("error", "event", "shown", "pause_s"),
    [
        (StoreRefused("denied", 1142), "task.refused", "rejects the task claims (denied)", REFUSED_PAUSE_S),
        (UnreadableRow("bad"), "task.refused", "found a row that it cannot read (bad)", REFUSED_PAUSE_S),
        (StoreBusy("locked", 1205), "task.blocked", "claims is blocked by locks (locked)", BUSY_PAUSE_S),
        (ValueError("oops"), "task.crashed", "a bug in workerd", REFUSED_PAUSE_S),
        (InvalidValue("oops"), "task.crashed", "a bug in workerd", REFUSED_PAUSE_S),
        (KeyError("oops"), "task.crashed", "a bug in workerd", REFUSED_PAUSE_S),
    ],
)
def test_a_task_that_fails_is_shown_and_tried_again_after_a_pause(
    loop: Loop,
    capfd: pytest.CaptureFixture[str],
    error: Exception,
    event: str,
    shown: str,
    pause_s: float,
) -> None:
    """The other tasks run on, `workerd status` shows why, and it does not spin; success takes it back."""
    record: list[str] = []
    task = Script("claims", record, error, None)
    row = PeriodicTask("claims", task.run)
    runner = TaskRunnerHarness(loop, Script("lease", record), row)
    began = time.monotonic()
    runner.tasks.wake(task.run)
    loop.turn(0.1)
    loop.turn(0.05)
    assert record == ["claims"]
    assert shown in runner.tasks.troubles["claims"]
    assert began + 0.9 * pause_s <= row.due <= time.monotonic() + 1.1 * pause_s
    logged = "".join(capfd.readouterr())
    assert event in logged
    assert ("Traceback" in logged) == (event == "task.crashed")
    runner.tasks.wake(task.run)
    loop.turn(0.1)
    assert runner.tasks.troubles == {}
    assert runner.reports == 2
