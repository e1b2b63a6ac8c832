"""The gateway's process: uvicorn in an event loop that also serves the supervisor's channel."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
from pathlib import Path
from typing import Any

import h11
import setproctitle
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from workerd import log
from workerd.gateway.app import application
from workerd.gateway.auth import Tokens
from workerd.gateway.backend import TIMEOUT, Backend
from workerd.gateway.batch_enqueue import BatchEnqueue
from workerd.gateway.dashboard.routes import view_of
from workerd.gateway.events import Events, Parts
from workerd.gateway.history import History
from workerd.gateway.long_poll import LongPolls
from workerd.gateway.problems import HTTPProblem, response
from workerd.gateway.state import GatewayState as State
from workerd.runtime.paths import RoleContext
from workerd.runtime.service import Service
from workerd.runtime.sockets import listen as listen_unix
from workerd.store import queries, requests

# The gateway's process: uvicorn in an event loop that also turns the line to the supervisor.
#
# Beats leave from the same loop that serves, so a gateway that is stuck falls silent and is replaced.
#

HEAD_TIME = 10.0
"""Seconds in which a connection must have sent a whole head, and between two requests."""
CONNECTIONS = 4000
BACKLOG = 1024
TURN_EVERY = 1.0
"""Seconds; sooner when a timer is due, and what can be read is read at once."""
BIND_AGAIN = 1.0
TAKE_TIME = 30.0
"""Seconds in which a client must take something of an answer that waits for it."""
TICK_EVERY = 1.0
LAST_WORDS = 2.0
"""Seconds for answers that are under way when the node ends."""


class PatientProtocol(H11Protocol):
    """uvicorn's protocol, but a client that never finishes its head, or takes no answer, is let go."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._head_timer: asyncio.TimerHandle | None = None
        self._take_timer: asyncio.TimerHandle | None = None
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._watch()
        elif self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _watch(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIME, self._give_up)

    def _give_up(self) -> None:
        self._head_timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        answer = response(HTTPProblem(400, "This is no valid HTTP request.", {"Connection": "close"}))
        head = h11.Response(status_code=400, headers=answer.raw_headers, reason=b"Bad Request")
        for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._take_timer is None:
            self._take_timer = self.loop.call_later(TAKE_TIME, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._take_timer is not None:
            self._take_timer.cancel()
            self._take_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._take_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)


class Gateway(Service):
    """The gateway under the supervisor."""

    def __init__(self, ctx: RoleContext) -> None:
        super().__init__(ctx.control, ctx.watchdog)
        setproctitle.setproctitle("workerd: gateway")
        self._config = ctx.config
        self._backend = Backend(ctx.config, min(TIMEOUT, ctx.watchdog * 0.4))
        self._stopping: asyncio.Event
        self._server: uvicorn.Server | None = None
        self._log = log.get_logger("gateway")

    def run(self) -> int:
        """Serve until the supervisor says stop."""
        _raise_descriptor_limit()
        # What a client sends wrong is the client's to know, and would fill the log at its will.
        logging.getLogger("uvicorn").setLevel(logging.ERROR)
        asyncio.run(self._live())
        with contextlib.suppress(OSError):
            self.supervisor.flush()
        # Threads that still wait for a store that is away must not hold up the end.
        os._exit(0)

    async def _live(self) -> None:
        self._stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self.loop.fileno(), self._turn)
        turning = asyncio.create_task(self._keep_turning())
        self._beat()
        try:
            await self._serve()
        finally:
            turning.cancel()
            loop.remove_reader(self.loop.fileno())
            self._backend.close()

    def _turn(self) -> None:
        self.loop.turn(0)

    async def _keep_turning(self) -> None:
        while True:
            self._turn()
            await asyncio.sleep(self.loop.rest(TURN_EVERY))

    async def _serve(self) -> None:
        sock = await self._bind()
        if sock is None:
            return
        self._state = State(
            config=self._config,
            backend=self._backend,
            tokens=Tokens(self._config.gateway.token_file),
            jobs=LongPolls(self._backend, queries.ended_of),
            requests=LongPolls(self._backend, requests.ended_of),
            gathering=BatchEnqueue(self._backend, self._config),
            history=History(self._backend.paths.metrics),
            events=Events(self._parts),
        )
        keeping = asyncio.create_task(self._state.history.keep())
        config = uvicorn.Config(
            application(self._state, self._config),
            http=PatientProtocol,
            loop="none",
            lifespan="off",
            interface="asgi3",
            ws="none",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=int(HEAD_TIME),
            timeout_graceful_shutdown=int(LAST_WORDS),
        )
        self._server = _Server(config, self._stopping)
        serving = asyncio.create_task(self._server.serve(sockets=[sock]))
        self.become("up")
        self._log.info("listening", listen=self._config.gateway.listen)
        await self._stopping.wait()
        self._backend.draining = True
        self._state.jobs.answer_all()
        self._state.requests.answer_all()
        self._state.events.end()
        keeping.cancel()
        self._server.should_exit = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS * 2):
                await serving

    async def _parts(self, path: str, query: str) -> Parts:
        parts = (await view_of(self._state, path, query)).parts
        return {name: str(part) for name, part in parts.items()}

    async def _bind(self) -> socket.socket | None:
        """The listening socket; tried until it is there, or until the end."""
        while not self._stopping.is_set():
            try:
                return _listen(self._config.gateway.listen)
            except OSError as error:
                trouble = (
                    f"The gateway cannot listen on {self._config.gateway.listen} ({error.strerror}); "
                    "end who uses it, or set gateway.listen to another address."
                )
                if self.trouble != trouble:
                    self._log.error("cannot listen", error=trouble)
                self.become("failed", trouble)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(BIND_AGAIN):
                        await self._stopping.wait()
        return None

    def info(self) -> dict[str, Any]:
        """What `workerd status` shows."""
        return {"listen": self._config.gateway.listen}

    def on_stop(self) -> None:
        """Answer what is under way, then end."""
        self._stopping.set()


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, as the supervisor decides, and without its ten ticks a second."""

    def __init__(self, config: uvicorn.Config, stopping: asyncio.Event) -> None:
        super().__init__(config)
        self._stopping = stopping

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # 0: each tick writes the date of the next second's answers
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_EVERY):
                    await self._stopping.wait()
            if self._stopping.is_set():
                return

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


def _listen(address: str) -> socket.socket:
    if address.startswith("unix:"):
        return listen_unix(Path(address.removeprefix("unix:")), 0o666)
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Inherited by every connection: an answer leaves in two writes, and would wait 40 ms for the second.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind((host.strip("[]"), int(port)))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + 200
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


def main(ctx: RoleContext) -> int:
    """Serve until the supervisor says stop; returns the exit status."""
    # Starlette and uvicorn are loaded here and nowhere else: no other process pays for their memory.

    return Gateway(ctx).run()
