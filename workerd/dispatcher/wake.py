"""The socket at which anybody may say that there is work."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from workerd.messages import Scheduled
from workerd.process.loop import Loop
from workerd.process.sockets import bind_datagram

AT_ONCE = 1000
"""Datagrams that are read in one turn: a flood of them must not keep the others waiting."""
SIZE = 64
"""Bytes of one that are read; what is longer is not ours."""


class Wake:
    """Reads the wake-ups; a thousand of them are as good as one.

    `on_new`: there is new work. `on_scheduled`: a row becomes due at this store time, microseconds.
    """

    def __init__(
        self, loop: Loop, path: Path, on_new: Callable[[], object], on_scheduled: Callable[[int], object]
    ) -> None:
        self._loop = loop
        self._on_new = on_new
        self._on_scheduled = on_scheduled
        self._decoder = msgspec.msgpack.Decoder(Scheduled)
        self._socket = bind_datagram(path, 0o666)

    def start(self) -> None:
        """Listen from now on."""
        self._loop.on_readable(self._socket.fileno(), self._read, rank=2)

    def _read(self) -> None:
        bodies: set[bytes] = set()
        with contextlib.suppress(BlockingIOError):
            for _ in range(AT_ONCE):
                bodies.add(self._socket.recv(SIZE))
        due: int | None = None
        new = False
        for body in bodies:
            try:
                told = self._decoder.decode(body).due
            except msgspec.DecodeError:
                new = True
            else:
                due = told if due is None else min(due, told)
        if due is not None:
            self._on_scheduled(due)
        if new:
            self._on_new()
