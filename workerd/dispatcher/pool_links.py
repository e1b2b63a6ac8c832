"""Connected pools and the capacity each reported."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from workerd.errors import FrameTooLarge
from workerd.job import Claim
from workerd.messages import (
    Claims,
    Demand,
    FromDispatcher,
    Hello,
    Holdings,
    LeaseState,
    Release,
    ToDispatcher,
)
from workerd.runtime.channel import Channel
from workerd.runtime.loop import Loop
from workerd.runtime.sockets import listen

FRAME = 8 << 20
"""Bytes of vars, params and the like after which another frame is begun."""
ACCEPT_PAUSE = 1.0
"""Seconds without accepting when the process has no descriptor left."""


class PoolLink:
    """One connection of a pool that has said who it is."""

    def __init__(self, channel: Channel[ToDispatcher], hello: Hello) -> None:
        self._channel = channel
        self.name = hello.name
        self.life = hello.life
        self.handlers: tuple[str, ...] = ()
        self.sent = 0
        self._demand = Demand(received=0, room=0, handlers=())
        self._turn = 0

    @property
    def room(self) -> int:
        """How many more claims it can take, those on the way to it counted."""
        return self._demand.room - (self.sent - self._demand.received)

    def demand(self, demand: Demand) -> None:
        """What it asks for from now on."""
        self._demand = demand
        self.handlers = demand.handlers

    def in_turn(self) -> list[str]:
        """Its handlers, each time beginning with another one, so that its room goes round them."""
        if len(self.handlers) < 2:
            return list(self.handlers)
        self._turn = (self._turn + 1) % len(self.handlers)
        return [*self.handlers[self._turn :], *self.handlers[: self._turn]]

    def send(self, message: FromDispatcher) -> None:
        """Queue a message; a pool that has gone gets none, and settlement finds what it held."""
        self._channel.send(message)

    def hand_over(self, claims: Sequence[Claim]) -> list[Claim]:
        """Send the claims; returns those that no frame can carry."""
        unsendable: list[Claim] = []
        for part in _parts(claims):
            try:
                self._channel.send(Claims(claims=part))
            except FrameTooLarge:
                unsendable += part
            else:
                self.sent += len(part)
        return unsendable

    def close(self) -> None:
        """End the connection."""
        self._channel.close()


def _parts(claims: Sequence[Claim]) -> list[list[Claim]]:
    parts: list[list[Claim]] = [[]]
    size = 0
    for claim in claims:
        weight = _weight(claim)
        if size and size + weight > FRAME:
            parts.append([])
            size = 0
        parts[-1].append(claim)
        size += weight
    return [part for part in parts if part]


def _weight(claim: Claim) -> int:
    weight = 400 + len(claim.vars)
    if claim.request_id is not None:
        weight += len(claim.params or b"") + len(claim.extras or b"")
        weight += sum(map(len, (claim.needs or {}).values()))
    return weight


class PoolWatcher(Protocol):
    """Who must know what the pools say."""

    def on_pool_up(self, link: PoolLink) -> None: ...

    def on_pool_down(self, link: PoolLink) -> None: ...

    def on_demand(self, link: PoolLink) -> None: ...

    def on_holdings(self, link: PoolLink, holdings: Holdings) -> None: ...


class Pools:
    """Accepts the pools' connections. `links`: life -> connection of each pool that said Hello."""

    def __init__(self, loop: Loop, path: Path, watcher: PoolWatcher) -> None:
        self._loop = loop
        self._watcher = watcher
        self.links: dict[int, PoolLink] = {}
        self._guests: set[_Guest] = set()
        self._listener = listen(path)
        self._listen()

    def _listen(self) -> None:
        self._loop.on_readable(self._listener.fileno(), self._accept, rank=2)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:  # out of descriptors; the backlog would wake us again at once
                self._loop.on_readable(self._listener.fileno(), None)
                self._loop.call_later(ACCEPT_PAUSE, self._listen)
                return
            self._guests.add(_Guest(self._loop, sock, self))

    def tell(self, message: Release | LeaseState | FromDispatcher) -> None:
        """Send a message to every connected pool."""
        for link in self.links.values():
            link.send(message)

    def arrived(self, link: PoolLink) -> None:
        """A connection has said who it is."""
        old = self.links.get(link.life)
        if old is not None:  # its end has not been read yet
            old.close()
            self.left(old)
        self.links[link.life] = link
        self._watcher.on_pool_up(link)

    def left(self, link: PoolLink) -> None:
        """A connection has ended."""
        if self.links.get(link.life) is link:
            del self.links[link.life]
            self._watcher.on_pool_down(link)

    def heard(self, link: PoolLink, message: Demand | Holdings) -> None:
        """A connected pool said something."""
        if self.links.get(link.life) is not link:
            return
        if isinstance(message, Demand):
            link.demand(message)
            self._watcher.on_demand(link)
        else:
            self._watcher.on_holdings(link, message)

    def forget(self, guest: _Guest) -> None:
        """A connection is closed for good."""
        self._guests.discard(guest)


class _Guest:
    """A connection from its acceptance to its end; it must begin with Hello."""

    def __init__(self, loop: Loop, sock: socket.socket, pools: Pools) -> None:
        self._pools = pools
        self._link: PoolLink | None = None
        self._channel: Channel[ToDispatcher] = Channel(loop, sock, ToDispatcher, self._heard, self._ended)

    def _heard(self, message: msgspec.Struct) -> None:
        match message:
            case Hello() if self._link is None:
                self._link = PoolLink(self._channel, message)
                self._pools.arrived(self._link)
            case Demand() | Holdings() if self._link is not None:
                self._pools.heard(self._link, message)
            case _:
                self._channel.close()
                self._ended()

    def _ended(self) -> None:
        self._pools.forget(self)
        if self._link is not None:
            self._pools.left(self._link)
