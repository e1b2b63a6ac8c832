"""The event loop: alarms, procedures in steps."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

from tests.runtime.conftest import turn_until
from workerd.runtime.loop import Alarm, Loop


def test_an_alarm_rings_once_at_its_last_setting(loop: Loop) -> None:
    """Moving it later or earlier forgets the former time."""
    rings: list[float] = []
    alarm = Alarm(loop, lambda: rings.append(time.monotonic()))
    began = time.monotonic()
    alarm.set(began + 3600)
    alarm.set(began + 0.01)
    alarm.set(began + 0.05)
    turn_until(loop, lambda: rings)
    assert rings[0] >= began + 0.05
    assert alarm.when > began + 1e9


def test_a_cleared_alarm_is_silent_until_it_is_set_again(loop: Loop) -> None:
    """A job that ended in time leaves nothing behind."""
    rings: list[int] = []
    alarm = Alarm(loop, lambda: rings.append(1))
    alarm.set(time.monotonic() + 0.01)
    alarm.clear()
    later: list[int] = []
    loop.call_later(0.03, lambda: later.append(1))
    turn_until(loop, lambda: later)
    assert not rings
    alarm.set(time.monotonic())
    turn_until(loop, lambda: rings)


def test_a_stream_of_settings_keeps_one_timer(loop: Loop) -> None:
    """A million jobs with a deadline are not a million timers."""
    alarm = Alarm(loop, lambda: None)
    for n in range(1000):
        alarm.set(time.monotonic() + 60 + n)
        alarm.clear()
    assert len(loop._timers) == 1


def test_a_procedure_in_steps_is_resumed_until_it_ends(loop: Loop) -> None:
    """It runs up to its first yield at once, and waits between two steps."""
    times: list[float] = []

    def steps() -> Iterator[None]:
        times.append(time.monotonic())
        yield
        times.append(time.monotonic())

    loop.run_steps(steps(), 0.03)
    assert len(times) == 1
    turn_until(loop, lambda: len(times) == 2)
    assert times[1] - times[0] >= 0.03


def test_events_gather_while_the_loop_rests(loop: Loop) -> None:
    """What comes meanwhile is served in one turn; a timer still fires in time."""
    pipes = [os.pipe() for _ in range(2)]
    served: list[tuple[int, int]] = []
    for reading, _ in pipes:
        loop.on_readable(reading, lambda fd=reading: served.append((loop.turns, len(os.read(fd, 1)))))
    os.write(pipes[0][1], b"x")
    second = threading.Timer(0.05, lambda: os.write(pipes[1][1], b"x"))
    second.start()
    loop.rest(0.5)
    loop.turn(1.0)
    assert len({turn for turn, _ in served}) == 1
    assert len(served) == 2
    rings: list[float] = []
    due = time.monotonic() + 0.01
    loop.call_at(due, lambda: rings.append(time.monotonic()))
    loop.rest(600.0)
    turn_until(loop, lambda: rings)
    assert rings[0] >= due
    second.join()
    for reading, writing in pipes:
        loop.forget(reading)
        os.close(reading)
        os.close(writing)
