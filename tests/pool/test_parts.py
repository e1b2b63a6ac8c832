"""Parts of the pool, each alone: states, stack dumps, shared flags, run times."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from workerd.pool.attempt import death_error, handler_frames
from workerd.pool.capacity import BUFFER_S, RunTimeAverage
from workerd.pool.shared import SharedFlags
from workerd.pool.worker_process import BUSY, TRANSITIONS, WorkerState
from workerd.runtime.child import fork

# -- states


def test_every_state_is_reached_and_only_death_is_final() -> None:
    """The table is complete: no state without a way in, none but one without a way out."""
    reached, frontier = {WorkerState.STARTING}, [WorkerState.STARTING]
    while frontier:
        new = TRANSITIONS[frontier.pop()] - reached
        reached |= new
        frontier += new
    assert reached == set(WorkerState) == set(TRANSITIONS)
    assert [state for state in WorkerState if not TRANSITIONS[state]] == [WorkerState.DEAD]
    assert all(WorkerState.KILLING in TRANSITIONS[state] for state in BUSY)


# -- dump and shared flags


def test_a_dump_is_shown_without_the_pools_own_frames() -> None:
    """Every thread of the handler's is kept."""
    ours = Path(handler_frames.__code__.co_filename).parent
    dump = (
        'Thread 0x01 (most recent call first):\n  File "/app/h.py", line 1 in wait\n\n'
        'Current thread 0x02 (most recent call first):\n  File "/app/h.py", line 2 in run\n'
        f'  File "{ours}/executor.py", line 3 in _call\n  File "/usr/lib/x.py", line 4 in y\n'
    )
    assert handler_frames(dump).splitlines() == [
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
    page.request_cancel()
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


# -- run times and deaths


def test_short_runs_are_taken_ahead_and_long_ones_not() -> None:
    """What waits is about BUFFER_S seconds of work, never more than a batch."""
    pace = RunTimeAverage()
    assert pace.runs_within(BUFFER_S, 2, 500) == 0
    pace.add(BUFFER_S / 10)
    assert pace.runs_within(BUFFER_S, 2, 500) == 20
    pace.seconds = 1e-7
    assert pace.runs_within(BUFFER_S, 2, 500) == 500
    pace.seconds = BUFFER_S * 1.01
    assert pace.runs_within(BUFFER_S, 1000, 500) == 0


@pytest.mark.parametrize(
    ("status", "words"),
    [(-11, "SIGSEGV"), (-signal.SIGRTMIN - 5, "signal 39"), (3, "exit status 3"), (0, "exit status 0")],
)
def test_a_death_is_told_in_a_sentence(status: int, words: str) -> None:
    """With the signal's name or the exit status."""
    sentence = death_error(status)
    assert words in sentence
    assert sentence.endswith(".")
