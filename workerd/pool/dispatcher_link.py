"""The connection to the dispatcher: demand out, claims and requests in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from workerd.messages import Claims, Demand, FromDispatcher, Hello, Message
from workerd.pool.capacity import Capacity
from workerd.runtime.channel import Channel
from workerd.runtime.loop import Loop
from workerd.runtime.sockets import ReconnectingClient


class DispatcherLink:
    """Sends Demand: how many claims, in all, the dispatcher may send on this connection.

    When it breaks the pool keeps its claims: they belong to the node, not to the dispatcher.

    A Demand leaves when a worker would go idle or half of the capacity is free, not for every job, and at
    once when the capacity shrinks. `low`: with at most so many claims waiting, `report` may ask for more.
    `on_connected`: the capacity must be reported again.
    """

    def __init__(
        self,
        loop: Loop,
        path: Path,
        hello: Hello,
        handlers: tuple[str, ...],
        on_message: Callable[[FromDispatcher], None],
        on_connected: Callable[[], None],
    ) -> None:
        self.low = 0
        self._hello = hello
        self._handlers = handlers
        self._on_message = on_message
        self._on_connected = on_connected
        self._received = 0
        self._granted = 0  # claims in all that the last Demand allows on this connection
        self._demanding = False
        self._link = ReconnectingClient(loop, path, FromDispatcher, self._receive, self._connect)

    def start(self) -> None:
        """Connect as soon as the dispatcher listens."""
        self._link.start()

    def stop(self) -> None:
        """Close the connection."""
        self._link.stop()

    @property
    def connected(self) -> bool:
        return self._link.channel is not None

    def send(self, message: Message) -> None:
        """Send a message; without a connection it is dropped."""
        if self._link.channel is not None:
            self._link.channel.send(message)

    def report(self, capacity: Capacity | None, waiting: int) -> None:
        """Ask for more claims, or for fewer, where that is worth a message.

        `capacity`: None takes nothing. `waiting`: claims that no worker has yet.
        """
        channel = self._link.channel
        if channel is None:
            return
        if capacity is None:
            if self._demanding:
                self._demand(channel, 0, ())
            return
        total = capacity.idle + capacity.buffer
        self.low = total // 2
        free = max(0, total - waiting)
        outstanding = self._granted - self._received if self._demanding else 0
        if free > outstanding:
            if outstanding + waiting < capacity.idle or (free - outstanding) * 2 >= total:
                self._demand(channel, free, self._handlers)
        elif outstanding - free > capacity.buffer // 2:
            self._demand(channel, free, self._handlers)

    def _demand(self, channel: Channel[Any], room: int, handlers: tuple[str, ...]) -> None:
        self._granted = self._received + room
        self._demanding = bool(handlers)
        channel.send(Demand(self._received, room, handlers))

    def _connect(self, channel: Channel[Any]) -> None:
        self._received = self._granted = 0
        self._demanding = False
        channel.send(self._hello)
        self._on_connected()

    def _receive(self, message: FromDispatcher) -> None:
        if isinstance(message, Claims):
            self._received += len(message.claims)
        self._on_message(message)
