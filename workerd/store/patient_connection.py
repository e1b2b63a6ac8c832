"""A connection of PyMySQL for slow lines: it waits for as long as bytes move, and shows that it does."""

from __future__ import annotations

import io
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

import pymysql
from pymysql.connections import MAX_PACKET_LEN
from pymysql.constants import CR
from pymysql.constants.COMMAND import COM_QUERY

from workerd.store.mysql_results import LeanResult

LONGEST_SLICE_S = 0.5
"""The longest wait for the socket between two calls of `on_progress`."""
SLOWEST_BYTES_S = 8 * 1024
"""What was sent may lie in buffers on the way, so the answer may take as much longer as so slow a line."""


MAX_TAKEN_BYTES = 4096

_PRELUDE = struct.Struct("<iB")  # the length in three bytes, the number 0 of the packet, the command


class PatientConnection(pymysql.Connection):
    """A connection whose time limit is one without a byte, not one for a whole statement or result.

    `limit_s`: seconds without a byte after which the server counts as lost. `on_progress` is called after
    each wait for the socket, however it ended: the caller is not stuck, it waits within a limit.

    An exception of the caller's, such as from a handler of signals, may come between any two bytes. What the
    server still answers must not be taken for the answer to the next statement, so that the connection is
    closed then, and not used again.
    """

    _sock: Any
    _result: LeanResult | None
    _force_close: Callable[[], None]
    _execute_command: Callable[[int, bytes], None]

    def __init__(self, *, limit_s: float, on_progress: Callable[[], None], **options: Any) -> None:
        self.limit_s = limit_s
        self.on_progress = on_progress
        self.slice_s = min(LONGEST_SLICE_S, limit_s)
        self.unanswered_bytes = 0
        self.unanswered = 0
        """Statements under way: from before the first byte is sent until the answer is read and noted."""
        self._read_from: socket.socket | None = None
        super().__init__(read_timeout=self.slice_s, write_timeout=self.slice_s, **options)

    def is_unusable(self) -> bool:
        """Whether it has an answer that nobody waits for, or the server has closed it; does not wait."""
        if self.unanswered:
            return True
        poll = select.poll()
        try:
            poll.register(self._sock, select.POLLIN)
            return bool(poll.poll(0))
        except (OSError, ValueError, TypeError):
            return True  # closed here

    def ask(self, statement: bytes, on_sent: Callable[[], None] | None = None) -> LeanResult:
        """Send a statement and read its answer; `on_sent` is called in between. Raises the driver's error."""
        self._check_usable()
        self.unanswered = 1
        try:
            if len(statement) < MAX_PACKET_LEN - 1:
                self._write_bytes(_PRELUDE.pack(len(statement) + 1, COM_QUERY) + statement)
                self._next_seq_id = 1
            else:
                self._execute_command(COM_QUERY, statement)
            if on_sent is not None:
                on_sent()
            self._read_query_result()
        finally:
            if self.unanswered:
                self._force_close()
        assert self._result is not None
        return self._result

    def pipeline(self, statements: Sequence[bytes]) -> list[LeanResult | pymysql.Error]:
        """Send all statements, then read all answers, in order: results, or the errors of statements.

        Each is a command of its own, so that no parameter can begin a statement. All are carried out, also
        those after one that failed. All answers but the last must be small: while this side writes it does
        not read. Raises the driver's error if the connection is lost, with all answers.
        """
        self._check_usable()
        self.unanswered = len(statements)
        try:
            if max(map(len, statements)) >= MAX_PACKET_LEN - 1:
                return [self._answer(statement) for statement in statements]
            self._write_bytes(b"".join([_PRELUDE.pack(len(sql) + 1, COM_QUERY) + sql for sql in statements]))
            return [self._answer() for _ in statements]
        finally:
            if self.unanswered:
                self._force_close()

    def close(self) -> None:
        """Close it; a server that waits for the rest of a statement is sent nothing more."""
        if self.unanswered:
            self._force_close()
        else:
            super().close()

    def _check_usable(self) -> None:
        if self._sock is None or self.unanswered:
            raise pymysql.InterfaceError(0, "")

    # -- for an event loop (workerd.store.mysql_posting)

    def wait(self, patiently: bool) -> None:
        """Whether calls wait for the socket, as they do at first, or fail where they would wait."""
        self._sock.settimeout(self.slice_s if patiently else 0)

    def fileno(self) -> int:
        """Of the socket."""
        return int(self._sock.fileno())

    def post(self, statement: bytes) -> bool:
        """Send a statement; false if the socket does not take it as a whole, so that it never runs."""
        data = _PRELUDE.pack(len(statement) + 1, COM_QUERY) + statement
        try:
            return bool(self._sock.send(data) == len(data))
        except OSError:
            return False

    def take(self) -> bytes:
        """Some bytes of an answer. Raises OSError if there are none yet, the driver's error if none come."""
        data: bytes = self._sock.recv(MAX_TAKEN_BYTES)
        if not data:
            raise pymysql.OperationalError(CR.CR_SERVER_LOST, "Lost connection to MySQL server during query")
        return data

    # -- reading and writing

    def _read_query_result(self, unbuffered: bool = False) -> int | None:
        """As the driver's, with a result that is read in less time.

        Measured: a claim of one row takes 330 µs of CPU time in place of 515, and 10,000 rows of six columns
        take 21 ms in place of 37.
        """
        self._result = None
        result = LeanResult(self)
        result.read()
        self._result = result
        if result.server_status is not None:
            self.server_status = result.server_status
        self.unanswered -= 1  # the last step: without the status, it is not known what begins a transaction
        return result.affected_rows

    def _answer(self, unsent: bytes | None = None) -> LeanResult | pymysql.Error:
        if unsent is None:
            self._next_seq_id = 1
        else:
            self._execute_command(COM_QUERY, unsent)
        before = self.unanswered
        try:
            self._read_query_result()
        except pymysql.Error as error:
            if self.unanswered == before:
                raise  # not an answer
            return error
        assert self._result is not None
        return self._result

    def _read_bytes(self, num_bytes: int) -> bytes:
        if self._read_from is not self._sock:  # connected, or wrapped in TLS
            self._read_from = self._sock
            self._sock.settimeout(self.slice_s)
            self._buffered = io.BufferedReader(_PatientReader(self, self._sock))
        try:
            data = self._buffered.read(num_bytes)
        except OSError as error:
            self._force_close()
            raise pymysql.OperationalError(
                CR.CR_SERVER_LOST, f"Lost connection to MySQL server during query ({error})"
            ) from None
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
