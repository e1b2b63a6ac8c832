"""The result of an attempt whose worker died."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from workerd.pool.attempt import death_error, handler_frames


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
