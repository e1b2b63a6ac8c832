"""HTTP connections: their timeouts, and which of them are closed when there are too many."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from workerd.gateway.exchange import AnswerTransport, Exchange
from workerd.gateway.path_segments import normal_form
from workerd.gateway.problems import HTTPProblem, problem_response

HEAD_TIMEOUT_S = 10.0
"""How long a connection may take to send a whole request head, and how long it may stay idle."""
MAX_HEAD_BYTES = 64 * 1024
"""Of a request beside its body; FRAMING_BYTES may frame each byte of that, as it may come in chunks."""
FRAMING_BYTES = 8
HEAD_END = b"\r\n\r\n"
"""Of a chunked body, too: the parser takes no line that ends otherwise."""
SEND_TIMEOUT_S = 30.0
"""A client that reads nothing of a pending answer for so long is disconnected."""
LISTEN_BACKLOG = 1024
MAX_WAITING_PER_ADDRESS = LISTEN_BACKLOG
"""ClientConnections of one address without a whole request, beside those of the last MIN_WAIT_S."""
MIN_WAIT_S = 1.0
"""Time to send a request in, even while the address opens thousands of connections; unless all are taken."""
MAX_CONNECTIONS = 4000
RESERVED_CONNECTIONS = 100
"""Accepted beyond MAX_CONNECTIONS, for the liveness probe alone."""
OTHER_DESCRIPTORS = 200
"""Files and sockets of the gateway that are no connections of clients."""


class ClientConnections:
    """All connections. Above the limits those that have waited longest for a whole request are closed.

    So half-sent requests, however many, do not starve other clients: one that sends its request without delay
    is not among the oldest. `capacity`: connections, beyond which only the liveness probe is answered.
    """

    def __init__(self, capacity: int = MAX_CONNECTIONS) -> None:
        self._capacity = capacity
        self._open: set[HttpProtocol] = set()
        # Since when, the one that has waited longest first.
        self._waiting: dict[HttpProtocol, float] = {}
        self._waiting_by_address: defaultdict[str, dict[HttpProtocol, float]] = defaultdict(dict)

    @property
    def is_full(self) -> bool:
        """Whether all connections are busy, and only the reserve is left."""
        return len(self._open) > self._capacity

    def add(self, connection: HttpProtocol) -> None:
        """Take a new connection in; the oldest waiting one may be closed for it, or it itself."""
        self._open.add(connection)
        if len(self._open) > self._capacity and self._waiting:
            of_address = self._waiting_by_address.get(connection.address, {})
            is_flood = len(of_address) >= MAX_WAITING_PER_ADDRESS
            self._close(next(iter(of_address if is_flood else self._waiting)))
        if len(self._open) > self._capacity + RESERVED_CONNECTIONS:
            self._close(connection)
            return
        self.set_waiting(connection)

    def set_waiting(self, connection: HttpProtocol) -> None:
        """The connection has no whole request in flight."""
        if connection in self._waiting or connection not in self._open:
            return
        of_address = self._waiting_by_address[connection.address]
        now = time.monotonic()
        self._waiting[connection] = of_address[connection] = now
        while len(of_address) > MAX_WAITING_PER_ADDRESS:
            oldest, since = next(iter(of_address.items()))
            if now - since < MIN_WAIT_S:
                break
            self._close(oldest)

    def set_busy(self, connection: HttpProtocol) -> None:
        """The connection has sent a whole request, and waits for its answer."""
        if connection not in self._waiting:
            return
        del self._waiting[connection]
        of_address = self._waiting_by_address[connection.address]
        del of_address[connection]
        if not of_address:
            del self._waiting_by_address[connection.address]

    def remove(self, connection: HttpProtocol) -> None:
        """Forget a connection."""
        self.set_busy(connection)
        self._open.discard(connection)

    def _close(self, connection: HttpProtocol) -> None:
        self.remove(connection)
        connection.transport.abort()


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol on httptools, with limits for heads and for clients that do not read.

    One request at a time: what follows it is parsed when it has been answered, and no more is read before
    that. So a client that sends requests without end takes no memory, and errors come in the order of
    requests.

    Measured for `POST /jobs`: a third of the CPU time of h11 in parsing and answering.
    """

    def __init__(self, all_connections: ClientConnections, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.address = ""
        """The client's, "" on a Unix socket."""
        self._all_connections = all_connections
        self._awaits_head_since = self.loop.time()
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._check_head)
        self._send_timer: asyncio.TimerHandle | None = None
        self._unparsed = b""
        """What was read and waits: for the answer before it, or for the rest of a line's end."""
        self._received = 0
        """Bytes of the present message, without its body and what frames that."""
        self._in_message = False
        self._has_head = False
        """Whether the exchange is that of the present message, of which more is to come."""
        self._body_left = 0
        """Bytes of the body to come, by its Content-Length."""
        self._is_ending = False
        """Whether the last answer was sent, and what still comes is dropped."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._answers = AnswerTransport(transport, self._end, self._has_ended)
        self.flow = _FlowControl(transport, self._may_read)
        self.address = self.client[0] if self.client else ""
        self._all_connections.add(self)

    @property
    def _awaits_head(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        if self._is_ending:
            return
        self._unparsed += data
        self._parse()
        self._update_waiting()

    @property
    def _may_parse(self) -> bool:
        return (self._in_message or self._awaits_head) and not self._has_ended()

    def _may_read(self) -> bool:
        return self._is_ending or not self._unparsed or self._may_parse

    def _parse(self) -> None:
        data, at = self._unparsed, 0
        while at < len(data) and self._may_parse:
            end = self._end_of_part(data, at)
            if end == at:
                break
            self._feed(data[at:end])
            at = end
        self._unparsed = b"" if self._is_ending else data[at:]
        if not self._may_read():
            self.flow.pause_reading()

    def _end_of_part(self, data: bytes, at: int) -> int:
        """Up to where it can be parsed: no message ends before that."""
        if self._body_left:
            return min(at + self._body_left, len(data))
        end = data.find(HEAD_END, at)
        if end >= 0:
            return end + len(HEAD_END)
        begun = next((size for size in (3, 2, 1) if data.endswith(HEAD_END[:size], at)), 0)
        return len(data) - begun

    def _feed(self, part: bytes) -> None:
        if not self._in_message:
            self._received = 0
        self._received += len(part)
        try:
            self.parser.feed_data(part)
        except httptools.HttpParserUpgrade:
            self._feed_without_upgrade()
        except httptools.HttpParserError:
            self._refuse()
        else:
            if self._in_message and self._received > MAX_HEAD_BYTES:
                self._refuse()

    def _feed_without_upgrade(self) -> None:
        """Parse the present head once more without its Upgrade, which is ignored (RFC 9110, 7.8).

        The parser takes all that follows it, even the body, for another protocol.
        """
        version = self.parser.get_http_version().encode()
        head = [b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)]
        head += [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        self._feed(b"".join((*head, b"\r\n")))

    # -- called by the parser; an error that is raised here is answered with 400

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_message, self._has_head = True, False
        self._awaits_head_since = self.loop.time()

    def on_headers_complete(self) -> None:
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts != 1 and not (hosts == 0 and self.parser.get_http_version() == "1.0"):
            raise ValueError("expected one Host header")
        if self._received > MAX_HEAD_BYTES:
            raise ValueError("the head is too large")
        if not self._awaits_head:
            raise ValueError("the previous request has no answer yet")  # as if the parser ended one elsewhere
        if not self.parser.should_upgrade():
            self._begin_exchange()
        elif self.parser.get_method() == b"CONNECT":
            raise ValueError("this is not a proxy")

    def _begin_exchange(self) -> None:
        """As the parser of uvicorn does, with an Exchange, without WebSockets and limits of its own."""
        version = self.parser.get_http_version()
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        cast("dict[str, Any]", self.scope).update(
            method=self.parser.get_method().decode("ascii"),
            http_version=version,
            path=normal_form(path),
            raw_path=url.path,
            query_string=url.query or b"",
        )
        self.cycle = exchange = Exchange(
            scope=self.scope,
            transport=cast("asyncio.Transport", self._answers),
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        self._has_head = True
        self._body_left = next((int(value) for name, value in self.headers if name == b"content-length"), 0)
        task = self.loop.create_task(exchange.run_asgi(self.app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def on_body(self, body: bytes) -> None:
        self._received = max(0, self._received - len(body) * (1 + FRAMING_BYTES))
        self._body_left = max(0, self._body_left - len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_message = False
        if self._has_head:
            self._has_head = False
            super().on_message_complete()

    # -- connections and answers

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if not self._has_ended():
            self._awaits_head_since = self.loop.time()
            self._parse()
            self.flow.resume_reading()
        self._update_waiting()  # the next request may have begun

    def _update_waiting(self) -> None:
        if self._awaits_head or self.cycle.more_body:
            self._all_connections.set_waiting(self)
        else:
            self._all_connections.set_busy(self)

    def _check_head(self) -> None:
        """Close the connection if it has awaited a head for too long.

        One timer of the connection asks again, where two for each request cost 10 µs.
        """
        is_due = self._awaits_head or self._is_ending
        since = self._awaits_head_since if is_due else self.loop.time()
        if self.loop.time() - since >= HEAD_TIMEOUT_S:
            self.transport.close()
        else:
            self._head_timer = self.loop.call_at(since + HEAD_TIMEOUT_S, self._check_head)

    def _refuse(self) -> None:
        """Answer that the present message is no HTTP, unless it has an answer already, and hang up."""
        if self._has_head:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not self._has_head or not self.cycle.response_started:
            answer = problem_response(HTTPProblem(400, "Invalid HTTP request.", {"Connection": "close"}))
            headers = [part for name, value in answer.raw_headers for part in (name, b": ", value, b"\r\n")]
            self.transport.write(b"".join((STATUS_LINE[400], *headers, b"\r\n", answer.body)))
        self._end()

    def _end(self) -> None:
        """Close the connection once the client has read the answer, at the latest after HEAD_TIMEOUT_S.

        Where a request is not received whole, what comes of it is read and dropped meanwhile: the system
        would reset a connection that is closed before, and the client lose the answer (RFC 9112, 9.6).
        """
        if self._has_ended():
            return
        if not self._in_message and not self._unparsed:
            self.transport.close()
            return
        self._is_ending, self._unparsed = True, b""
        self._awaits_head_since = self.loop.time()
        self.transport.write_eof()
        self.flow.resume_reading()
        self._all_connections.set_waiting(self)

    def _has_ended(self) -> bool:
        return self._is_ending or self.transport.is_closing()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._send_timer is None:
            self._send_timer = self.loop.call_later(SEND_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._all_connections.remove(self)
        for timer in (self._head_timer, self._send_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)


class _FlowControl(FlowControl):
    """uvicorn's, but never resumes reading while it may not read."""

    def __init__(self, transport: asyncio.Transport, may_read: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._may_read = may_read

    def resume_reading(self) -> None:
        if self._may_read():
            super().resume_reading()


class ConnectionLimits(NamedTuple):
    """Connections that fit under the limit of descriptors, and how many of them are accepted in one turn."""

    connections: int
    backlog: int


def raise_descriptor_limit() -> ConnectionLimits:
    """Raise the limit of descriptors as far as the gateway needs; returns what then fits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = RESERVED_CONNECTIONS + LISTEN_BACKLOG + OTHER_DESCRIPTORS
    wanted = MAX_CONNECTIONS + spare
    if 0 <= soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard < 0 else min(wanted, hard), hard))
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed < 0 or allowed >= wanted:
        return ConnectionLimits(MAX_CONNECTIONS, LISTEN_BACKLOG)
    return ConnectionLimits(max(allowed - spare, allowed // 2), max(1, min(LISTEN_BACKLOG, allowed // 8)))
