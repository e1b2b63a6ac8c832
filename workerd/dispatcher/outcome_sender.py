"""Outcomes on their way to the ingester, kept until they are durable (law 6)."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from workerd.messages import Ack, Barrier, BarrierDone, FromIngester, Hello, Outcomes, PayloadLimits
from workerd.outcome import Outcome
from workerd.runtime.channel import Channel
from workerd.runtime.loop import Loop
from workerd.runtime.sockets import Reconnecting

FRAME = 200
"""Outcomes in one frame."""


class Reports:
    """A client of the ingester that survives the ingester's restarts.

    Numbers go on over connections; what was not acknowledged is sent again on a new one, and so are
    barriers that were not answered.
    """

    def __init__(self, loop: Loop, path: Path, life: int) -> None:
        self._life = life
        self._next = 1
        self._unacknowledged: deque[tuple[int, Outcome]] = deque()
        self._tokens = itertools.count(1)
        self._barriers: dict[int, tuple[Barrier, Callable[[], None]]] = {}
        self._line = Reconnecting(loop, path, FromIngester, self._on_message, self._on_up, _nothing)

    def start(self) -> None:
        """Connect as soon as the ingester listens."""
        self._line.start()

    @property
    def unacknowledged(self) -> int:
        """How many outcomes are not known to be durable."""
        return len(self._unacknowledged)

    @property
    def linked(self) -> bool:
        """Whether the ingester is connected."""
        return self._line.channel is not None

    def send(self, outcomes: Sequence[Outcome]) -> None:
        """Have these recorded, sooner or later."""
        numbered = list(zip(itertools.count(self._next), outcomes, strict=False))
        self._next += len(numbered)
        self._unacknowledged.extend(numbered)
        if self._line.channel is not None:
            _transmit(self._line.channel, numbered)

    def barrier(self, lives: Sequence[int], done: Callable[[], None]) -> None:
        """Call `done` when all that was sent before, here and by the dead `lives`, is committed."""
        token = next(self._tokens)
        barrier = Barrier(token=token, lives=tuple(lives))
        self._barriers[token] = barrier, done
        if self._line.channel is not None:
            self._line.channel.send(barrier)

    def _on_up(self, channel: Channel[FromIngester]) -> None:
        channel.send(Hello(role="dispatcher", name="dispatcher", life=self._life))
        _transmit(channel, list(self._unacknowledged))
        for barrier, _ in self._barriers.values():
            channel.send(barrier)

    def _on_message(self, message: FromIngester) -> None:
        match message:
            case Ack(below=below):
                while self._unacknowledged and self._unacknowledged[0][0] < below:
                    self._unacknowledged.popleft()
            case BarrierDone(token=token):
                _, done = self._barriers.pop(token, (None, _nothing))
                done()
            case PayloadLimits():
                pass  # payloads are not made here


def _transmit(channel: Channel[FromIngester], numbered: list[tuple[int, Outcome]]) -> None:
    for start in range(0, len(numbered), FRAME):
        part = numbered[start : start + FRAME]
        channel.send(Outcomes(first=part[0][0], outcomes=[outcome for _, outcome in part]))


def _nothing() -> None:
    """Nothing to do: what was not acknowledged waits for the next connection."""
