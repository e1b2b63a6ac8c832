"""A TCP proxy on loopback before a server; what it does to the bytes is said by those who extend it."""

from __future__ import annotations

import contextlib
import socket
import threading


class TcpProxy:
    """Forwards each connection to `target`, by `start`, which gets both its ends."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def start(self, near: socket.socket, far: socket.socket) -> None:
        """Carry what the client and the server send, in threads."""
        raise NotImplementedError

    def close(self) -> None:
        for sock in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._sockets += [near, far]
                self.start(near, far)
