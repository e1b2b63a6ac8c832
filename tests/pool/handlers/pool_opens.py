"""Handlers whose import leaves descriptors open: a log file, a socket, an epoll object, a pipe."""

from __future__ import annotations

import os
import select
import socket
import tempfile

_folder = os.environ["OPENS_IN"]
log = open(os.path.join(_folder, "opened.log"), "a", buffering=1)  # noqa: SIM115 -- stays open, as logging's does
connection, peer = socket.socketpair()
unused = [socket.socket() for _ in range(3)]
events = select.epoll()
reading, writing = os.pipe()


def writes() -> dict[str, object]:
    """Write a file of its own while objects of the import are written to, and collected."""
    with tempfile.TemporaryFile() as mine:
        unused.clear()
        log.write("a line\n")
        os.write(writing, b"x")
        mine.write(b"mine")
        mine.flush()
        mine.seek(0)
        return {"mine": mine.read().decode(), "fd": mine.fileno()}


def sends() -> str:
    """Use the socket of the import."""
    try:
        connection.sendall(b"x")
    except OSError as error:
        return type(error).__name__
    return "sent"


def polls() -> str:
    """Use the epoll object of the import."""
    try:
        events.register(0, select.EPOLLIN)
    except OSError as error:
        return type(error).__name__
    return "registered"


def numbers() -> list[int]:
    """Descriptors of the import."""
    return [log.fileno(), connection.fileno(), peer.fileno(), events.fileno(), reading, writing]
