"""The pools and roles connected to the ingester, and what each has sent."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from workerd import log
from workerd.messages import Ack, Barrier, Hello, Message, Outcomes, PayloadLimits, Progress, Seen, ToIngester
from workerd.runtime.channel import Channel
from workerd.runtime.loop import Loop
from workerd.runtime.sockets import listen

_log = log.get_logger("ingester")

UNREAD_LIMIT = 1024 * 1024
"""Bytes of acknowledgements that a peer may leave unread before its connection is given up."""


class Connection:
    """One connection of a pool or of the dispatcher."""

    def __init__(self, peers: Connections, loop: Loop, sock: socket.socket) -> None:
        self._peers = peers
        self._expected: int | None = None
        self.hello: Hello | None = None
        self.channel: Channel[ToIngester] = Channel(loop, sock, ToIngester, self._received, self._closed)

    @property
    def life(self) -> int | None:
        """The life of the process at the other end, None while it has not said it."""
        return self.hello.life if self.hello is not None else None

    def send(self, message: Message) -> None:
        """Send, unless it reads nothing: then it must begin anew and is told again what it has to know."""
        if self.channel.unsent > UNREAD_LIMIT:
            self.drop("it does not read its acknowledgements")
        else:
            self.channel.send(message)

    def durable(self, below: int) -> None:
        """Every outcome of this connection numbered below `below` is durable."""
        self.send(Ack(below=below))

    def drop(self, why: str) -> None:
        """Close a connection whose other end does not keep to the protocol; it will connect again."""
        _log.warning("closed a connection", peer=self.hello.name if self.hello else "unknown", error=why)
        self.channel.close()
        self._closed()

    def _closed(self) -> None:
        self._peers.gone(self)

    def _received(self, message: ToIngester) -> None:
        match message:
            case Outcomes():
                if self._expected is not None and message.first != self._expected:
                    # Acknowledging what comes now would acknowledge what is missing.
                    self.drop(f"outcome {self._expected} was expected and {message.first} came")
                    return
                self._expected = message.first + len(message.outcomes)
                self._peers.on_outcomes(self, message)
            case Hello():
                self.hello = message
                self._peers.on_hello(self)
            case Progress():
                self._peers.on_progress(message)
            case Seen():
                self._peers.on_seen(message)
            case Barrier():
                self._peers.on_barrier(self, message)


class Connections:
    """All connections, and the socket at which they arrive. The owner sets the `on_…` functions."""

    on_outcomes: Callable[[Connection, Outcomes], None]
    on_progress: Callable[[Progress], None]
    on_seen: Callable[[Seen], None]
    on_barrier: Callable[[Connection, Barrier], None]

    def __init__(self, loop: Loop, path: Path) -> None:
        self._loop = loop
        self._peers: dict[Connection, None] = {}
        self._dead: frozenset[int] = frozenset()
        self._paused = False
        self._limits = PayloadLimits(max_payload=0)
        self._socket = listen(path)
        loop.on_readable(self._socket.fileno(), self.accept, rank=0)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._peers))

    def __len__(self) -> int:
        return len(self._peers)

    # -- coming and going

    def accept(self) -> None:
        """Take every connection that is waiting."""
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                return
            peer = Connection(self, self._loop, sock)
            self._peers[peer] = None
            if self._paused:
                peer.channel.pause()

    def gone(self, peer: Connection) -> None:
        self._peers.pop(peer, None)

    def on_hello(self, peer: Connection) -> None:
        if self._limits.max_payload:
            peer.send(self._limits)
        if peer.life in self._dead:
            # What it had still written is read to the end, in this turn.
            self._loop.at_end_of_turn(lambda: self._finish(peer))

    def bury(self, lives: Iterable[int]) -> None:
        """These processes are dead: read what they had written to the end, then close (law 3)."""
        self._dead = frozenset(lives)
        for peer in self:
            if peer.life in self._dead:
                self._finish(peer)

    def read_out(self, lives: Iterable[int]) -> None:
        """As `bury`, for what has not even been accepted or has not said who it is."""
        self.accept()
        for peer in self:
            if peer.hello is None:
                # A dead process wrote its Hello before it died, so it is there to be read now.
                peer.channel.drain()
        self.bury(self._dead | frozenset(lives))

    def _finish(self, peer: Connection) -> None:
        peer.channel.drain()
        peer.channel.close()
        self.gone(peer)

    # -- all at once

    def announce(self, max_payload: int) -> None:
        """Tell everybody how large a payload may be, if that has changed."""
        limits = PayloadLimits(max_payload=max_payload)
        if limits != self._limits:
            self._limits = limits
            for peer in self:
                if peer.hello is not None:
                    peer.send(limits)

    def pause(self, paused: bool) -> None:
        """Stop or go on reading from everybody."""
        if paused == self._paused:
            return
        self._paused = paused
        for peer in self:
            if paused:
                peer.channel.pause()
            else:
                peer.channel.resume()

    def drain(self) -> None:
        """Read what everybody has written so far."""
        self.accept()
        for peer in self:
            peer.channel.drain()

    def close(self) -> None:
        """Say what there is to say, and close everything."""
        for peer in self:
            with contextlib.suppress(OSError):
                peer.channel.flush()
            peer.channel.close()
        self._loop.forget(self._socket.fileno())
        self._socket.close()
