"""Unix sockets by folder and name, however long the folder's path is.

A socket address holds 107 bytes of path; temporary folders are often longer. Binding and connecting
go through `/proc/self/fd/N/name` of an open folder instead.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from workerd.runtime.channel import Channel
from workerd.runtime.loop import Loop, Timer

BACKLOG = 128


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def listen(path: Path, mode: int = 0o600) -> socket.socket:
    """A listening stream socket at `path`; one that is already there is replaced. Raises OSError."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with _short(path) as short:
        sock.bind(short)
    path.chmod(mode)
    sock.listen(BACKLOG)
    return sock


def bind_datagram(path: Path, mode: int = 0o600) -> socket.socket:
    """A datagram socket at `path`; one that is already there is replaced. Raises OSError."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    with _short(path) as short:
        sock.bind(short)
    path.chmod(mode)
    return sock


def connect(path: Path, timeout: float | None = None) -> socket.socket:
    """A stream connection to `path`; with a `timeout` (seconds) blocking. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout if timeout is not None else 0)
        with _short(path) as short:
            sock.connect(short)
    except OSError:
        sock.close()
        raise
    return sock


def poke(path: Path, body: bytes = b"") -> bool:
    """Send a datagram, never waiting; false if nobody listens there."""
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        with sock, _short(path) as short:
            sock.sendto(body, short)
    except BlockingIOError:
        return True  # its queue is full: it is about to wake anyway
    except OSError:
        return False
    return True


class Reconnecting:
    """A channel to a role that may be restarted: connects, and connects again when it breaks.

    `on_up` is called with each new channel (say Hello, send again what was not acknowledged), `on_down`
    when it broke. `channel` is None in between. Tries every `pause` seconds.
    """

    PAUSE = 0.05

    def __init__(
        self,
        loop: Loop,
        path: Path,
        incoming: Any,
        on_message: Callable[[Any], None],
        on_up: Callable[[Channel[Any]], None],
        on_down: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._path = path
        self._incoming = incoming
        self._on_message = on_message
        self._on_up = on_up
        self._on_down = on_down
        self._timer: Timer | None = None
        self._stopped = False
        self.channel: Channel[Any] | None = None

    def start(self) -> None:
        """Connect now, or as soon as the other side listens."""
        self._timer = None
        if self._stopped:
            return
        try:
            sock = connect(self._path)
        except OSError:
            self._timer = self._loop.call_later(self.PAUSE, self.start)
            return
        self.channel = Channel(self._loop, sock, self._incoming, self._on_message, self._broke)
        self._on_up(self.channel)

    def _broke(self) -> None:
        self.channel = None
        self._on_down()
        if not self._stopped:
            self._timer = self._loop.call_later(self.PAUSE, self.start)

    def stop(self) -> None:
        """Close and do not connect again."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if self.channel is not None:
            self.channel.close()
            self.channel = None
