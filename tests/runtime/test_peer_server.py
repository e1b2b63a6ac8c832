"""The server of peers: Hello first, one connection a life, pauses, and peers that break the protocol."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.descriptors import spare_descriptors
from tests.support.fuzzing import fuzz_frame
from workerd.messages import Ack, Demand, FromIngester, Hello, Message, ToDispatcher
from workerd.runtime import peer_server, sockets
from workerd.runtime.channel import Channel
from workerd.runtime.loop import Loop
from workerd.runtime.peer_server import Peer, PeerServer
from workerd.runtime.sockets import connect

DEMAND = Demand(received=0, room=1, handlers=("h",))


class LimitedPeer(Peer):
    MAX_UNREAD_BYTES = 1000


class PeerServerHarness:
    """A server, its owner, and clients of it, all in one loop."""

    def __init__(self, folder: Path) -> None:
        self.loop = Loop()
        self.path = folder / "server.sock"
        self.events: list[tuple[str, int]] = []
        self.broken: list[int] = []
        self.received: list[Message] = []
        self.clients: list[Channel[Any]] = []
        self.server: PeerServer[LimitedPeer] = PeerServer(
            self.loop, self.path, process="test", incoming=ToDispatcher, peer_class=LimitedPeer, owner=self
        )
        self.server.on_roster(dict.fromkeys((7, 8), os.getpid()))

    def on_peer_up(self, peer: LimitedPeer) -> None:
        self.events.append(("up", peer.life))

    def on_peer_down(self, peer: LimitedPeer) -> None:
        self.events.append(("down", peer.life))

    def on_peer_message(self, peer: LimitedPeer, message: Any) -> None:
        self.events.append((type(message).__name__, peer.life))

    def connect(self, *messages: Message) -> int:
        """A client that has sent these; its number."""
        number = len(self.clients)
        channel: Channel[Any] = Channel(
            self.loop,
            connect(self.path),
            FromIngester,
            self.received.append,
            lambda: self.broken.append(number),
        )
        self.clients.append(channel)
        for message in messages:
            channel.send(message)
        return number

    def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(500):
            if condition():
                return
            self.loop.turn(0.01)
        raise AssertionError(f"it did not happen: {self.events}")

    def close(self) -> None:
        self.server.close()
        for client in self.clients:
            client.close()
        self.loop.close()


def hello(life: int) -> Hello:
    return Hello(role="pool", name=f"p{life}", life=life)


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[PeerServerHarness]:
    harness = PeerServerHarness(tmp_path)
    yield harness
    harness.close()


def test_a_peer_is_known_by_its_life_until_its_connection_ends(harness: PeerServerHarness) -> None:
    client = harness.connect(hello(7), DEMAND)
    harness.until(lambda: harness.events == [("up", 7), ("Demand", 7)])
    assert harness.server.peers[7].name == "p7"
    harness.clients[client].close()
    harness.until(lambda: harness.events[-1] == ("down", 7))
    assert not harness.server.peers
    assert len(harness.server) == 0


def test_a_new_connection_of_the_same_life_replaces_the_old_one(harness: PeerServerHarness) -> None:
    harness.connect(hello(7))
    harness.until(lambda: 7 in harness.server.peers)
    harness.connect(hello(7), DEMAND)
    harness.until(lambda: harness.broken == [0])
    assert harness.events == [("up", 7), ("down", 7), ("up", 7), ("Demand", 7)]
    assert len(harness.server) == 1


@pytest.mark.parametrize("messages", [(DEMAND,), (hello(7), hello(8))], ids=["none", "two"])
def test_a_peer_must_send_exactly_one_hello_first(
    harness: PeerServerHarness, messages: tuple[Message, ...]
) -> None:
    harness.connect(*messages)
    harness.until(lambda: harness.broken == [0])
    assert not harness.server.peers
    assert [event for event, _ in harness.events] in ([], ["up", "down"])


def test_a_broadcast_reaches_those_that_sent_hello(harness: PeerServerHarness) -> None:
    harness.connect(hello(7))
    harness.connect()
    harness.until(lambda: 7 in harness.server.peers and len(harness.server) == 2)
    harness.server.broadcast(Ack(below=3))
    harness.until(lambda: harness.received == [Ack(below=3)])


def test_a_pause_holds_for_connections_accepted_meanwhile(harness: PeerServerHarness) -> None:
    harness.connect(hello(7))
    harness.until(lambda: 7 in harness.server.peers)
    harness.server.pause(True)
    harness.clients[0].send(DEMAND)
    harness.connect(hello(8))
    harness.until(lambda: len(harness.server) == 2)
    for _ in range(5):
        harness.loop.turn(0)
    assert harness.events == [("up", 7)]
    harness.server.pause(False)
    harness.until(lambda: set(harness.events) == {("up", 7), ("Demand", 7), ("up", 8)})


def test_a_peer_that_reads_nothing_is_dropped(harness: PeerServerHarness) -> None:
    client = harness.connect(hello(7))
    harness.until(lambda: 7 in harness.server.peers)
    harness.clients[client].pause()
    for n in range(100_000):
        harness.server.broadcast(Ack(below=n))
        harness.loop.turn(0)
        if not harness.server.peers:
            break
    assert harness.events[-1] == ("down", 7)


def test_without_descriptors_it_accepts_again_after_a_pause(
    harness: PeerServerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile it sleeps: the waiting connection does not make the loop spin."""
    monkeypatch.setattr(sockets, "ACCEPT_PAUSE_S", 0.2)
    client = connect(harness.path)
    with spare_descriptors(0):
        harness.loop.turn(0.1)
        turns, end = harness.loop.turns, time.monotonic() + 0.1
        while time.monotonic() < end:
            harness.loop.turn(0.1)
        assert harness.loop.turns - turns < 5
        assert len(harness.server) == 0
    harness.until(lambda: len(harness.server) == 1)
    client.close()


# -- who says that it is whom


def test_a_process_that_is_not_the_one_of_its_life_is_refused(
    harness: PeerServerHarness, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing that it sends is delivered."""
    harness.server.on_roster({7: os.getpid() + 1})
    harness.connect(hello(7), DEMAND)
    harness.until(lambda: harness.broken == [0])
    assert harness.events == []
    assert len(harness.server) == 0


def test_a_life_is_believed_once_the_roster_names_it(harness: PeerServerHarness) -> None:
    """A pool may connect first; what it has sent is delivered then, in order, and read on."""
    harness.connect(hello(9), DEMAND, DEMAND)
    harness.until(lambda: any(peer.life == 9 for peer in harness.server))
    assert harness.events == []
    harness.server.on_roster({9: os.getpid()})
    harness.clients[0].send(DEMAND)
    harness.until(lambda: len(harness.events) == 4)
    assert harness.events == [("up", 9), *[("Demand", 9)] * 3]


def test_a_life_that_nobody_names_is_refused(
    harness: PeerServerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is never introduced."""
    monkeypatch.setattr(peer_server, "NAMING_TIMEOUT_S", 0.01)
    harness.connect(hello(99), DEMAND)
    harness.until(lambda: harness.broken == [0])
    assert harness.events == []


def test_a_pause_of_all_keeps_a_waiting_peer_waiting(harness: PeerServerHarness) -> None:
    """Its life becomes known while the server takes nothing: it is read when the pause ends."""
    harness.connect(hello(9), DEMAND)
    harness.until(lambda: any(peer.life == 9 for peer in harness.server))
    harness.server.pause(True)
    harness.server.pause(False)
    harness.server.pause(True)
    harness.server.on_roster({9: os.getpid()})
    harness.clients[0].send(DEMAND)
    harness.server.pause(False)
    harness.until(lambda: harness.events == [("up", 9), *[("Demand", 9)] * 2])


# -- bytes that are no messages

DEEP = b"\x91" * 100_000
NOT_UTF8 = msgspec.msgpack.encode(hello(7)).replace(b"pool", b"\xff\xfe\xfd\xfc")


@pytest.mark.parametrize("body", [DEEP, NOT_UTF8, b"", b"\xc1"], ids=["deep", "utf8", "empty", "reserved"])
@pytest.mark.parametrize("introduced", [False, True], ids=["first", "later"])
def test_a_bad_frame_ends_its_connection_only(
    harness: PeerServerHarness, body: bytes, introduced: bool
) -> None:
    """The others are served on."""
    harness.connect(hello(8))
    harness.until(lambda: 8 in harness.server.peers)
    client = harness.connect(*[hello(7)] * introduced)
    harness.loop.turn(0.01)
    sock = socket.socket(fileno=os.dup(harness.clients[client].fileno()))
    sock.sendall(struct.pack("!i", len(body)) + body)
    harness.until(lambda: harness.broken == [client])
    sock.close()
    harness.clients[0].send(DEMAND)
    harness.until(lambda: harness.events[-1] == ("Demand", 8))


def test_random_bytes_never_raise(harness: PeerServerHarness) -> None:
    """Frames of random bytes, of mutated messages, torn and cut: the server goes on (seeded)."""
    dice = random.Random(20)
    known = [msgspec.msgpack.encode(message) for message in (hello(7), DEMAND, hello(10**9))]
    harness.connect(hello(8))
    harness.until(lambda: 8 in harness.server.peers)
    for _ in range(150):
        client = connect(harness.path)
        with contextlib.suppress(OSError):
            for _ in range(dice.randrange(1, 5)):
                client.send(fuzz_frame(dice, known))
        harness.loop.turn(0)
        client.close()
        harness.loop.turn(0)
    harness.clients[0].send(DEMAND)
    harness.until(lambda: harness.events[-1] == ("Demand", 8))
