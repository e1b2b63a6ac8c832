"""The outcome sender: numbers, batches, acknowledgements, and what a new connection is sent again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from workerd.job import Status
from workerd.messages import (
    Ack,
    AnnounceAgain,
    Barrier,
    BarrierDone,
    Hello,
    Message,
    Outcomes,
    Progress,
    Seen,
    StateSaved,
    ToIngester,
)
from workerd.outcome import Outcome, Reason
from workerd.runtime import outcome_sender
from workerd.runtime.channel import Channel
from workerd.runtime.loop import Loop
from workerd.runtime.outcome_sender import OutcomeSender
from workerd.runtime.sockets import listen


def make_outcome(number: int, payload: bytes | None = None) -> Outcome:
    return Outcome(
        id=number.to_bytes(16), attempt=1, claimed_at=1, handler="h", status=Status.COMPLETED, payload=payload
    )


class AcknowledgingIngester:
    """The other end: one listening socket, one connection at a time, all messages kept."""

    def __init__(self, loop: Loop, path: Path) -> None:
        self.loop = loop
        self.received: list[Message] = []
        self.socket = listen(path)
        self.channel: Channel[Any] | None = None
        loop.on_readable(self.socket.fileno(), self.accept)

    def accept(self) -> None:
        sock, _ = self.socket.accept()
        self.channel = Channel(self.loop, sock, ToIngester, self.received.append, lambda: None)

    def send(self, message: Message) -> None:
        assert self.channel is not None
        self.channel.send(message)

    def break_connection(self) -> None:
        assert self.channel is not None
        self.channel.close()
        self.received.clear()

    def close(self) -> None:
        if self.channel is not None:
            self.channel.close()
        self.loop.forget(self.socket.fileno())
        self.socket.close()

    @property
    def frames(self) -> list[Outcomes]:
        return [message for message in self.received if isinstance(message, Outcomes)]

    @property
    def numbers(self) -> list[int]:
        return [
            frame.first + n
            for frame in self.frames
            for n, outcome in enumerate(frame.outcomes)
            if int.from_bytes(outcome.id) == frame.first + n
        ]


class Pair:
    def __init__(self, folder: Path) -> None:
        self.loop = Loop()
        self.acknowledged = 0
        self.ingester = AcknowledgingIngester(self.loop, folder / "ingester.sock")
        hello = Hello(role="pool", name="p", life=7)
        self.sender = OutcomeSender(self.loop, folder / "ingester.sock", hello, 1000, self._count)

    def _count(self) -> None:
        self.acknowledged += 1

    def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(500):
            if condition():
                return
            self.loop.turn(0.01)
        raise AssertionError("it did not happen")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(tmp_path)
    pair.sender.start()
    yield pair
    pair.sender.stop()
    pair.ingester.close()
    pair.loop.close()


def test_an_outcome_is_kept_until_it_is_acknowledged(pair: Pair) -> None:
    pair.sender.send_all([make_outcome(n) for n in range(3)])
    pair.until(lambda: pair.ingester.numbers == [0, 1, 2])
    assert pair.sender.unacknowledged == 3
    pair.ingester.send(Ack(below=2))
    pair.until(lambda: pair.sender.unacknowledged == 1)
    assert [kept.ref for kept in pair.sender.kept()] == [make_outcome(2).ref]
    pair.ingester.send(Ack(below=2))  # a repeated acknowledgement changes nothing
    pair.ingester.send(Ack(below=3))
    pair.until(lambda: pair.sender.unacknowledged == 0)
    assert pair.acknowledged == 2


def test_a_new_connection_gets_hello_handlers_outcomes_and_barriers_in_this_order(pair: Pair) -> None:
    done: list[bool] = []
    pair.sender.announce([Seen("h", None)])
    pair.sender.send(make_outcome(0))
    pair.sender.send(make_outcome(1))
    pair.until(lambda: pair.ingester.numbers == [0, 1])
    pair.ingester.send(Ack(below=1))
    pair.until(lambda: pair.sender.unacknowledged == 1)
    pair.sender.barrier({5: 50}, lambda: done.append(True))
    pair.until(lambda: any(isinstance(message, Barrier) for message in pair.ingester.received))
    pair.ingester.break_connection()
    pair.until(lambda: any(isinstance(message, Barrier) for message in pair.ingester.received))
    kinds = [type(message) for message in pair.ingester.received]
    assert kinds == [Hello, Seen, Outcomes, Barrier]
    assert pair.ingester.numbers == [1]
    pair.ingester.send(BarrierDone(token=1))
    pair.until(lambda: done == [True])
    pair.ingester.send(BarrierDone(token=1))  # answered already
    pair.sender.send(make_outcome(2))
    pair.until(lambda: pair.ingester.numbers == [1, 2])
    assert done == [True]


def test_a_barrier_never_overtakes_outcomes_that_wait_for_others(pair: Pair) -> None:
    """In a stream, outcomes wait some milliseconds; the barrier covers them too."""
    for n in range(30):
        pair.sender.send(make_outcome(n))
        if n % 10 == 9:
            pair.sender.barrier({}, lambda: None)
        pair.loop.turn(0)
    pair.until(lambda: sum(isinstance(m, Barrier) for m in pair.ingester.received) == 3)
    before = 0
    for message in pair.ingester.received:
        if isinstance(message, Outcomes):
            before += len(message.outcomes)
        elif isinstance(message, Barrier):
            assert before >= message.token * 10


def test_what_is_waited_for_is_sent_however_much_the_ingester_has_not_read(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a handler saved, a barrier and a handler's announcement; what may be lost is not sent then."""
    monkeypatch.setattr(outcome_sender, "MAX_UNSENT_BYTES", 1)
    pair.until(lambda: len(pair.ingester.received) == 1)
    channel = pair.ingester.channel
    assert channel is not None
    channel.pause()
    while not pair.sender.unsent:
        pair.sender.send(make_outcome(0, bytes(1 << 20)))
        pair.loop.turn(0.01)
    saved = StateSaved(b"i" * 16, 1, claimed_at=1, started_at=1, pid=1, state=b"1", number=1, wait=True)
    pair.sender.save(saved)
    pair.sender.barrier({}, lambda: None)
    pair.sender.announce_again(frozenset({"h"}))
    pair.sender.announce([Seen("h", None)])
    pair.sender.notify(Progress(b"i" * 16, 1, claimed_at=1, started_at=1, pid=1, progress=0.5, note=None))
    channel.resume()
    pair.until(lambda: isinstance(pair.ingester.received[-1], Seen))
    others = [message for message in pair.ingester.received if not isinstance(message, Hello | Outcomes)]
    assert others == [saved, Barrier(1, {}), AnnounceAgain(frozenset({"h"})), Seen("h", None)]


def test_outcomes_sent_while_disconnected_leave_on_the_next_connection(pair: Pair) -> None:
    pair.until(lambda: pair.sender.connected and pair.ingester.channel is not None)
    pair.ingester.break_connection()
    pair.until(lambda: not pair.sender.connected)
    pair.sender.send(make_outcome(0))
    pair.sender.barrier({}, lambda: None)
    pair.until(lambda: pair.ingester.numbers == [0])


def test_frames_are_bounded_by_rows_and_bytes(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome_sender, "MAX_FRAME_ROWS", 10)
    monkeypatch.setattr(outcome_sender, "MAX_FRAME_BYTES", 5000)
    pair.sender.send_all([make_outcome(n) for n in range(25)])
    pair.sender.send_all([make_outcome(n, b"x" * 3000) for n in range(25, 28)])
    pair.until(lambda: pair.ingester.numbers == list(range(28)))
    assert [len(frame.outcomes) for frame in pair.ingester.frames] == [10, 10, 6, 1, 1]


def test_an_outcome_that_fits_into_no_frame_is_refused(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parts fit each by itself; the attempt ends, and the outcomes beside it are sent."""
    monkeypatch.setattr(outcome_sender, "MAX_OUTCOME_BYTES", 10_000)
    pair.sender.send_all([make_outcome(0), make_outcome(1, b"x" * 20_000), make_outcome(2)])
    pair.until(lambda: pair.ingester.numbers == [0, 1, 2])
    sent = [one for frame in pair.ingester.frames for one in frame.outcomes]
    assert [one.reason for one in sent] == [None, Reason.REFUSED, None]
    assert "20256 bytes together" in (sent[1].error or "")


def test_it_is_full_by_rows_and_by_bytes(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome_sender, "MAX_UNACKNOWLEDGED_ROWS", 3)
    monkeypatch.setattr(outcome_sender, "MAX_UNACKNOWLEDGED_BYTES", 5000)
    pair.sender.send_all([make_outcome(0), make_outcome(1)])
    assert not pair.sender.full
    pair.sender.send(make_outcome(2))
    assert pair.sender.full
    pair.until(lambda: len(pair.ingester.numbers) == 3)
    pair.ingester.send(Ack(below=3))
    pair.until(lambda: not pair.sender.full)
    pair.sender.send(make_outcome(3, b"x" * 5000))
    assert pair.sender.full
