"""What was received and is not durable yet: in order, bounded, and whom to acknowledge when it is."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from workerd.ingester.batch import Measure, weight
from workerd.outcome import Outcome

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


class Backlog:
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
