"""Datagrams that arrived at a socket."""

from __future__ import annotations

import socket


def received(sock: socket.socket) -> int:
    """Read all that have arrived at a socket that does not wait; how many there were."""
    count = 0
    while True:
        try:
            sock.recv(1)
        except BlockingIOError:
            return count
        count += 1
