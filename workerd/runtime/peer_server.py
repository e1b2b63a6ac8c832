"""A listening socket whose peers introduce themselves with Hello and are known by their life.

Any process of the daemon's user can connect, handlers too. So a life is believed only of the process that
the supervisor forked for it: the kernel tells the pid of a peer (SO_PEERCRED), the Roster that of a life.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from workerd import log
from workerd.messages import Hello, Message
from workerd.runtime.channel import Channel
from workerd.runtime.loop import Loop
from workerd.runtime.sockets import listen, rest_if_exhausted

NAMING_TIMEOUT_S = 10.0
"""How long a life may be unknown: a pool may connect before the Roster that names it is read."""
MAX_EARLY_MESSAGES = 10_000
"""Of a peer whose life is not known yet; one that died at once has written less than its socket holds."""
_CREDENTIALS = struct.Struct("3i")


class Peer:
    """One accepted connection; `name` and `life` (as in Roster) are unknown until it sent Hello.

    `introduced`: it is the process of that life; its messages are delivered from then on. `pid`: of the
    process that connected.
    """

    MAX_UNREAD_BYTES: ClassVar[int | None] = None
    """What it may leave unread before `send` drops it; None where its own requests bound what it is sent."""

    def __init__(self, server: PeerServer[Any], sock: socket.socket) -> None:
        self.name = "unknown"
        self.life = 0
        self.pid = _peer_pid(sock)
        self.introduced = False
        self._early: list[Message] = []
        self._server = server
        self.channel: Channel[Any] = Channel(
            server.loop, sock, server.incoming, self._on_message, self._on_close
        )

    def send(self, message: Message) -> None:
        """Queue a message; nothing happens when the peer has gone."""
        if self.MAX_UNREAD_BYTES is not None and self.channel.unsent > self.MAX_UNREAD_BYTES:
            self.drop("does not read what it is sent")
        else:
            self.channel.send(message)

    def drop(self, error: str) -> None:
        """Close the connection of a peer that breaks the protocol; it will connect again."""
        self._server.log.warning("peer.dropped", peer=self.name, error=error)
        self.close()

    def close(self) -> None:
        """Close the connection and forget the peer."""
        if not self.channel.closed:
            self.channel.close()
            self._on_close()

    def _on_close(self) -> None:
        if self.channel.error:
            self._server.log.warning("peer.dropped", peer=self.name, error=self.channel.error)
        self._server.forget(self)

    def _on_message(self, message: Message) -> None:
        if self.introduced and not isinstance(message, Hello):
            self._server.owner.on_peer_message(self, message)
        elif isinstance(message, Hello) != (self.life == 0) or len(self._early) >= MAX_EARLY_MESSAGES:
            self.drop("Hello must be the first message and the only one")
        elif isinstance(message, Hello):
            self.name, self.life = message.name, message.life
            self.check()
        else:
            self._early.append(message)

    @property
    def is_waiting(self) -> bool:
        """Whether it sent Hello and its life is not known yet."""
        return self.life != 0 and not self.introduced

    def check(self) -> None:
        """Introduce it if it is the process of its life, refuse it if it is another one, else wait."""
        pid = self._server.pid_of(self.life)
        if pid is None:
            self.channel.pause()
            self._server.loop.call_later(NAMING_TIMEOUT_S, self._refuse_unnamed)
        elif pid != self.pid:
            self.refuse(f"this life is process {pid}")
        else:
            self._introduce()

    def _introduce(self) -> None:
        self.introduced = True
        self._server.introduce(self)
        early, self._early = self._early, []
        for message in early:
            if not self.channel.closed:
                self._on_message(message)

    def _refuse_unnamed(self) -> None:
        if not self.introduced and not self.channel.closed:
            self.refuse("the supervisor has started no such process")

    def refuse(self, error: str) -> None:
        """Close the connection of a process that says it is another one."""
        self._server.log.warning("peer.refused", peer=self.name, life=self.life, pid=self.pid, error=error)
        self.close()


PeerT = TypeVar("PeerT", bound=Peer)
PeerT_contra = TypeVar("PeerT_contra", bound=Peer, contravariant=True)


class PeerOwner(Protocol[PeerT_contra]):
    """What a server of peers reports to."""

    def on_peer_up(self, peer: PeerT_contra) -> None:
        """The peer sent Hello."""

    def on_peer_down(self, peer: PeerT_contra) -> None:
        """The connection of a peer that had sent Hello is closed."""

    def on_peer_message(self, peer: PeerT_contra, message: Any) -> None:
        """The peer sent anything else."""


class PeerServer(Generic[PeerT]):
    """Accepts peers of one class at `path`. `peers`: life -> the peer, once it is introduced.

    `process`: the role that serves, for the log. `incoming`: the union of messages that peers send.
    """

    def __init__(
        self,
        loop: Loop,
        path: Path,
        *,
        process: str,
        incoming: Any,
        peer_class: type[PeerT],
        owner: PeerOwner[PeerT],
    ) -> None:
        self.loop = loop
        self.log = log.get_logger(process)
        self.incoming = incoming
        self.owner: PeerOwner[Any] = owner
        self.peers: dict[int, PeerT] = {}
        self._peer_class = peer_class
        self._connected: dict[PeerT, None] = {}
        self._pids: dict[int, int] = {}
        self._paused = False
        self._socket = listen(path)
        self._listen()

    def __iter__(self) -> Iterator[PeerT]:
        """Every connection, also those without a Hello; it may be closed on the way."""
        return iter(list(self._connected))

    def __len__(self) -> int:
        return len(self._connected)

    def broadcast(self, message: Message) -> None:
        """Send a message to every peer that sent Hello."""
        for peer in list(self.peers.values()):
            peer.send(message)

    def pause(self, paused: bool) -> None:
        """Stop or resume reading from every peer, also from those accepted meanwhile (law 7)."""
        if paused == self._paused:
            return
        self._paused = paused
        for peer in self:
            if paused:
                peer.channel.pause()
            elif not peer.is_waiting:
                peer.channel.resume()

    def close(self) -> None:
        """Flush and close every connection, and stop listening."""
        for peer in self:
            peer.channel.flush()
            peer.channel.close()
        self.loop.forget(self._socket.fileno())
        self._socket.close()

    # -- who is who

    def on_roster(self, pids: Mapping[int, int]) -> None:
        """Life -> process, of all that may connect."""
        self._pids = dict(pids)
        self._check_waiting()

    def learn(self, pids: Mapping[int, int]) -> None:
        """The same of some, until the next Roster."""
        self._pids.update(pids)
        self._check_waiting()

    def pid_of(self, life: int) -> int | None:
        """The process of this life, None if it is not known."""
        return self._pids.get(life)

    def _check_waiting(self) -> None:
        for peer in self:
            if peer.is_waiting and peer.life in self._pids:
                if not self._paused:
                    peer.channel.resume()
                peer.check()

    # -- connections

    def _listen(self) -> None:
        # After the channels (rank 1): the end of a peer's old connection is read before its new one.
        if self._socket.fileno() >= 0:
            self.loop.on_readable(self._socket.fileno(), self.accept, rank=2)

    def accept(self) -> None:
        """Accept every connection that is waiting."""
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError as error:
                rest_if_exhausted(self.loop, self._socket, error, self._listen)
                return
            peer = self._peer_class(self, sock)
            self._connected[peer] = None
            if self._paused:
                peer.channel.pause()

    def introduce(self, peer: PeerT) -> None:
        """Index a peer; an older connection of the same life is closed."""
        old = self.peers.get(peer.life)
        if old is not None:
            old.close()
        self.peers[peer.life] = peer
        self.owner.on_peer_up(peer)

    def forget(self, peer: PeerT) -> None:
        """Take out a peer whose connection is closed."""
        self._connected.pop(peer, None)
        if self.peers.get(peer.life) is peer:
            del self.peers[peer.life]
            self.owner.on_peer_down(peer)


def _peer_pid(sock: socket.socket) -> int:
    """The process that connected; 0 where it is in another PID namespace or cannot be known."""
    try:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except OSError:
        return 0
    pid: int = _CREDENTIALS.unpack(credentials)[0]
    return pid
