"""Unix sockets by path, however long it is, and a client that reconnects.

A socket address holds 107 bytes of path; temporary folders are often longer. Then binding and connecting go
through `/proc/self/fd/N/name` of the open folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from workerd.runtime.channel import Channel
from workerd.runtime.loop import Loop, Timer

BACKLOG = 128
MAX_PATH_BYTES = 107
RECONNECT_PAUSE_S = 0.05
ACCEPT_PAUSE_S = 1.0
"""How long nothing is accepted when the process has no descriptor left."""
OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors of `accept` after which the connection still waits, and would wake the loop again at once."""


def rest_if_exhausted(
    loop: Loop, listener: socket.socket, error: OSError, listen: Callable[[], None]
) -> None:
    """After `accept` failed for want of resources, call `listen` to go on in ACCEPT_PAUSE_S, not before."""
    if error.errno in OUT_OF_RESOURCES:
        loop.on_readable(listener.fileno(), None)
        loop.call_later(ACCEPT_PAUSE_S, listen)


@contextlib.contextmanager
def _short_path(path: Path) -> Iterator[str]:
    if len(os.fsencode(path)) <= MAX_PATH_BYTES:
        yield os.fspath(path)
        return
    parent, name = os.path.split(path)
    folder = os.open(parent or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{name}"
    finally:
        os.close(folder)


def check_replaceable(path: Path) -> None:
    """See that nothing but a socket is at a path outside of the daemon's folders. Raises OSError."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise OSError(errno.EEXIST, "there is a file that is no socket")


def listen(path: Path, mode: int = 0o600) -> socket.socket:
    """A listening stream socket at `path`, in place of any file; no link is followed. Raises OSError."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with _short_path(path) as short:
        sock.bind(short)
    path.chmod(mode)
    sock.listen(BACKLOG)
    return sock


def bind_datagram(path: Path, mode: int = 0o600) -> socket.socket:
    """A datagram socket at `path`, in place of any old one. Raises OSError."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    with _short_path(path) as short:
        sock.bind(short)
    path.chmod(mode)
    return sock


def connect(path: Path, timeout: float | None = None) -> socket.socket:
    """A stream connection to `path`: non-blocking, or with a `timeout` in seconds. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout if timeout is not None else 0)
        with _short_path(path) as short:
            sock.connect(short)
    except OSError:
        sock.close()
        raise
    return sock


def poke(path: Path, body: bytes = b"") -> bool:
    """Send a datagram without waiting; False when no socket is bound there."""
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        with sock, _short_path(path) as short:
            sock.sendto(body, short)
    except BlockingIOError:
        return True  # its queue is full; who reads that knows that more may have come
    except OSError:
        return False
    return True


class ReconnectingClient:
    """A client of a role that may be restarted: it reconnects whenever its channel breaks.

    `on_connected` is called with each new channel, to send Hello and what was not acknowledged. `channel`
    is None in between.
    """

    def __init__(
        self,
        loop: Loop,
        path: Path,
        incoming: Any,
        on_message: Callable[[Any], None],
        on_connected: Callable[[Channel[Any]], None],
    ) -> None:
        self._loop = loop
        self._path = path
        self._incoming = incoming
        self._on_message = on_message
        self._on_connected = on_connected
        self._timer: Timer | None = None
        self._stopped = False
        self.channel: Channel[Any] | None = None

    def start(self) -> None:
        """Connect now, or as soon as the role listens."""
        self._timer = None
        if self._stopped:
            return
        try:
            sock = connect(self._path)
        except OSError:
            self._timer = self._loop.call_later(RECONNECT_PAUSE_S, self.start)
            return
        self.channel = Channel(self._loop, sock, self._incoming, self._on_message, self._on_close)
        self._on_connected(self.channel)

    def _on_close(self) -> None:
        self.channel = None
        if not self._stopped:
            self._timer = self._loop.call_later(RECONNECT_PAUSE_S, self.start)

    def stop(self) -> None:
        """Close the channel and do not connect again."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if self.channel is not None:
            self.channel.close()
            self.channel = None
