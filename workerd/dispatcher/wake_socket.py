"""The wake-up socket: datagrams from any local program that name what to look for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec

from workerd.messages import Freed, Inserting, NewRows, Scheduled
from workerd.runtime.loop import Loop
from workerd.runtime.sockets import bind_datagram
from workerd.runtime.wake_ups import MAX_DATAGRAM_BYTES

MAX_DATAGRAMS = 1000
"""Wake-ups read in one turn: a flood of them must not starve the loop."""
FULL_QUEUE = 5
"""With this many wake-ups in one turn, more may have been dropped: the kernel queues 11 by default
(`net.unix.max_dgram_qlen`), and a send to a full queue is not repeated."""


class Listeners(NamedTuple):
    """Callbacks for each kind of wake-up.

    new
        There are new rows, of these handlers or, None, of any.
    inserting
        Rows of these handlers may be visible already; nothing else is new.
    freed
        Slots or tokens of these limits were released.
    scheduled
        A row becomes due at this store time, microseconds.
    """

    new: Callable[[Iterable[str] | None], None]
    inserting: Callable[[Iterable[str]], None]
    freed: Callable[[Iterable[str]], None]
    scheduled: Callable[[int], None]


@dataclass
class _News:
    """The wake-ups of one turn, merged."""

    any: bool = False
    handlers: set[str] = field(default_factory=set)
    inserting: set[str] = field(default_factory=set)
    limits: set[str] = field(default_factory=set)
    due: list[int] = field(default_factory=list)


class WakeSocket:
    """Reads wake-ups; `is_claimed`: whether a job has already been claimed here, so needs no look."""

    def __init__(
        self, loop: Loop, path: Path, listeners: Listeners, is_claimed: Callable[[bytes], bool]
    ) -> None:
        self._loop = loop
        self._listeners = listeners
        self._is_claimed = is_claimed
        self._decoder = msgspec.msgpack.Decoder(Freed | Inserting | NewRows | Scheduled)
        self._socket = bind_datagram(path, 0o666)

    def start(self) -> None:
        """Listen from now on."""
        self._loop.on_readable(self._socket.fileno(), self._read, rank=2)

    def _received(self) -> Iterator[bytes]:
        with contextlib.suppress(BlockingIOError):
            for _ in range(MAX_DATAGRAMS):
                yield self._socket.recv(MAX_DATAGRAM_BYTES)

    def _read(self) -> None:
        received = list(self._received())
        news = _News(any=len(received) >= FULL_QUEUE)
        for datagram in set(received):
            self._add(news, datagram)
        if news.limits:
            self._listeners.freed(news.limits)
        if news.due:
            self._listeners.scheduled(min(news.due))
        if news.handlers or news.any:
            self._listeners.new(None if news.any else news.handlers)
        elif news.inserting:
            self._listeners.inserting(news.inserting)

    def _add(self, news: _News, datagram: bytes) -> None:
        try:
            message = self._decoder.decode(datagram)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            news.any = True
            return
        if isinstance(message, NewRows):
            if not self._is_claimed(message.job):
                news.handlers.update(message.handlers)
        elif isinstance(message, Inserting):
            news.inserting.update(message.handlers)
        elif isinstance(message, Freed):
            news.limits.update(message.limits)
        else:
            news.due.append(message.due)
