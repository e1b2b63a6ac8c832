"""An attempt that a worker was given: its deadline, and its result if the worker died."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from workerd.config.handler_config import Policy
from workerd.job import Claim, new_id
from workerd.pool.attempt import AssignedAttempt, death_error, handler_frames


@pytest.mark.parametrize(("own", "seconds"), [(None, 3.0), (250, 0.25), (0, 0.0)])
def test_the_deadline_given_at_enqueue_overrides_the_policy(own: int | None, seconds: float) -> None:
    """In milliseconds; 0 removes the handler's deadline."""
    claim = Claim(
        id=new_id(), attempt=1, claimed_at=0, mono=0, handler="h", vars=b"{}", run_at=0, deadline_ms=own
    )
    assert AssignedAttempt(1, claim, Policy(deadline=3.0), 0).deadline == seconds


def test_a_stack_dump_is_stored_without_the_pools_frames() -> None:
    """Every thread of the handler is kept."""
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


@pytest.mark.parametrize(
    ("status", "words"),
    [(-11, "SIGSEGV"), (-signal.SIGRTMIN - 5, "signal 39"), (3, "exit status 3"), (0, "exit status 0")],
)
def test_a_death_error_names_signal_or_exit_status(status: int, words: str) -> None:
    """In one sentence."""
    sentence = death_error(status)
    assert words in sentence
    assert sentence.endswith(".")
