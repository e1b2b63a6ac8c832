"""Answers as they are written to a connection: at once where they are complete, else as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from starlette.requests import Request
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
        self.ended = False
        """Whether nothing is written any more, closed or not."""
        self.reading = True

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.closed = self.ended = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


def exchange(app: App, *requests: bytes, read_size: int = 1 << 18, later: bytes = b"") -> Writes:
    """What a connection sends for these requests, which arrive together, or so many bytes at once.

    `later`: what arrives once an answer has begun.
    """

    async def run() -> Writes:
        config = uvicorn.Config(app, log_config=None, lifespan="off", interface="asgi3")
        config.load()
        protocol = HttpProtocol(ClientConnections(), config=config, server_state=ServerState(), app_state={})
        transport = Writes()
        protocol.connection_made(transport)
        unread, rest = b"".join(requests), later
        async with asyncio.timeout(30):
            while protocol.tasks or ((unread or rest) and not transport.closed):
                if not unread and transport.written:
                    unread, rest = rest, b""
                if unread and transport.reading:
                    protocol.data_received(unread[:read_size])
                    unread = unread[read_size:]
                await asyncio.sleep(0)
        state = transport.closed, transport.ended
        protocol.connection_lost(None)
        transport.closed, transport.ended = state
        return transport

    return asyncio.run(run())


def request(method: str = "GET", more: str = "", version: str = "1.1") -> bytes:
    return f"{method} / HTTP/{version}\r\nHost: x\r\n{more}\r\n".encode()


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await Response(scope["method"].encode() + b" " + body)(scope, receive, send)


def answers(transport: Writes) -> list[tuple[int, bytes]]:
    """The status and the body of each."""
    parts = [one.partition(b"\r\n\r\n") for one in transport.written]
    return [(int(head[9:12]), body) for head, _, body in parts]


def post(body: bytes, more: str = "") -> bytes:
    return request("POST", f"Content-Length: {len(body)}\r\n{more}") + body


H2C = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
CHUNKED = (
    request("POST", "Transfer-Encoding: chunked\r\n") + b"6\r\n\r\n\r\nab\r\n1\r\nc\r\n0\r\nX: y\r\n\r\n"
)


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


@pytest.mark.parametrize("read_size", [1, 2, 3, 7, 64, 1 << 18])
def test_pipelined_requests_are_answered_in_order(read_size: int) -> None:
    """Each with its own body, wherever one read ends and the next begins."""
    inner = b"\r\n\r\n" + request("DELETE")
    sent = [
        request(),
        post(inner),
        CHUNKED,
        post(b""),
        post(b"a\r", H2C),
        b"\r\n",
        request("PUT"),
        post(b"\n\r\n\r"),
    ]
    expected = [
        b"GET ",
        b"POST " + inner,
        b"POST \r\n\r\nabc",
        b"POST ",
        b"POST a\r",
        b"PUT ",
        b"POST \n\r\n\r",
    ]
    assert answers(exchange(echo, *sent, read_size=read_size)) == [(200, body) for body in expected]


@pytest.mark.parametrize("read_size", [1, 50, 1 << 18])
@pytest.mark.parametrize(
    "bad",
    [
        b"GARBAGE\r\n\r\n",
        b"\0",
        b"GET / HTTP/1.1\r\n\r\n",
        request(more=f"X: {'y' * 70_000}\r\n"),
        b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
        CHUNKED.replace(b"1\r\nc", b"z\r\nc"),
    ],
)
def test_what_is_no_request_is_refused_after_the_answers_before_it(bad: bytes, read_size: int) -> None:
    """And what follows it is not looked at."""
    transport = exchange(echo, post(b"a"), request(), bad, post(b"b"), read_size=read_size)
    assert [status for status, _ in answers(transport)] == [200, 200, 400]
    assert transport.ended


def test_a_body_that_is_no_http_after_the_answer_ends_the_connection() -> None:
    """An answer that has begun, or is complete, gets no second one."""

    async def answer_early(scope: Scope, receive: Receive, send: Send) -> None:
        await Response("early")(scope, receive, send)

    head, _, _ = CHUNKED.partition(b"6\r\n")

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        async def parts() -> AsyncIterator[bytes]:
            yield b"one"
            await receive()
            await receive()

        await StreamingResponse(parts())(scope, receive, send)

    for app in (answer_early, stream):
        transport = exchange(app, head, later=b"zz\r\n")
        written = b"".join(transport.written)
        assert written.count(b"HTTP/1.1 ") == 1
        assert written.startswith(b"HTTP/1.1 200 ")
        assert transport.ended


@pytest.mark.parametrize("upgrade", [H2C, "Connection: upgrade\r\nUpgrade: websocket\r\n"])
@pytest.mark.parametrize("read_size", [1, 1 << 18])
def test_an_upgrade_is_ignored(upgrade: str, read_size: int) -> None:
    """The body stays the request's, and no request begins in it; the answer is the usual one."""
    smuggled = request("DELETE")
    chunked = CHUNKED.replace(b"Host: x\r\n", b"Host: x\r\n" + upgrade.encode())
    transport = exchange(
        echo, post(smuggled, upgrade), request(more=upgrade), chunked, request(), read_size=read_size
    )
    bodies = [b"POST " + smuggled, b"GET ", b"POST \r\n\r\nabc", b"GET "]
    assert answers(transport) == [(200, body) for body in bodies]
    assert not transport.ended


def test_the_limits_of_a_head_hold_for_one_with_an_upgrade() -> None:
    """It is parsed twice, and checked as any other."""
    assert answers(exchange(echo, post(b"a", H2C).replace(b"Host: x\r\n", b"")))[0][0] == 400
    assert answers(exchange(echo, post(b"a", H2C + f"X: {'y' * 70_000}\r\n")))[0][0] == 400
    assert answers(exchange(echo, post(b"a", H2C + "Content-Length: 1\r\n")))[0][0] == 400


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
    assert not exchange(Response("text"), request()).ended


def test_the_head_of_a_stream_does_not_wait() -> None:
    """It is sent before there is a first part of the body."""
    parts: list[list[bytes]] = []
    transport: list[Writes] = []

    async def body() -> Any:
        parts.append(list(transport[0].written))
        yield b"one"

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        transport.append(send.__self__.transport.write.__self__)  # type: ignore[attr-defined]
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
