"""Too many connections: which are closed, and what the reserve answers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from workerd.gateway import auth
from workerd.gateway import connections as limits
from workerd.gateway.auth import Guard
from workerd.gateway.connections import ClientConnections, HttpProtocol
from workerd.gateway.hosts import HostRules
from workerd.gateway.problems import HTTPProblem, problem_response
from workerd.gateway.sessions import Sessions
from workerd.gateway.tokens import Tokens

LARGE_BYTES = 200_000
LARGE_BODY_BYTES = 20_000_000
"""More than the buffers of a connection hold."""
MAX_READ_BYTES = 2 * 256 * 1024
"""What asyncio reads at once, and what there was before."""
Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


@asynccontextmanager
async def serving(connections: ClientConnections) -> AsyncIterator[Connect]:
    """A server with these limits; gives a function that connects to it.

    `/endless` is never answered, `/large` at length, `/body` once it has arrived.
    """
    release = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/endless":
            await release.wait()
        if scope["path"] == "/body":
            try:
                await Request(scope, receive).body()
            except HTTPProblem as problem:
                await problem_response(problem)(scope, receive, send)
                return
        await Response(bytes(LARGE_BYTES) if scope["path"] == "/large" else "answered")(scope, receive, send)

    tokens = Tokens("")
    guard = Guard(
        app, tokens, Sessions(tokens), HostRules("127.0.0.1:1", ()), connections, 1000, open_paths=()
    )
    config = uvicorn.Config(guard, log_config=None, lifespan="off", interface="asgi3")
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: HttpProtocol(connections, config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    port = server.sockets[0].getsockname()[1]
    writers: list[asyncio.StreamWriter] = []

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writers.append(writer)
        return reader, writer

    async with server:
        yield connect
        release.set()
        for writer in writers:
            writer.close()
    async with asyncio.timeout(10):
        while state.connections:
            await asyncio.sleep(0)


def request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


async def status_of(connect: Connect, path: str) -> bytes:
    """The status of an answer on a new connection, b"" if it was closed without one."""
    reader, writer = await connect()
    writer.write(request(path))
    try:
        return (await reader.read(12))[9:]
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def until_open(connections: ClientConnections, count: int) -> None:
    async with asyncio.timeout(10):
        while len(connections._open) != count or connections._waiting:
            await asyncio.sleep(0)


def test_the_reserve_answers_the_probe_alone() -> None:
    """When all connections are busy, only /heartbeat is answered; beyond the reserve nothing is."""

    async def run() -> None:
        connections = ClientConnections(capacity=3)
        async with serving(connections) as connect:
            for _ in range(3):
                (await connect())[1].write(request("/endless"))
            await until_open(connections, 3)
            assert await status_of(connect, "/jobs") == b"503"
            await until_open(connections, 3)
            assert await status_of(connect, "/heartbeat") == b"200"

    asyncio.run(run())


def test_the_oldest_half_sent_requests_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit of an address, or of all, the connection that has waited longest is closed."""

    async def run(connections: ClientConnections) -> None:
        async with serving(connections) as connect:
            busy_reader, busy = await connect()
            busy.write(request("/endless"))
            await until_open(connections, 1)
            halves = []
            for _ in range(5):
                reader, writer = await connect()
                writer.write(b"GET /jobs HT")
                halves.append(reader)
            assert await status_of(connect, "/jobs") == b"200"
            for reader in halves[:2]:
                assert await reader.read(1) == b""
            assert not busy_reader.at_eof()

    asyncio.run(run(ClientConnections(capacity=4)))
    monkeypatch.setattr(limits, "MAX_WAITING_PER_ADDRESS", 3)
    monkeypatch.setattr(limits, "MIN_WAIT_S", 0.0)
    asyncio.run(run(ClientConnections()))


def test_a_new_connection_has_time_to_send_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many more its address opens meanwhile, as long as there is room for all."""

    async def run() -> None:
        async with serving(ClientConnections()) as connect:
            reader, writer = await connect()
            for _ in range(10):
                await connect()
            writer.write(request("/jobs"))
            assert (await reader.read(12))[9:] == b"200"

    monkeypatch.setattr(limits, "MAX_WAITING_PER_ADDRESS", 3)
    monkeypatch.setattr(limits, "MIN_WAIT_S", 60.0)
    asyncio.run(run())


def test_who_sends_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a request, within a head, and after an answer; a connection that awaits its answer is not."""

    async def run() -> None:
        async with serving(ClientConnections()) as connect:
            busy, busy_writer = await connect()
            busy_writer.write(request("/endless"))
            new, _ = await connect()
            half, half_writer = await connect()
            half_writer.write(b"GET /jobs HT")
            answered, answered_writer = await connect()
            answered_writer.write(request("/jobs"))
            async with asyncio.timeout(30):
                assert await new.read() == b""
                assert await half.read() == b""
                assert (await answered.read()).endswith(b"answered")
            assert not busy.at_eof()

    monkeypatch.setattr(limits, "HEAD_TIMEOUT_S", 0.2)
    asyncio.run(run())


async def send_without_end(writer: asyncio.StreamWriter, data: bytes) -> None:
    while True:
        writer.write(data)
        await writer.drain()


def post_head(framing: str, host: str = "127.0.0.1", path: str = "/jobs") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: {host}\r\n{framing}\r\n\r\n".encode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "answer"),
    [
        (post_head(f"Content-Length: {LARGE_BODY_BYTES}"), b"413"),
        (post_head("Content-Length: x"), b"400"),
        (post_head("Transfer-Encoding: chunked", "evil.example") + b"40000000\r\n", b"403"),
    ],
)
def test_who_sends_all_before_reading_gets_the_answer(head: bytes, answer: bytes) -> None:
    """A refused body is read and dropped: closed at once, the connection would be reset, the answer lost."""

    async def run() -> None:
        async with serving(ClientConnections()) as connect:
            reader, writer = await connect()
            writer.write(head + bytes(LARGE_BODY_BYTES))
            async with asyncio.timeout(30):
                await writer.drain()
                assert (await reader.read()).split()[1] == answer

    asyncio.run(run())


def test_who_sends_a_refused_body_without_end_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is kept meanwhile, and others are answered."""

    async def run() -> None:
        connections = ClientConnections()
        async with serving(connections) as connect:
            reader, writer = await connect()
            writer.write(post_head("Content-Length: 99999999999"))
            async with asyncio.timeout(30):
                assert (await reader.read()).split()[1] == b"413"
                (refused,) = connections._open
                sending = asyncio.create_task(send_without_end(writer, bytes(MAX_READ_BYTES)))
                while not sending.done():
                    assert not refused._unparsed
                    assert await status_of(connect, "/jobs") == b"200"
            assert isinstance(sending.exception(), ConnectionError)

    monkeypatch.setattr(limits, "HEAD_TIMEOUT_S", 0.5)
    asyncio.run(run())


def test_a_slow_line_has_time_for_its_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it is not slower than the least rate; one that stands still is refused."""

    async def run() -> None:
        async with serving(ClientConnections()) as connect:
            reader, writer = await connect()
            head = post_head("Content-Length: 100", path="/body")
            writer.write(head)
            async with asyncio.timeout(30):
                for _ in range(5):
                    writer.write(bytes(20))
                    await asyncio.sleep(0.1)
                assert (await reader.read(12))[9:] == b"200"
                reader, writer = await connect()
                writer.write(head + bytes(20))
                assert (await reader.read(12))[9:] == b"408"

    monkeypatch.setattr(auth, "BODY_TIMEOUT_S", 0.3)
    monkeypatch.setattr(auth, "LEAST_BODY_BYTES_S", 20)
    asyncio.run(run())


def test_few_descriptors_leave_room_for_one_turn_of_accepting() -> None:
    """Whatever the hard limit is; in a process of its own, which cannot raise it again."""
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024));"
        "from workerd.gateway.connections import *;"
        "limits = raise_descriptor_limit();"
        "print(limits.connections + limits.backlog + RESERVED_CONNECTIONS + OTHER_DESCRIPTORS)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 1024


def test_requests_without_end_are_not_read() -> None:
    """While the one before them has no answer: what was read of them has a bound, and others are answered."""

    async def run() -> None:
        connections = ClientConnections()
        async with serving(connections) as connect:
            _, writer = await connect()
            sending = asyncio.create_task(send_without_end(writer, request("/endless") * 1000))
            async with asyncio.timeout(30):
                while not any(one.flow and one.flow.read_paused for one in connections._open):
                    assert await status_of(connect, "/jobs") == b"200"
            (flooded,) = [one for one in connections._open if one.flow.read_paused]
            assert not flooded.pipeline
            assert len(flooded._unparsed) <= MAX_READ_BYTES
            assert await status_of(connect, "/jobs") == b"200"
            sending.cancel()

    asyncio.run(run())


def test_a_client_that_does_not_read_is_not_served_on() -> None:
    """Of all its requests as many answers are made as the system takes, and one more."""

    async def run() -> None:
        connections = ClientConnections()
        async with serving(connections) as connect:
            reader, writer = await connect()
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(request("/large") * 1000)
            async with asyncio.timeout(30):
                while not any(one.flow and one.flow.write_paused for one in connections._open):
                    await asyncio.sleep(0)
            (flooded,) = connections._open
            assert flooded.transport.get_write_buffer_size() < 2 * LARGE_BYTES
            assert not flooded.pipeline
            assert flooded.flow.read_paused

    asyncio.run(run())
