"""One request and its answer on a connection: an answer that is complete leaves in one write."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

HAS_BODY = "workerd.has_body"
"""Key of the ASGI scope: a function that says whether the whole body has arrived."""
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class AnswerTransport:
    """A connection's transport as its exchanges see it: how it is closed is the connection's matter."""

    def __init__(
        self, transport: asyncio.Transport, close: Callable[[], None], is_closing: Callable[[], bool]
    ) -> None:
        self.write = transport.write
        self.close = close
        self.is_closing = is_closing


class Exchange(RequestResponseCycle):
    """uvicorn's, with a short way for answers whose length is known.

    Head and body as two writes are two system calls, wake the client twice, and cost 10 µs of `POST /jobs`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._start: dict[str, Any] | None = None
        """The head, until the body follows."""
        cast("dict[str, Any]", self.scope)[HAS_BODY] = self._has_body

    def _has_body(self) -> bool:
        return not self.more_body

    async def send(self, message: Any) -> None:
        """Send a part of the answer; ASGI."""
        start = self._start
        if start is None:
            if message["type"] == "http.response.start" and not self.response_started:
                self._start = message
                if not any(name == b"content-length" for name, _ in message["headers"]):
                    await self._send_start(message)  # a stream, whose head must not wait
                return
            await super().send(message)
        elif self._is_complete(start, message):
            self._start = None
            self._answer(start, message.get("body", b""))
        else:
            await self._send_start(start)
            await super().send(message)

    async def _send_start(self, start: Any) -> None:
        self._start = None
        await super().send(start)

    def _is_complete(self, start: dict[str, Any], message: Any) -> bool:
        """Whether this is the whole body, as long as the head says, and the client reads it."""
        if message["type"] != "http.response.body" or message.get("more_body") or self.flow.write_paused:
            return False
        length = b"%d" % len(message.get("body", b""))
        return (b"content-length", length) in start["headers"] and not self.disconnected

    def _answer(self, start: dict[str, Any], body: bytes) -> None:
        headers = [*self.default_headers, *start["headers"]]
        if _CONTROL.search(b"".join([value for _, value in headers])):
            raise RuntimeError("a header's value has a control character")
        parts = [STATUS_LINE[start["status"]], *[b"%b: %b\r\n" % header for header in headers]]
        closes = any(name == b"connection" and b"close" in value.lower() for name, value in start["headers"])
        if not closes and not self.keep_alive:
            parts.append(b"connection: close\r\n")
        parts += (b"\r\n", body if self.scope["method"] != "HEAD" else b"")
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        self.keep_alive = self.keep_alive and not closes
        self.transport.write(b"".join(parts))
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
