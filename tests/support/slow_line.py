"""A TCP proxy on loopback that carries a given number of bytes a second: a slow line to a database server."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from tests.support.tcp_proxy import TcpProxy

BUFFER_BYTES = 16 * 1024
"""Of each socket: little may hide in the kernel's buffers."""
BURST_S = 0.1
"""How far the line catches up: sleeps that end late, and acknowledgements, do not make it slower."""


class SlowLine(TcpProxy):
    """Forwards connections to `target`. `bytes_s`: in each direction; 0: nothing gets through."""

    def __init__(self, target: tuple[str, int], bytes_s: float) -> None:
        self.target = target
        self.bytes_s = bytes_s
        self.carried = 0
        self._closed = False
        super().__init__(target)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)

    def url(self, url: str) -> str:
        """The URL of the same database through this line."""
        return url.replace(f":{urlsplit(url).port}/", f":{self.port}/")

    def close(self) -> None:
        self._closed = True
        super().close()

    def start(self, near: socket.socket, far: socket.socket) -> None:
        for source, drain in ((near, far), (far, near)):
            source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            threading.Thread(target=self._carry, args=(source, drain), daemon=True).start()

    def _carry(self, source: socket.socket, drain: socket.socket) -> None:
        due = time.monotonic()
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                while not self.bytes_s:
                    time.sleep(0.01)
                    if self._closed:
                        return
                due = max(due, time.monotonic() - BURST_S) + len(data) / self.bytes_s
                time.sleep(max(0.0, due - time.monotonic()))
                drain.sendall(data)
                self.carried += len(data)
        with contextlib.suppress(OSError):
            drain.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def slow_line(url: str, bytes_s: float) -> Iterator[SlowLine]:
    """A slow line to the server of this URL, for the time of the block."""
    parts = urlsplit(url)
    line = SlowLine((parts.hostname or "", parts.port or 3306), bytes_s)
    try:
        yield line
    finally:
        line.close()
