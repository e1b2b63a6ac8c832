"""How many claims a pool takes ahead of its idle workers."""

from __future__ import annotations

from workerd.pool.capacity import BUFFER_S, MAX_BUFFER_S, ClaimTimeAverage, RunTimeAverage


def test_only_short_runs_are_buffered() -> None:
    """About BUFFER_S seconds of work, at most a batch."""
    pace = RunTimeAverage()
    assert pace.runs_within(BUFFER_S, 2, 500) == 0
    pace.add(BUFFER_S / 10)
    assert pace.runs_within(BUFFER_S, 2, 500) == 20
    pace.seconds = 1e-7
    assert pace.runs_within(BUFFER_S, 2, 500) == 500
    pace.seconds = BUFFER_S * 1.01
    assert pace.runs_within(BUFFER_S, 1000, 500) == 0


def test_the_buffer_grows_with_the_time_of_a_claim() -> None:
    """Where the store is slow, workers would wait for each claim; within bounds."""
    claims = ClaimTimeAverage()
    assert claims.buffer_s == BUFFER_S
    for _ in range(50):
        claims.add(0.02)
    assert BUFFER_S < claims.buffer_s < 0.07
    for _ in range(50):
        claims.add(10.0)
    assert claims.buffer_s == MAX_BUFFER_S
