"""Answers as they are written to a connection: at once where they are complete, else as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from workerd.gateway.connections import ClientConnections, HttpProtocol

App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Writes(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def exchange(app: App, *requests: bytes) -> Writes:
    """What a connection sends for these requests, which arrive together."""

    async def run() -> Writes:
        config = uvicorn.Config(app, log_config=None, lifespan="off", interface="asgi3")
        config.load()
        protocol = HttpProtocol(ClientConnections(), config=config, server_state=ServerState(), app_state={})
        transport = Writes()
        protocol.connection_made(transport)
        protocol.data_received(b"".join(requests))
        async with asyncio.timeout(30):
            while protocol.tasks:
                await asyncio.sleep(0)
        is_closed = transport.closed
        protocol.connection_lost(None)
        transport.closed = is_closed
        return transport

    return asyncio.run(run())


def request(method: str = "GET", more: str = "", version: str = "1.1") -> bytes:
    return f"{method} / HTTP/{version}\r\nHost: x\r\n{more}\r\n".encode()


def test_a_complete_answer_is_one_write() -> None:
    """Head and body together; that to HEAD has no body, but its length."""
    written = exchange(Response("text", 201, {"X-Y": "z"}), request()).written
    assert len(written) == 1
    head, _, body = written[0].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 201 Created\r\n")
    assert {b"content-length: 4", b"x-y: z"} <= set(head.split(b"\r\n"))
    assert body == b"text"
    (to_head,) = exchange(Response("text"), request("HEAD")).written
    assert to_head.endswith(b"\r\n\r\n")
    assert b"content-length: 4\r\n" in to_head


def test_pipelined_requests_are_answered_in_order() -> None:
    """Each with its own write."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(scope["method"])(scope, receive, send)

    written = exchange(app, request("GET"), request("POST", "Content-Length: 0\r\n"), request("PUT")).written
    assert [one.partition(b"\r\n\r\n")[2] for one in written] == [b"GET", b"POST", b"PUT"]


@pytest.mark.parametrize(
    ("sent", "headers"),
    [
        (request(version="1.0"), {}),
        (request(more="Connection: close\r\n"), {}),
        (request(), {"Connection": "close"}),
    ],
)
def test_a_connection_that_ends_with_its_answer(sent: bytes, headers: dict[str, str]) -> None:
    """By the version, the client's word or the gateway's: it says so once, and is closed."""
    transport = exchange(Response("text", headers=headers), sent)
    assert transport.closed
    assert transport.written[0].lower().count(b"connection: close") == 1
    assert not exchange(Response("text"), request()).closed


def test_the_head_of_a_stream_does_not_wait() -> None:
    """It is sent before there is a first part of the body."""
    parts: list[list[bytes]] = []
    transport: list[Writes] = []

    async def body() -> Any:
        parts.append(list(transport[0].written))
        yield b"one"

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        transport.append(send.__self__.transport)  # type: ignore[attr-defined]
        await StreamingResponse(body())(scope, receive, send)

    written = exchange(app, request()).written
    assert parts[0][0].startswith(b"HTTP/1.1 200 OK")
    assert b"".join(written).endswith(b"3\r\none\r\n0\r\n\r\n")


def test_a_length_that_is_wrong_is_not_sent_as_a_complete_answer() -> None:
    """The connection is closed, so that the client does not take the next answer for the rest."""
    response = Response("text")
    response.headers["content-length"] = "5"
    assert exchange(response, request()).closed


def test_a_header_with_a_line_break_is_not_sent() -> None:
    """Nobody can add headers by what they make the gateway say."""
    response = Response("text")
    response.raw_headers.append((b"location", b"/x\r\nset-cookie: a=b"))
    written = b"".join(exchange(response, request()).written)
    assert b"set-cookie" not in written
    assert written.startswith(b"HTTP/1.1 500 ")
