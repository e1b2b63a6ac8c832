"""Outcomes on their way to the ingester: numbered, kept until acknowledged, resent on reconnect (law 6)."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workerd.job import AttemptRef
from workerd.messages import (
    Ack,
    AnnounceAgain,
    Announced,
    Barrier,
    BarrierDone,
    FromIngester,
    Hello,
    Message,
    Outcomes,
    PayloadLimits,
    Seen,
    StateSaved,
    StateStored,
    Throughput,
)
from workerd.outcome import Outcome, refused
from workerd.runtime.channel import Channel
from workerd.runtime.loop import Loop
from workerd.runtime.sockets import ReconnectingClient

MAX_UNACKNOWLEDGED_ROWS = 5000
MAX_UNACKNOWLEDGED_BYTES = 64 << 20
"""From either on, the sender is `full` and its owner takes no more jobs (law 7: bounded queues)."""

MAX_FRAME_ROWS = 1000
MAX_FRAME_BYTES = 8 << 20
"""An Outcomes frame holds at most this much, but always at least one outcome."""

MAX_OUTCOME_BYTES = 60 << 20
"""A larger one is refused: payload, extras, jobs and log may fit each by itself, and not into one frame."""

MAX_UNSENT_BYTES = 8 << 20
"""From so much on, that the ingester has not read yet, what may be lost is not sent."""

BATCH_DELAY_S = 0.001
"""How long an outcome waits for others when a frame has left just before."""
STREAM_ROWS = 5
STREAM_DELAY_S = 0.004
"""The delay once a frame carried so many rows: the ingester then gathers for longer anyway."""

MAX_PAYLOAD_BYTES = 24 << 20
"""A payload may stand in a frame twice, however much the store could take."""


def _ignore(*_: object) -> None:
    pass


def _ignore_stored(stored: StateStored) -> None:
    pass


class OutcomeSender:
    """The connection to the ingester; outcomes survive restarts of the ingester, other messages may not.

    `max_payload`: bytes, as the ingester announced last. `on_acknowledged` is called after each Ack that
    acknowledged something new, `on_announced` when all loaded handlers are known, `on_throughput` with what
    the ingester has recorded recently.
    """

    def __init__(
        self,
        loop: Loop,
        path: Path,
        hello: Hello,
        max_payload: int = MAX_PAYLOAD_BYTES,
        on_acknowledged: Callable[[], None] = _ignore,
        on_announced: Callable[[], None] = _ignore,
        on_throughput: Callable[[Throughput], None] = _ignore,
    ) -> None:
        self.max_payload = min(max_payload, MAX_PAYLOAD_BYTES)
        self._loop = loop
        self._hello = hello
        self._on_acknowledged = on_acknowledged
        self._kept: deque[Outcome] = deque()
        self._kept_bytes = 0
        self._first = 0  # the number of the oldest kept outcome
        self._fresh: list[Outcome] = []  # the newest of the kept ones, not sent on any connection yet
        self._flushed_at = 0.0
        self._batch_delay = BATCH_DELAY_S
        self._on_announced = on_announced
        self._on_throughput = on_throughput
        self.on_state_stored: Callable[[StateStored], None] = _ignore_stored
        self._states: dict[AttemptRef, StateSaved] = {}  # of running attempts, not known to be committed
        self._seen: list[Seen] = []
        self._unannounced: set[str] = set()
        self._tokens = itertools.count(1)
        self._barriers: dict[int, tuple[Barrier, Callable[[BarrierDone], None]]] = {}
        self._link = ReconnectingClient(loop, path, FromIngester, self._on_message, self._on_connected)

    def start(self) -> None:
        """Connect as soon as the ingester listens."""
        self._link.start()

    def stop(self) -> None:
        """Close the connection."""
        self._link.stop()

    @property
    def connected(self) -> bool:
        return self._link.channel is not None

    @property
    def unacknowledged(self) -> int:
        """Number of outcomes not known to be durable."""
        return len(self._kept)

    @property
    def full(self) -> bool:
        """Whether so much is unacknowledged that no more jobs may be taken."""
        return len(self._kept) >= MAX_UNACKNOWLEDGED_ROWS or self._kept_bytes >= MAX_UNACKNOWLEDGED_BYTES

    def kept(self) -> Iterator[Outcome]:
        """The outcomes that are not acknowledged yet, the oldest first."""
        return iter(self._kept)

    def send(self, outcome: Outcome) -> None:
        """Queue an outcome; it leaves at the end of this turn, or a moment later together with others."""
        size = _size(outcome)
        if size > MAX_OUTCOME_BYTES:
            why = f"its payload, extras, jobs and log are {size} bytes together, over the limit of"
            outcome = refused(outcome, f"{why} {MAX_OUTCOME_BYTES}")
            size = _size(outcome)
        self._kept.append(outcome)
        self._kept_bytes += size
        if not self._fresh:
            # The first after a pause leaves at once; in a stream each frame carries many.
            if time.monotonic() - self._flushed_at > self._batch_delay:
                self._loop.at_end_of_turn(self._flush)
            else:
                self._loop.call_later(self._batch_delay, self._flush)
        self._fresh.append(outcome)

    def send_all(self, outcomes: Sequence[Outcome]) -> None:
        """Queue several outcomes."""
        for outcome in outcomes:
            self.send(outcome)

    def barrier(self, lives: Mapping[int, int], on_done: Callable[[], None]) -> None:
        """Call `on_done` once all that was sent before is committed, here and by dead `lives`."""
        self._send_barrier(lives, lambda done: on_done(), ended=False)

    def ask_ended(self, lives: Mapping[int, int], on_done: Callable[[BarrierDone], None]) -> None:
        """As `barrier`; the answer also tells which attempts the ingester has written the end of."""
        self._send_barrier(lives, on_done, ended=True)

    def _send_barrier(
        self, lives: Mapping[int, int], on_done: Callable[[BarrierDone], None], *, ended: bool
    ) -> None:
        if self._fresh:
            self._flush()
        token = next(self._tokens)
        barrier = Barrier(token=token, lives=dict(lives), ended=ended)
        self._barriers[token] = barrier, on_done
        self._send(barrier)

    def announce(self, seen: list[Seen]) -> None:
        """Send which handlers are loaded, now and on every later connection."""
        if seen != self._seen:
            self._unannounced.update(message.handler for message in seen if message not in self._seen)
            self._seen = seen
            for message in seen:
                self._send(message)

    def announce_again(self, served: frozenset[str]) -> None:
        """Have the ingester write again which of these handlers the pools have loaded.

        Without a connection it need not be asked: the pools announce theirs on their next one.
        """
        self._send(AnnounceAgain(served))

    def save(self, saved: StateSaved) -> None:
        """Send what an attempt has saved, now and on later connections until it is committed."""
        self._states[saved.ref] = saved
        self._send(saved)

    def forget_state(self, ref: AttemptRef) -> None:
        """The attempt has ended: its outcome carries what it saved last."""
        self._states.pop(ref, None)

    @property
    def unsent(self) -> int:
        """Bytes that the ingester's socket has not taken yet; 0 without a connection."""
        return 0 if self._link.channel is None else self._link.channel.unsent

    @property
    def announced(self) -> bool:
        """Whether every loaded handler was announced and the ingester has taken that."""
        return not self._unannounced

    def notify(self, message: Message) -> None:
        """Send a message that may be lost; it is without a connection, and where much waits to be read."""
        if self.unsent < MAX_UNSENT_BYTES:
            self._send(message)

    def _send(self, message: Message) -> None:
        # Without a connection the next one begins with what must not be lost.
        if self._link.channel is not None:
            self._link.channel.send(message)

    def _flush(self) -> None:
        channel = self._link.channel
        self._flushed_at = time.monotonic()
        fresh, self._fresh = self._fresh, []
        self._batch_delay = STREAM_DELAY_S if len(fresh) >= STREAM_ROWS else BATCH_DELAY_S
        if channel is not None:
            _send_frames(channel, fresh, self._first + len(self._kept) - len(fresh))
        # Without a connection: the next one begins by sending everything that is kept.

    def _on_connected(self, channel: Channel[Any]) -> None:
        channel.send(self._hello)
        for seen in self._seen:
            channel.send(seen)
        for saved in self._states.values():
            channel.send(saved)
        sent = len(self._kept) - len(self._fresh)
        _send_frames(channel, list(itertools.islice(self._kept, sent)), self._first)
        for barrier, _ in self._barriers.values():
            channel.send(barrier)

    def _on_message(self, message: FromIngester) -> None:
        match message:
            case Ack():
                self._acknowledge(message.below)
            case PayloadLimits():
                self.max_payload = min(message.max_payload, MAX_PAYLOAD_BYTES)
            case StateStored():
                saved = self._states.get(message.ref)
                if saved is not None and saved.number <= message.number:
                    del self._states[message.ref]
                self.on_state_stored(message)
            case Announced():
                self._unannounced.discard(message.handler)
                if self.announced:
                    self._on_announced()
            case Throughput():
                self._on_throughput(message)
            case BarrierDone():
                answered = self._barriers.pop(message.token, None)
                if answered is not None:
                    answered[1](message)

    def _acknowledge(self, below: int) -> None:
        kept = self._kept
        count = min(below - self._first, len(kept) - len(self._fresh))
        if count <= 0:
            return
        for _ in range(count):
            self._kept_bytes -= _size(kept.popleft())
        self._first += count
        self._on_acknowledged()


def _size(outcome: Outcome) -> int:
    size = 256 if outcome.log is None else 256 + len(outcome.log)
    if outcome.payload is not None:
        size += len(outcome.payload)
    if outcome.error is not None or outcome.extras is not None or outcome.spawn is not None:
        size += len(outcome.error or "") + len(outcome.stack or "")
        size += len(outcome.extras or b"") + len(outcome.spawn or b"")
    if outcome.state is not None:
        size += len(outcome.state)
    if outcome.trace is not None:
        size += len(outcome.trace.spans or b"")
    return size


def _send_frames(channel: Channel[Any], outcomes: Sequence[Outcome], first: int) -> None:
    for part in _parts(outcomes):
        channel.send(Outcomes(first, part))
        first += len(part)


def _parts(outcomes: Sequence[Outcome]) -> Iterator[list[Outcome]]:
    part: list[Outcome] = []
    size = 0
    for outcome in outcomes:
        size += _size(outcome)
        if part and (size > MAX_FRAME_BYTES or len(part) >= MAX_FRAME_ROWS):
            yield part
            part, size = [], _size(outcome)
        part.append(outcome)
    if part:
        yield part
