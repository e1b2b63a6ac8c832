"""A connection of PyMySQL for slow lines: it waits for as long as bytes move, and shows that it does."""

from __future__ import annotations

import io
import select
import socket
import time
from collections.abc import Callable
from typing import Any

import pymysql
from pymysql.constants import CR

LONGEST_SLICE_S = 0.5
"""The longest wait for the socket between two calls of `on_progress`."""
SLOWEST_BYTES_S = 8 * 1024
"""What was sent may lie in buffers on the way, so the answer may take as much longer as so slow a line."""


class PatientConnection(pymysql.Connection):
    """A connection whose time limit is one without a byte, not one for a whole statement or result.

    `limit_s`: seconds without a byte after which the server counts as lost. `on_progress` is called after
    each wait for the socket, however it ended: the caller is not stuck, it waits within a limit.
    """

    _sock: Any
    _force_close: Callable[[], None]

    def __init__(self, *, limit_s: float, on_progress: Callable[[], None], **options: Any) -> None:
        self.limit_s = limit_s
        self.on_progress = on_progress
        self.slice_s = min(LONGEST_SLICE_S, limit_s)
        self.unanswered_bytes = 0
        self._read_from: socket.socket | None = None
        super().__init__(read_timeout=self.slice_s, write_timeout=self.slice_s, **options)

    def is_readable(self) -> bool:
        """Whether the server has sent something, or has closed the connection; does not wait."""
        poll = select.poll()
        try:
            poll.register(self._sock, select.POLLIN)
            return bool(poll.poll(0))
        except (OSError, ValueError, TypeError):
            return True  # closed here

    def _read_bytes(self, num_bytes: int) -> bytes:
        if self._read_from is not self._sock:  # connected, or wrapped in TLS
            self._read_from = self._sock
            self._sock.settimeout(self.slice_s)
            self._buffered = io.BufferedReader(_PatientReader(self, self._sock))
        try:
            data = self._buffered.read(num_bytes)
        except BaseException as error:
            self._force_close()
            if isinstance(error, OSError):
                raise pymysql.OperationalError(
                    CR.CR_SERVER_LOST, f"Lost connection to MySQL server during query ({error})"
                ) from None
            raise
        if len(data) < num_bytes:
            self._force_close()
            raise pymysql.OperationalError(CR.CR_SERVER_LOST, "Lost connection to MySQL server during query")
        return data

    def _write_bytes(self, data: bytes) -> None:
        self.unanswered_bytes += len(data)
        rest = memoryview(data)
        began = time.monotonic()
        try:
            while rest:
                try:
                    rest = rest[self._sock.send(rest) :]
                except TimeoutError:
                    if time.monotonic() - began >= self.limit_s:
                        raise
                else:
                    if not rest:
                        return
                    began = time.monotonic()
                self.on_progress()
        except OSError as error:
            self._force_close()
            raise pymysql.OperationalError(
                CR.CR_SERVER_GONE_ERROR, f"MySQL server has gone away ({error!r})"
            ) from None


class _PatientReader(io.RawIOBase):
    """Reads a socket in slices of time, up to the limit of its connection."""

    def __init__(self, connection: PatientConnection, sock: socket.socket) -> None:
        self._connection = connection
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        connection = self._connection
        waited_s = 0.0
        while True:
            try:
                count = self._sock.recv_into(buffer)
            except TimeoutError:
                waited_s += connection.slice_s
                if waited_s >= connection.limit_s + connection.unanswered_bytes / SLOWEST_BYTES_S:
                    raise
                connection.on_progress()
            else:
                connection.unanswered_bytes = 0
                connection.on_progress()
                return count
