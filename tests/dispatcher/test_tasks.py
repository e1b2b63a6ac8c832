"""The dispatcher's small parts: agenda, gate, and what a lane learns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from workerd.clock import SECOND, from_rfc3339
from workerd.dispatcher.claimer import PickupWindow
from workerd.dispatcher.dispatcher import read_formers, store_timeout
from workerd.dispatcher.tasks import PeriodicTask, TaskRunner
from workerd.errors import StoreAway, StoreError, StoreRefused
from workerd.runtime.loop import Loop


class Noted(PeriodicTask):
    """Notes that it worked, and answers what it was told to."""

    def __init__(self, name: str, log: list[str], *answers: float | Exception | None) -> None:
        super().__init__()
        self.name = name
        self.log = log
        self.answers = list(answers)

    def work(self) -> float | None:
        self.log.append(self.name)
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def agenda(
    loop: Loop, keeper: PeriodicTask, *duties: PeriodicTask, blocked: list[bool] | None = None
) -> TaskRunner:
    away = blocked or [False]

    def on_away() -> None:
        away[0] = True
        keeper.wake()

    return TaskRunner(loop, keeper, duties, lambda: away[0], on_away, lambda duty, error: None)


def test_one_duty_a_turn_and_the_longest_waiting_first(loop: Loop) -> None:
    """A duty that always has more to do does not keep the others from their turn."""
    log: list[str] = []
    keeper, busy, other = Noted("keeper", log), Noted("busy", log, *[0.0] * 9), Noted("other", log, 0.0)
    agenda(loop, keeper, busy, other)
    busy.wake()
    other.wake()
    for turn in range(1, 5):
        loop.turn(0.1)
        assert len(log) == turn
    assert log == ["busy", "other", "busy", "other"]


def test_while_the_store_is_away_only_the_keeper_works(loop: Loop) -> None:
    """The duty that met the outage goes on when the keeper has found the store again."""
    log: list[str] = []
    away = [False]
    keeper, duty = Noted("keeper", log, 0.0, None), Noted("duty", log, StoreAway("gone"))
    agenda(loop, keeper, duty, blocked=away)
    duty.wake()
    loop.turn(0.1)
    assert log == ["duty"]
    loop.turn(0.1)
    loop.turn(0.1)
    assert log == ["duty", "keeper", "keeper"]
    away[0] = False
    keeper.wake(60)
    duty.wake()
    loop.turn(0.1)
    assert log[-1] == "duty"


def test_a_wake_up_during_the_work_is_not_lost(loop: Loop) -> None:
    """`wake` from within `work` is as good as one after it."""
    log: list[str] = []
    keeper = Noted("keeper", log)

    class Woken(Noted):
        def work(self) -> float | None:
            if len(self.log) < 2:
                self.wake()
            return super().work()

    duty = Woken("duty", log)
    agenda(loop, keeper, duty)
    duty.wake()
    for _ in range(6):
        loop.turn(0.02)
    assert log == ["duty"] * 3


def test_a_refused_statement_is_told_and_does_not_spin(loop: Loop) -> None:
    """What the store refuses is told once and tried again after a pause; recovery is told too."""
    log: list[str] = []
    told: list[StoreError | None] = []
    keeper, duty = Noted("keeper", log), Noted("duty", log, StoreRefused("denied", 1142), None)
    TaskRunner(loop, keeper, [duty], lambda: False, lambda: None, lambda duty, error: told.append(error))
    duty.wake()
    loop.turn(0.1)
    loop.turn(0.05)
    assert log == ["duty"]
    assert [type(error) for error in told] == [StoreRefused]
    duty.wake()
    loop.turn(0.1)
    assert told[1:] == [None]


NOON = from_rfc3339("2026-03-01T12:00:00Z")


def test_a_gate_without_expression_is_always_open() -> None:
    """`""` means at once."""
    gate = PickupWindow("")
    gate.drained()
    assert gate.is_open(NOON)


def test_a_gate_opens_at_its_ticks_until_it_is_drained() -> None:
    """Closed at first, open from a tick until everything was taken."""
    gate = PickupWindow("*/5 * * * *")
    assert not gate.is_open(NOON + SECOND)
    assert not gate.is_open(NOON + 299 * SECOND)
    assert gate.is_open(NOON + 300 * SECOND)
    assert gate.is_open(NOON + 301 * SECOND)
    gate.drained()
    assert not gate.is_open(NOON + 302 * SECOND)
    assert gate.next == NOON + 600 * SECOND


def test_formers_are_all_but_ourselves(tmp_path: Path) -> None:
    """The list of incarnations is read leniently; a torn line counts for nothing."""
    path = tmp_path / "incarnations"
    assert read_formers(path, bytes(16)) == []
    path.write_text(f"{'ab' * 16}\n{'00' * 16}\nabcd\nzz{'ab' * 15}\n")
    assert read_formers(path, bytes(16)) == [bytes.fromhex("ab" * 16)]


@pytest.mark.parametrize(
    ("watchdog", "lease", "expected"),
    [(10.0, 30.0, 4.0), (60.0, 30.0, 5.0), (60.0, 8.0, 2.0), (1.0, 30.0, 0.4)],
)
def test_no_statement_outlasts_the_watchdog_or_the_lease(
    watchdog: float, lease: float, expected: float
) -> None:
    """Connecting and one statement together stay below both."""
    assert store_timeout(watchdog, lease) == pytest.approx(expected)
