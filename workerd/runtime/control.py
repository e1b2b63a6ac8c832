"""The supervisor's control socket: `workerd status`, `workerd reload` and the gateway ask here, in JSON.

One frame (four-byte length, JSON) in, one out, one connection per question. The folder is 0700: access to
the socket is permission to ask.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from workerd.runtime.loop import Loop
from workerd.runtime.sockets import connect, listen, rest_if_exhausted

_LENGTH = struct.Struct("!i")
MAX_QUESTION_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 64 * 1024 * 1024
IDLE_TIMEOUT_S = 10.0
"""How long a client may take to ask, and to read the answer."""

Reply = Callable[[dict[str, Any]], None]
Answer = Callable[[dict[str, Any], Reply], None]


class ControlServer:
    """Accepts clients; `answer` gets each question and a function that replies, now or later."""

    def __init__(self, loop: Loop, path: Path, answer: Answer) -> None:
        self._loop = loop
        self._answer = answer
        self._socket = listen(path)
        self._listen()

    def _listen(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.on_readable(self._socket.fileno(), self._accept, rank=4)

    def _accept(self) -> None:
        try:
            sock, _ = self._socket.accept()
        except OSError as error:
            rest_if_exhausted(self._loop, self._socket, error, self._listen)
            return
        _ControlClient(self._loop, sock, self._answer)

    def close(self) -> None:
        """Stop answering."""
        self._loop.forget(self._socket.fileno())
        self._socket.close()


class _ControlClient:
    def __init__(self, loop: Loop, sock: socket.socket, answer: Answer) -> None:
        self._loop = loop
        self._socket = sock
        self._answer = answer
        self._inbox = b""
        self._outbox = b""
        sock.setblocking(False)
        loop.on_readable(sock.fileno(), self._read, rank=4)
        self._timeout = loop.call_later(IDLE_TIMEOUT_S, self._close)

    def _read(self) -> None:
        try:
            data = self._socket.recv(MAX_QUESTION_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._inbox += data
        if not data or len(self._inbox) > MAX_QUESTION_BYTES:
            self._close()
            return
        if len(self._inbox) < 4 or len(self._inbox) - 4 < _LENGTH.unpack_from(self._inbox)[0]:
            return
        self._timeout.cancel()  # a reload answers when it is done
        try:
            question = msgspec.json.decode(self._inbox[4:], type=dict[str, Any])
        except (msgspec.MsgspecError, ValueError, RecursionError):
            self._reply({"error": 'expected {"ask": "status" | "reload"} in JSON'})
            return
        self._inbox = b""
        self._answer(question, self._reply)

    def _reply(self, document: dict[str, Any]) -> None:
        if self._socket.fileno() < 0:
            return
        body = msgspec.json.encode(document)
        self._outbox = _LENGTH.pack(len(body)) + body
        self._timeout = self._loop.call_later(IDLE_TIMEOUT_S, self._close)
        self._write()

    def _write(self) -> None:
        try:
            while self._outbox:
                self._outbox = self._outbox[self._socket.send(self._outbox, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            self._loop.on_writable(self._socket.fileno(), self._write)
            return
        except OSError:
            pass
        self._close()

    def _close(self) -> None:
        self._timeout.cancel()
        if self._socket.fileno() >= 0:
            self._loop.forget(self._socket.fileno())
            self._socket.close()


def ask(path: Path, question: dict[str, Any], timeout: float = 5.0) -> dict[str, Any]:
    """Ask the supervisor whose socket is at `path`; `timeout`: seconds. Raises OSError without an answer."""
    with connect(path, timeout) as sock:
        body = msgspec.json.encode(question)
        sock.sendall(_LENGTH.pack(len(body)) + body)
        (length,) = _LENGTH.unpack(_exactly(sock, 4))
        if not 0 <= length <= MAX_ANSWER_BYTES:
            raise OSError("the supervisor's answer is larger than expected")
        return msgspec.json.decode(_exactly(sock, length), type=dict[str, Any])


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = sock.recv(min(count - len(data), 1 << 16))
        if not part:
            raise ConnectionResetError("the supervisor closed the connection before it answered")
        data += part
    return bytes(data)
