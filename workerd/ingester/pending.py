"""Outcomes received and not durable yet: in order, bounded, and whom to acknowledge."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from workerd.outcome import Outcome

ROW_BYTES = 400
"""Bytes of SQL that an outcome without payload and text needs, in all statements of its closing."""
USUAL_PACKET_BYTES = 16 * 1024 * 1024
"""`max_allowed_packet` of most servers, until ours is known."""


def weight(outcome: Outcome) -> int:
    """Bytes of SQL that this outcome needs at most: an escape may double every byte."""
    total = ROW_BYTES
    if outcome.payload is not None:
        total += 2 * len(outcome.payload)
    if outcome.extras is not None:
        total += 2 * len(outcome.extras)
    if outcome.spawn is not None:
        total += 2 * len(outcome.spawn)
    if outcome.error is not None:
        total += _text(outcome.error) * (1 if outcome.fingerprint is None else 2)  # its error group's, too
    if outcome.stack is not None:
        total += _text(outcome.stack)
    if outcome.log is not None:
        total += _text(outcome.log)
    if outcome.note is not None:
        total += _text(outcome.note)
    if outcome.state is not None:
        total += 2 * len(outcome.state)
    if outcome.trace is not None:
        total += len(outcome.trace.spans or b"")
    return total


def _text(text: str) -> int:
    return len(text) * (2 if text.isascii() else 4)


class BatchLimit:
    """One batch being filled: at most `rows` outcomes, `weight` bytes, and one outcome of a job.

    The same job twice (sent again after a reconnect, or lost and then found) is decided by order, and
    within one statement there is none.
    """

    def __init__(self, rows: int, weight: int) -> None:
        self._rows = rows
        self._weight = weight
        self._jobs: set[bytes] = set()

    def takes(self, outcome: Outcome, weight: int) -> bool:
        """Count it in; false if the batch must go without it. The first is always taken."""
        jobs = self._jobs
        if jobs and (len(jobs) >= self._rows or self._weight < weight or outcome.id in jobs):
            return False
        jobs.add(outcome.id)
        self._weight -= weight
        return True


MAX_ROWS = 20_000
MAX_WEIGHT = 64 * 1024 * 1024
"""Above so many outcomes, or bytes of them, nothing is read from any socket (law 7: back-pressure)."""


class Sender(Protocol):
    """Where outcomes came from."""

    def durable(self, below: int) -> None:
        """Every outcome numbered below `below` is durable."""


class _Frame:
    """The outcomes of one message, numbered from `first`; those before index `at` are durable."""

    __slots__ = ("at", "first", "outcomes", "sender", "weights")

    def __init__(self, sender: Sender, first: int, outcomes: list[Outcome]) -> None:
        self.sender = sender
        self.first = first
        self.outcomes = outcomes
        self.weights = [weight(outcome) for outcome in outcomes]
        self.at = 0


class PendingOutcomes:
    """Received outcomes, oldest first. `received`: how many there were in all."""

    def __init__(self) -> None:
        self._frames: deque[_Frame] = deque()
        self.rows = 0
        self.weight = 0
        self.received = 0

    @property
    def full(self) -> bool:
        return self.rows >= MAX_ROWS or self.weight >= MAX_WEIGHT

    @property
    def roomy(self) -> bool:
        """Whether reading may go on; well below `full`, so that sockets are not switched at every turn."""
        return self.rows < MAX_ROWS // 2 and self.weight < MAX_WEIGHT // 2

    def add(self, sender: Sender, first: int, outcomes: list[Outcome]) -> None:
        """Append the outcomes of one message."""
        if not outcomes:
            return
        frame = _Frame(sender, first, outcomes)
        self._frames.append(frame)
        self.rows += len(outcomes)
        self.received += len(outcomes)
        self.weight += sum(frame.weights)

    def peek(self, rows: int, max_weight: int) -> list[Outcome]:
        """The oldest outcomes, at most `rows`, weighing at most `max_weight`, one of each job."""
        limit = BatchLimit(rows, max_weight)
        takes = limit.takes
        batch: list[Outcome] = []
        for frame in self._frames:
            outcomes, weights = frame.outcomes, frame.weights
            for at in range(frame.at, len(outcomes)):
                if not takes(outcomes[at], weights[at]):
                    return batch
                batch.append(outcomes[at])
        return batch

    def acknowledge(self, count: int) -> None:
        """The oldest `count` are durable: acknowledge them to their senders and forget them (law 6)."""
        senders: dict[Sender, int] = {}
        left = count
        while left:
            frame = self._frames[0]
            step = min(left, len(frame.outcomes) - frame.at)
            self.weight -= sum(frame.weights[frame.at : frame.at + step])
            frame.at += step
            left -= step
            senders[frame.sender] = frame.first + frame.at
            if frame.at == len(frame.outcomes):
                self._frames.popleft()
        self.rows -= count
        for sender, below in senders.items():
            sender.durable(below)
