"""A TCP proxy on loopback that carries a given number of bytes a second: a slow line to a database server."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

BUFFER_BYTES = 16 * 1024
"""Of each socket: little may hide in the kernel's buffers."""


class SlowLine:
    """Forwards connections to `target`. `bytes_s`: in each direction; 0: nothing gets through."""

    def __init__(self, target: tuple[str, int], bytes_s: float) -> None:
        self.target = target
        self.bytes_s = bytes_s
        self.carried = 0
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self.port: int = self._listener.getsockname()[1]
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, url: str) -> str:
        """The URL of the same database through this line."""
        return url.replace(f":{urlsplit(url).port}/", f":{self.port}/")

    def close(self) -> None:
        self._closed = True
        for sock in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self.target)
                self._sockets += [near, far]
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
                due = max(due, time.monotonic()) + len(data) / self.bytes_s
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
