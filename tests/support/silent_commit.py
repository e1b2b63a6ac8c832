"""A TCP proxy before a database server that swallows the answer to what commits."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Sequence
from urllib.parse import urlsplit

from tests.support.tcp_proxy import TcpProxy

COMMITTING = (b"\x03COMMIT", b"\x03INSERT INTO workerd_jobs (attempt")
"""A COMMIT, and an INSERT that an event loop posts, with autocommit: the command and how its text begins."""
ALONE = b"\x03INSERT INTO workerd_jobs (id, vars"
"""An INSERT that a client sends alone, with autocommit."""


class SilentCommit(TcpProxy):
    """Forwards connections to the server of `url`. `armed`: a commit is carried out without an answer.

    `statements`: what commits.
    """

    def __init__(self, url: str, statements: Sequence[bytes] = COMMITTING) -> None:
        parts = urlsplit(url)
        self.armed = False
        self._statements = statements
        super().__init__((parts.hostname or "", parts.port or 3306))
        self.url = url.replace(f":{parts.port}/", f":{self.port}/")

    def start(self, near: socket.socket, far: socket.socket) -> None:
        silent = threading.Event()
        threading.Thread(target=self._questions, args=(near, far, silent), daemon=True).start()
        threading.Thread(target=self._answers, args=(far, near, silent), daemon=True).start()

    def _questions(self, near: socket.socket, far: socket.socket, silent: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := near.recv(65536):
                if self.armed and any(statement in data for statement in self._statements):
                    silent.set()
                far.sendall(data)

    def _answers(self, far: socket.socket, near: socket.socket, silent: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(65536):
                if not silent.is_set():
                    near.sendall(data)
