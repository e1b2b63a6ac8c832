"""Outcomes on their way to the ingester: numbered, kept until acknowledged, sent again."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from workerd.job import Key
from workerd.messages import Ack, FromIngester, Hello, Message, Outcomes, PayloadLimits, Seen
from workerd.outcome import Outcome
from workerd.runtime.channel import Channel
from workerd.runtime.loop import Loop
from workerd.runtime.sockets import Reconnecting

ROWS_LIMIT = 5000
BYTES_LIMIT = 64 << 20
"""Above so many unacknowledged outcomes, or bytes of them, the pool takes nothing more (law 7)."""

FRAME_ROWS = 1000
FRAME_BYTES = 8 << 20
"""An Outcomes message holds at most so much, but always one outcome."""

TOGETHER = 0.001
"""Seconds that an outcome waits for others, if the last ones left only just before."""
STREAM = 5
STREAM_TOGETHER = 0.004
"""The same once the last message carried so many: then the ingester gathers for longer anyway."""

PAYLOAD_MAX = 24 << 20
"""Bytes of one payload that fit a frame twice over, whatever the store could take."""


class Outbox:
    """Outcomes on their way, and the other messages to the ingester.

    `on_acknowledged`: called after each Ack. `max_payload`: bytes, as the ingester told last.
    """

    def __init__(
        self, loop: Loop, path: Path, hello: Hello, max_payload: int, on_acknowledged: Callable[[], None]
    ) -> None:
        self.max_payload = min(max_payload, PAYLOAD_MAX)
        self._seen: list[Seen] = []
        self._loop = loop
        self._hello = hello
        self._on_acknowledged = on_acknowledged
        self._kept: deque[Outcome] = deque()
        self._first = 0  # the number of the oldest that is kept
        self._bytes = 0
        self._flushed = 0.0
        self._together = TOGETHER
        self._fresh: list[Outcome] = []  # the newest of them, not sent on any connection yet
        self._link = Reconnecting(loop, path, FromIngester, self._on_message, self._on_up, self._on_down)

    def start(self) -> None:
        """Connect, now or when the ingester listens."""
        self._link.start()

    def stop(self) -> None:
        """Close the connection."""
        self._link.stop()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def connected(self) -> bool:
        return self._link.channel is not None

    @property
    def full(self) -> bool:
        """So much is not acknowledged that nothing more may be taken."""
        return len(self._kept) >= ROWS_LIMIT or self._bytes >= BYTES_LIMIT

    def keys(self) -> Iterator[Key]:
        """The attempts whose outcomes are not acknowledged yet."""
        return (outcome.key for outcome in self._kept)

    def add(self, outcome: Outcome) -> None:
        """Take an outcome; it leaves at the end of this turn, or a moment later with others."""
        self._kept.append(outcome)
        self._bytes += _size(outcome)
        if not self._fresh:
            # The first after a pause leaves at once; in a stream each message carries many.
            if time.monotonic() - self._flushed > self._together:
                self._loop.at_end_of_turn(self._flush)
            else:
                self._loop.call_later(self._together, self._flush)
        self._fresh.append(outcome)

    def introduce(self, seen: list[Seen]) -> None:
        """Say which handlers are loaded, now and on every connection."""
        if seen != self._seen:
            self._seen = seen
            for message in seen:
                self.tell(message)

    def tell(self, message: Message) -> None:
        """Send something that may be lost."""
        if self._link.channel is not None:
            self._link.channel.send(message)

    def _flush(self) -> None:
        channel = self._link.channel
        self._flushed = time.monotonic()
        fresh, self._fresh = self._fresh, []
        self._together = STREAM_TOGETHER if len(fresh) >= STREAM else TOGETHER
        if channel is not None:
            self._send(channel, fresh, self._first + len(self._kept) - len(fresh))
        # Without a connection the next one sends everything that is kept.

    def _send(self, channel: Channel[Any], outcomes: Sequence[Outcome], first: int) -> None:
        for part in _parts(outcomes):
            channel.send(Outcomes(first, part))
            first += len(part)

    def _on_up(self, channel: Channel[Any]) -> None:
        channel.send(self._hello)
        for seen in self._seen:
            channel.send(seen)
        sent = len(self._kept) - len(self._fresh)
        self._send(channel, list(islice(self._kept, sent)), self._first)

    def _on_down(self) -> None:
        """Nothing to do: what was not acknowledged is still here."""

    def _on_message(self, message: FromIngester) -> None:
        match message:
            case Ack():
                self._acknowledged(message.below)
            case PayloadLimits():
                self.max_payload = min(message.max_payload, PAYLOAD_MAX)

    def _acknowledged(self, below: int) -> None:
        kept = self._kept
        count = min(below - self._first, len(kept) - len(self._fresh))
        if count <= 0:
            return
        for _ in range(count):
            self._bytes -= _size(kept.popleft())
        self._first += count
        self._on_acknowledged()


def _size(outcome: Outcome) -> int:
    size = 256
    if outcome.payload is not None:
        size += len(outcome.payload)
    if outcome.error is not None or outcome.extras is not None or outcome.spawn is not None:
        size += len(outcome.error or "") + len(outcome.stack or "")
        size += len(outcome.extras or b"") + len(outcome.spawn or b"")
    return size


def _parts(outcomes: Sequence[Outcome]) -> Iterator[list[Outcome]]:
    part: list[Outcome] = []
    size = 0
    for outcome in outcomes:
        size += _size(outcome)
        if part and (size > FRAME_BYTES or len(part) >= FRAME_ROWS):
            yield part
            part, size = [], _size(outcome)
        part.append(outcome)
    if part:
        yield part
