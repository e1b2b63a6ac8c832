"""A channel under pressure: slow readers, paused readers, large frames, the last messages of a dead peer."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from workerd.messages import Ack, Seen
from workerd.runtime.channel import Channel
from workerd.runtime.loop import Loop

SOME = b"x" * 3_000_000


class Ends:
    """Both ends of a channel in one loop."""

    def __init__(self, loop: Loop) -> None:
        one, two = socket.socketpair()
        self.loop = loop
        self.received: list[Seen | Ack] = []
        self.ended = 0
        self.writer: Channel[Ack] = Channel(loop, one, Ack, lambda message: None, lambda: None)
        self.reader: Channel[Seen | Ack] = Channel(loop, two, Seen | Ack, self.received.append, self._over)

    def _over(self) -> None:
        self.ended += 1

    def turn(self, times: int) -> None:
        for _ in range(times):
            self.loop.turn(0)

    def until_received(self, count: int) -> None:
        for _ in range(10_000):
            self.loop.turn(0.01)
            if len(self.received) >= count:
                return
        raise AssertionError(f"{len(self.received)} of {count} arrived")


@pytest.fixture
def ends() -> Iterator[Ends]:
    result = Ends(Loop())
    yield result
    result.writer.close()
    result.reader.close()
    result.loop.close()


def test_large_frames_arrive_complete_and_in_order(ends: Ends) -> None:
    """Far larger than what the socket takes at once, with small ones between."""
    for number in range(5):
        ends.writer.send(Seen(handler=str(number), signature=SOME))
        ends.writer.send(Ack(below=number))
    ends.until_received(10)
    assert [m.handler for m in ends.received if isinstance(m, Seen)] == list("01234")
    assert [m.below for m in ends.received if isinstance(m, Ack)] == [0, 1, 2, 3, 4]
    assert all(m.signature == SOME for m in ends.received if isinstance(m, Seen))
    assert ends.writer.unsent == 0


def test_a_paused_reader_gets_everything_after_resume(ends: Ends) -> None:
    """Unread messages stay with the writer, which is not blocked."""
    ends.reader.pause()
    for number in range(20):
        ends.writer.send(Seen(handler=str(number), signature=SOME[:500_000]))
    ends.turn(50)
    assert ends.received == []
    assert ends.writer.unsent > 5_000_000
    ends.reader.resume()
    ends.until_received(20)
    assert [m.handler for m in ends.received if isinstance(m, Seen)] == [str(n) for n in range(20)]


def test_a_paused_channel_is_still_drained(ends: Ends) -> None:
    """The last messages of a dead peer are read whatever the back-pressure."""
    ends.reader.pause()
    ends.writer.send(Ack(below=1))
    ends.turn(3)
    ends.writer.close()
    ends.turn(3)
    assert ends.received == []
    assert ends.ended == 0
    ends.reader.drain()
    assert ends.received == [Ack(below=1)]
