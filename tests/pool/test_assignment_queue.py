"""The queue of assignments: each is taken by the worker or taken back by the pool."""

from __future__ import annotations

import os

from workerd.job import Claim
from workerd.pool.assignment_queue import MAX_MESSAGE_BYTES, AssignmentQueue
from workerd.pool.worker_messages import Assignment


def assignment(serial: int, size: int = 0) -> Assignment:
    claim = Claim(id=bytes(16), attempt=1, claimed_at=0, mono=0, handler="h", vars=b"x" * size, run_at=0)
    return Assignment(serial, claim, 0.0, 0)


def test_each_assignment_is_taken_by_one_side() -> None:
    """By the worker or by the pool; the queue is empty afterwards."""
    lane = AssignmentQueue()
    for serial in range(1, 9):
        assert lane.put(assignment(serial))
    taken = os.read(lane.fileno(), MAX_MESSAGE_BYTES)
    assert int.from_bytes(taken[:8], "big") == 1
    assert lane.take_all() == set(range(2, 9))
    assert lane.take_all() == set()
    lane.close_writing_end()
    assert os.read(lane.fileno(), MAX_MESSAGE_BYTES) == b""
    lane.close()


def test_an_assignment_that_is_too_long_is_queued_as_a_marker() -> None:
    """The channel carries it; the pool can take the marker back."""
    lane = AssignmentQueue()
    long = assignment(7, MAX_MESSAGE_BYTES)
    assert not lane.put(long)
    assert lane.put_marker(long)
    assert lane.take_all() == {7}
    lane.close()


def test_a_full_queue_refuses() -> None:
    """A full queue does not block and keeps its assignments."""
    lane = AssignmentQueue()
    put = 0
    while lane.put(assignment(put, MAX_MESSAGE_BYTES // 2)):
        put += 1
    assert lane.take_all() == set(range(put))
    lane.close()
