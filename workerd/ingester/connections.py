"""The pools and the dispatcher connected to the ingester, and what each has sent."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from workerd.messages import (
    Ack,
    AnnounceAgain,
    Barrier,
    Outcomes,
    PayloadLimits,
    Progress,
    Roster,
    Seen,
    StateSaved,
    Throughput,
    ToIngester,
    Traced,
)
from workerd.runtime.loop import Loop
from workerd.runtime.peer_server import Peer, PeerServer

DISPATCHER = "dispatcher"
"""The name in its Hello; a pool of this name ignores what it is sent."""


class Connection(Peer):
    """One connection of a pool or of the dispatcher; `seen`: the handlers that it has loaded, by name."""

    MAX_UNREAD_BYTES = 1024 * 1024

    def __init__(self, server: PeerServer[Any], sock: socket.socket) -> None:
        super().__init__(server, sock)
        self._expected: int | None = None
        self.seen: dict[str, Seen] = {}

    def durable(self, below: int) -> None:
        """Acknowledge every outcome of this connection numbered below `below`."""
        self.send(Ack(below=below))

    def in_sequence(self, message: Outcomes) -> bool:
        """Whether the numbers go on where they ended; if not, the connection is dropped.

        Acknowledging what follows a gap would acknowledge what is missing.
        """
        if self._expected is not None and message.first != self._expected:
            self.drop(f"expected outcome {self._expected}, got {message.first}")
            return False
        self._expected = message.first + len(message.outcomes)
        return True


class Connections:
    """All connections, and the lives of dead processes among them. The owner sets the `on_…` functions."""

    on_outcomes: Callable[[Connection, Outcomes], None]
    on_progress: Callable[[Progress], None]
    on_traced: Callable[[Traced], None]
    on_state_saved: Callable[[Connection, StateSaved], None]
    on_seen: Callable[[Connection, Seen], None]
    on_announce_again: Callable[[AnnounceAgain], None]
    on_barrier: Callable[[Connection, Barrier], None]

    def __init__(self, loop: Loop, path: Path) -> None:
        self._loop = loop
        self._dead: frozenset[int] = frozenset()
        self._limits = PayloadLimits(max_payload=0)
        self._server: PeerServer[Connection] = PeerServer(
            loop, path, process="ingester", incoming=ToIngester, peer_class=Connection, owner=self
        )

    def __len__(self) -> int:
        return len(self._server)

    # -- from the server of peers

    def on_peer_up(self, peer: Connection) -> None:
        """A pool or the dispatcher connected."""
        if self._limits.max_payload:
            peer.send(self._limits)
        if peer.life in self._dead:
            # What it had still written is read to the end, in this turn.
            self._loop.at_end_of_turn(lambda: _finish(peer))

    def on_peer_down(self, peer: Connection) -> None:
        """A connection ended; what it sent is recorded all the same."""

    def on_peer_message(self, peer: Connection, message: Any) -> None:
        """A connected peer sent something."""
        match message:
            case Outcomes():
                if peer.in_sequence(message):
                    self.on_outcomes(peer, message)
            case Progress():
                self.on_progress(message)
            case Traced():
                self.on_traced(message)
            case StateSaved():
                self.on_state_saved(peer, message)
            case Seen():
                peer.seen[message.handler] = message
                self.on_seen(peer, message)
            case AnnounceAgain():
                self.on_announce_again(message)
            case Barrier():
                self.on_barrier(peer, message)

    def seen(self) -> dict[str, Seen]:
        """The handlers that connected pools have loaded, by name."""
        return {name: seen for peer in self._server for name, seen in peer.seen.items()}

    # -- the dead

    def on_roster(self, roster: Roster) -> None:
        """Processes were started or died."""
        self._server.on_roster(roster.pids)
        self._close_dead(pool.life for pool in roster.dead)

    def _close_dead(self, lives: Iterable[int]) -> None:
        """These processes are dead: read what they had written to the end, then close (law 3)."""
        self._dead = frozenset(lives)
        for peer in self._server:
            if peer.life in self._dead:
                _finish(peer)

    def drain_dead(self, lives: Mapping[int, int]) -> None:
        """Read what these have written, also on connections not accepted yet or whose Hello is not read.

        `lives`: life -> process, of dead ones.
        """
        self._server.learn(lives)
        self._server.accept()
        for peer in self._server:
            if not peer.introduced:
                # A dead process wrote its Hello before it died, so it is there to be read now.
                peer.channel.drain()
        self._close_dead(self._dead | lives.keys())

    # -- all at once

    def announce(self, max_payload: int) -> None:
        """Send the limit of a payload to every peer, if it has changed."""
        limits = PayloadLimits(max_payload=max_payload)
        if limits != self._limits:
            self._limits = limits
            self._server.broadcast(limits)

    def tell_dispatcher(self, throughput: Throughput) -> None:
        """Send what was recorded recently to the dispatcher, which publishes it."""
        for peer in self._server:
            if peer.name == DISPATCHER:
                peer.send(throughput)

    def pause(self, paused: bool) -> None:
        """Stop or resume reading from every peer (law 7)."""
        self._server.pause(paused)

    def drain(self) -> None:
        """Read what every peer has written so far."""
        self._server.accept()
        for peer in self._server:
            peer.channel.drain()

    def close(self) -> None:
        """Flush and close everything."""
        self._server.close()


def _finish(peer: Connection) -> None:
    peer.channel.drain()
    peer.close()
