"""The pool's tools, each alone: alarm, output, dump, page, strangers, states, pace."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pool.test_deadlines import alive
from tests.support.eventually import eventually
from workerd.pool.dispatcher_link import AHEAD, RunTimeAverage
from workerd.pool.shared import SharedFlags
from workerd.pool.worker_process import BUSY, MOVES, WorkerState, death_sentence, trim
from workerd.runtime.child import become_subreaper, fork
from workerd.runtime.loop import Alarm, Loop
from workerd.runtime.output import LIMIT, LINE_LIMIT, Output
from workerd.runtime.reaper import Strangers
from workerd.runtime.stackdump import StackDump, kernel_view


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def turn_until(loop: Loop, fact: Callable[[], Any], within: float = 10.0) -> Any:
    end = time.monotonic() + within
    while not (value := fact()):
        assert time.monotonic() < end, "the fact never came"
        loop.turn(0.01)
    return value


# -- states


def test_every_state_is_reached_and_only_death_is_final() -> None:
    """The table is complete: no state without a way in, none but one without a way out."""
    reached, frontier = {WorkerState.STARTING}, [WorkerState.STARTING]
    while frontier:
        new = MOVES[frontier.pop()] - reached
        reached |= new
        frontier += new
    assert reached == set(WorkerState) == set(MOVES)
    assert [state for state in WorkerState if not MOVES[state]] == [WorkerState.DEAD]
    assert all(WorkerState.KILLING in MOVES[state] for state in BUSY)


# -- alarm


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


# -- output


class Printer:
    def __init__(self, loop: Loop) -> None:
        reading, self.fd = os.pipe()
        self.lines: list[str] = []
        self.output = Output(loop, reading, self.lines.extend)

    def write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.fd, data[:4096]) :]
            self.output.drain()

    def close(self) -> None:
        os.close(self.fd)
        self.output.close()


@pytest.fixture
def printer(loop: Loop) -> Iterator[Printer]:
    made = Printer(loop)
    yield made
    made.close()


def test_lines_are_told_whole_however_they_arrive(printer: Printer) -> None:
    """The unfinished one at the end of its period; invalid UTF-8 is replaced."""
    for part in (b"on", b"e\ntw", b"o\n\n\xff", b"three"):
        printer.write(part)
    assert printer.lines == ["one", "two"]
    assert printer.output.turn_over() == 0
    assert printer.lines[2:] == ["�three"]
    assert not printer.output.touched


@pytest.mark.parametrize(
    "line", [b"x\n", b"\n", b"y" * 99 + b"\n", b"z" * 100_000, b"\xf0\x9f\x98\x80" * 3000]
)
def test_no_more_is_told_of_a_period_than_its_limit(printer: Printer, line: bytes) -> None:
    """Of many short lines, one endless line, or nothing but newlines; the rest is counted to the byte."""
    data = line * (1_000_000 // len(line))
    printer.write(data)
    dropped = printer.output.turn_over()
    assert sum(map(len, printer.lines)) <= LIMIT
    assert len(printer.lines) <= LIMIT // 32 + LIMIT // LINE_LIMIT
    assert max(map(len, printer.lines), default=0) <= LINE_LIMIT
    assert dropped > 500_000
    printer.write(b"again\n")
    assert printer.lines[-1] == "again"


# -- dump and page


def test_a_dump_that_a_child_wrote_is_read_by_its_parent() -> None:
    """Each `clear` begins a new one, for both."""
    dump = StackDump()
    for _ in range(2):
        dump.clear()
        child = fork(lambda: faulthandler.dump_traceback(dump.fd) or 0, keep=[dump.fd])
        assert eventually(lambda child=child: child.reap() is not None)
        child.close()
        assert dump.text().startswith("Current thread")
        assert dump.size() == len(dump.text().encode())
    dump.close()


def test_the_kernels_view_says_something_of_any_process() -> None:
    """Where no stack came, there is at least a state."""
    assert "State:" in kernel_view(os.getpid())
    assert "nothing" in kernel_view(2**22 + 1)


def test_a_dump_is_shown_without_the_pools_own_frames() -> None:
    """Every thread of the handler's is kept."""
    ours = Path(trim.__code__.co_filename).parent
    dump = (
        'Thread 0x01 (most recent call first):\n  File "/app/h.py", line 1 in wait\n\n'
        'Current thread 0x02 (most recent call first):\n  File "/app/h.py", line 2 in run\n'
        f'  File "{ours}/executor.py", line 3 in _call\n  File "/usr/lib/x.py", line 4 in y\n'
    )
    assert trim(dump).splitlines() == [
        "Thread 0x01 (most recent call first):", '  File "/app/h.py", line 1 in wait', "",
        "Current thread 0x02 (most recent call first):", '  File "/app/h.py", line 2 in run',
    ]  # fmt: skip


def test_a_page_is_one_memory_for_parent_and_child() -> None:
    """What the parent writes after the fork the child reads."""
    page = SharedFlags()
    reading, writing = os.pipe()

    def wait() -> int:
        os.read(reading, 1)
        return (
            0
            if (page.serial, page.soft_deadline_ns, page.cancel, page.stopping) == (7, 99, True, True)
            else 1
        )

    child = fork(wait, keep=[reading])
    page.begin(7, 99)
    page.ask_cancel()
    page.set_stopping(True)
    os.write(writing, b"x")
    assert eventually(lambda: child.reap() is not None)
    assert child.status == 0
    page.begin(8, 0)
    assert (page.cancel, page.stopping) == (False, True)
    for fd in (reading, writing):
        os.close(fd)
    child.close()
    page.close()


# -- strangers and words


def test_strangers_are_ended_down_to_the_last_generation(tmp_path: Path) -> None:
    """Orphans of orphans come one after the other; none is left, and nobody else is touched."""

    def family() -> int:
        become_subreaper()
        loop = Loop()
        known = os.fork()
        if known == 0:
            time.sleep(600)
        if os.fork() == 0:
            for _ in range(3):
                if os.fork() == 0:
                    os.setsid()
            (tmp_path / str(os.getpid())).touch()
            time.sleep(600)
        eventually(lambda: len(list(tmp_path.iterdir())) == 8)
        strangers = Strangers(loop, lambda: {known})
        strangers.look()
        turn_until(loop, lambda: not strangers.busy)
        kept = alive(known) and strangers.killed == 8
        os.kill(known, signal.SIGKILL)
        return 0 if kept else 1

    child = fork(family)
    assert eventually(lambda: child.reap() is not None)
    assert child.status == 0
    assert not [path for path in tmp_path.iterdir() if alive(int(path.name))]
    child.close()


def test_short_runs_are_taken_ahead_and_long_ones_not() -> None:
    """What waits is about AHEAD seconds of work, never more than a batch."""
    pace = RunTimeAverage()
    assert pace.ahead(2, 500) == 0
    pace.note(AHEAD / 10)
    assert pace.ahead(2, 500) == 20
    pace.seconds = 1e-7
    assert pace.ahead(2, 500) == 500
    pace.seconds = AHEAD * 1.01
    assert pace.ahead(1000, 500) == 0


@pytest.mark.parametrize(
    ("status", "words"),
    [(-11, "SIGSEGV"), (-signal.SIGRTMIN - 5, "signal 39"), (3, "exit status 3"), (0, "exit status 0")],
)
def test_a_death_is_told_in_a_sentence(status: int, words: str) -> None:
    """With the signal's name or the exit status."""
    sentence = death_sentence(status)
    assert words in sentence
    assert sentence.endswith(".")
