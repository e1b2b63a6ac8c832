"""Outcomes received and not durable yet: in order, bounded, and whom to acknowledge."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from workerd.outcome import Outcome

ROW = 400
"""Bytes of SQL that an outcome without payload and text needs, in all statements of its closing."""
USUAL_PACKET = 16 * 1024 * 1024
"""`max_allowed_packet` as servers come, for as long as ours has not said it."""


def weight(outcome: Outcome) -> int:
    """Bytes of SQL that this outcome needs at most: an escape may double every byte."""
    total = ROW
    if outcome.payload is not None:
        total += 2 * len(outcome.payload)
    if outcome.extras is not None:
        total += 2 * len(outcome.extras)
    if outcome.spawn is not None:
        total += 2 * len(outcome.spawn)
    if outcome.error is not None:
        total += _text(outcome.error)
    if outcome.stack is not None:
        total += _text(outcome.stack)
    if outcome.note is not None:
        total += _text(outcome.note)
    return total


def _text(text: str) -> int:
    return len(text) * (2 if text.isascii() else 4)


class Measure:
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


ROWS = 20_000
WEIGHT = 64 * 1024 * 1024
"""Above so many outcomes, or bytes of them, nothing more is read from any socket (law 7)."""


class Sender(Protocol):
    """Where outcomes came from."""

    def durable(self, below: int) -> None:
        """Every outcome numbered below `below` is durable."""


class _Parcel:
    """The outcomes of one frame that are still waiting; `first` is the number of the first of them."""

    __slots__ = ("at", "first", "outcomes", "sender", "weights")

    def __init__(self, sender: Sender, first: int, outcomes: list[Outcome]) -> None:
        self.sender = sender
        self.first = first
        self.outcomes = outcomes
        self.weights = [weight(outcome) for outcome in outcomes]
        self.at = 0


class PendingOutcomes:
    """Received outcomes, oldest first. `received`: how many there ever were."""

    def __init__(self) -> None:
        self._parcels: deque[_Parcel] = deque()
        self.rows = 0
        self.weight = 0
        self.received = 0

    @property
    def full(self) -> bool:
        return self.rows >= ROWS or self.weight >= WEIGHT

    @property
    def roomy(self) -> bool:
        """Whether reading may go on; well below `full`, so that sockets are not switched at every turn."""
        return self.rows < ROWS // 2 and self.weight < WEIGHT // 2

    def add(self, sender: Sender, first: int, outcomes: list[Outcome]) -> None:
        """Take what came in one frame."""
        if not outcomes:
            return
        parcel = _Parcel(sender, first, outcomes)
        self._parcels.append(parcel)
        self.rows += len(outcomes)
        self.received += len(outcomes)
        self.weight += sum(parcel.weights)

    def peek(self, rows: int, most: int) -> list[Outcome]:
        """The oldest outcomes, at most `rows`, weighing at most `most`, one of each job."""
        measure = Measure(rows, most)
        takes = measure.takes
        batch: list[Outcome] = []
        for parcel in self._parcels:
            outcomes, weights = parcel.outcomes, parcel.weights
            for at in range(parcel.at, len(outcomes)):
                if not takes(outcomes[at], weights[at]):
                    return batch
                batch.append(outcomes[at])
        return batch

    def settle(self, count: int) -> None:
        """The oldest `count` are durable: acknowledge and forget them."""
        senders: dict[Sender, int] = {}
        left = count
        while left:
            parcel = self._parcels[0]
            step = min(left, len(parcel.outcomes) - parcel.at)
            self.weight -= sum(parcel.weights[parcel.at : parcel.at + step])
            parcel.at += step
            left -= step
            senders[parcel.sender] = parcel.first + parcel.at
            if parcel.at == len(parcel.outcomes):
                self._parcels.popleft()
        self.rows -= count
        for sender, below in senders.items():
            sender.durable(below)
