"""The link to the dispatcher: capacity reported, claims received, released ones sent back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workerd.job import AttemptRef, Claim
from workerd.messages import (
    Cancel,
    Claims,
    Demand,
    FromDispatcher,
    Hello,
    Holdings,
    Inventory,
    LeaseState,
    Release,
)
from workerd.runtime.channel import Channel
from workerd.runtime.loop import Loop
from workerd.runtime.sockets import ReconnectingClient

AHEAD = 0.025
"""Seconds of work that may wait in the pool's hand: it hides what a claim takes."""
_WEIGHT = 0.05
"""Of the newest run in the average."""


class RunTimeAverage:
    """How long a run takes, as the pool sees it: an average that forgets."""

    def __init__(self) -> None:
        self.seconds: float | None = None

    def note(self, seconds: float) -> None:
        """A run took so long."""
        before = self.seconds
        self.seconds = seconds if before is None else before + (seconds - before) * _WEIGHT

    def ahead(self, workers: int, limit: int) -> int:
        """Claims that make up AHEAD seconds of work for so many workers; none if one run takes longer."""
        if self.seconds is None or self.seconds > AHEAD:
            return 0
        return min(limit, int(workers * AHEAD / max(self.seconds, 1e-6)))


@dataclass(frozen=True)
class Capacity:
    """What the pool could take now: for idle workers, and ahead of them."""

    idle: int
    ahead: int

    @property
    def total(self) -> int:
        return self.idle + self.ahead


@dataclass(frozen=True)
class Desk:
    """What the intake asks of the pool, and tells it."""

    room: Callable[[], Capacity | None]  # None: take nothing at all
    claimed: Callable[[list[Claim]], None]
    cancel: Callable[[AttemptRef], None]
    give_back: Callable[[tuple[str, ...]], None]
    holdings: Callable[[], Iterable[AttemptRef]]
    lease: Callable[[bool], None]


class DispatcherLink:
    """The connection to the dispatcher, and the claims that no worker has yet.

    A Demand says what is wanted in all; it is sent when a worker would go idle or half of the room is
    free, not for every job, and at once when less is wanted.
    """

    def __init__(self, loop: Loop, path: Path, hello: Hello, handlers: tuple[str, ...], desk: Desk) -> None:
        self.waiting: deque[Claim] = deque()
        self._loop = loop
        self._hello = hello
        self._handlers = handlers
        self._desk = desk
        self._received = 0
        self._granted = 0  # by the last Demand: so many claims in all may be sent on this connection
        self._asked: tuple[str, ...] = ()
        self._due = False
        self.low = 0  # with no more waiting than this, it is time to consider
        self._link = ReconnectingClient(loop, path, FromDispatcher, self._on_message, self._on_up)

    def start(self) -> None:
        """Connect, now or when the dispatcher listens."""
        self._link.start()

    def stop(self) -> None:
        """Close the connection."""
        self._link.stop()

    @property
    def connected(self) -> bool:
        return self._link.channel is not None

    def remove(self, wanted: Callable[[Claim], bool]) -> list[Claim]:
        """Take out what waits and is wanted."""
        taken = [claim for claim in self.waiting if wanted(claim)]
        if taken:
            kept = [claim for claim in self.waiting if not wanted(claim)]
            self.waiting.clear()
            self.waiting.extend(kept)
        return taken

    # -- asking

    def consider(self) -> None:
        """Look at the end of this turn whether to ask for more, or for less."""
        if not self._due:
            self._due = True
            self._loop.at_end_of_turn(self._consider)

    def _consider(self) -> None:
        self._due = False
        channel = self._link.channel
        if channel is None:
            return
        room = self._desk.room()
        if room is None:
            if self._asked:
                self._ask(channel, 0, ())
            return
        self.low = room.total // 2
        free = max(0, room.total - len(self.waiting))
        under_way = self._granted - self._received if self._asked else 0
        if free > under_way:
            if under_way + len(self.waiting) < room.idle or (free - under_way) * 2 >= room.total:
                self._ask(channel, free, self._handlers)
        elif under_way - free > room.ahead // 2:
            self._ask(channel, free, self._handlers)

    def _ask(self, channel: Channel[Any], room: int, handlers: tuple[str, ...]) -> None:
        self._granted = self._received + room
        self._asked = handlers
        channel.send(Demand(self._received, room, handlers))

    # -- hearing

    def _on_up(self, channel: Channel[Any]) -> None:
        self._received = self._granted = 0
        self._asked = ()
        channel.send(self._hello)
        self.consider()

    def _on_message(self, message: FromDispatcher) -> None:
        match message:
            case Claims():
                self._received += len(message.claims)
                self._desk.claimed(message.claims)
                self.consider()
            case Cancel():
                self._desk.cancel(message.key)
            case Release():
                self._desk.give_back(message.handlers)
            case Inventory():
                if self._link.channel is not None:
                    self._link.channel.send(Holdings(message.token, list(self._desk.holdings())))
            case LeaseState():
                self._desk.lease(message.held)
