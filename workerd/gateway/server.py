"""The gateway's process: uvicorn in an event loop that also serves the supervisor's channel.

Beats leave from the loop that serves requests, so a stuck gateway misses its watchdog and is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from functools import partial
from pathlib import Path
from typing import Any, cast

import setproctitle
import uvicorn

from workerd import log
from workerd.gateway.app import application
from workerd.gateway.backend import STATEMENT_TIMEOUT_S, Backend
from workerd.gateway.batch_enqueue import BatchEnqueue
from workerd.gateway.connections import (
    HEAD_TIMEOUT_S,
    LISTEN_BACKLOG,
    ClientConnections,
    HttpProtocol,
    raise_descriptor_limit,
)
from workerd.gateway.dashboard.routes import view_of
from workerd.gateway.events import Events, Parts
from workerd.gateway.history import History
from workerd.gateway.long_poll import LongPolls
from workerd.gateway.roles import Caller
from workerd.gateway.sessions import LoginThrottle, Sessions
from workerd.gateway.state import GatewayState
from workerd.gateway.stats import StatsCache
from workerd.gateway.tokens import Tokens
from workerd.messages import Drain
from workerd.operations import jobs, requests
from workerd.operations.rules import HandlerRules
from workerd.runtime.generations import Generations
from workerd.runtime.paths import RoleContext
from workerd.runtime.service import Service
from workerd.runtime.sockets import OUT_OF_RESOURCES, check_replaceable
from workerd.runtime.sockets import listen as listen_unix
from workerd.tracing import switch as tracing

MAX_TURN_INTERVAL_S = 1.0
"""Between two turns of the supervisor channel's loop, unless a timer or a message is due earlier."""
BIND_RETRY_S = 1.0
UVICORN_TICK_S = 1.0
QUIET_S = 10.0
"""Between two lines of the log that say that there is no descriptor or memory for more connections."""
SOCKET_MODE = 0o660
"""Of a Unix socket: the daemon's user and group may connect."""
SHUTDOWN_TIMEOUT_S = 2.0
"""How long requests in flight may take when the node shuts down."""


class Gateway(Service):
    """The gateway under the supervisor."""

    def __init__(self, ctx: RoleContext) -> None:
        super().__init__(ctx.control, ctx.watchdog)
        setproctitle.setproctitle("workerd: gateway")
        self._config = ctx.config
        self._generations = Generations(ctx.config.node)
        self._tracing = tracing.of_enqueues(None, ctx.config.otel, "workerd")
        self._backend = Backend(ctx.config, min(STATEMENT_TIMEOUT_S, ctx.watchdog * 0.4))
        self._connections: ClientConnections
        self._backlog: int
        self._state: GatewayState
        self._stopping: asyncio.Event
        self._quiet_until = 0.0
        self._log = log.get_logger("gateway")

    def run(self) -> int:
        """Serve until the supervisor stops the gateway."""
        limits = raise_descriptor_limit()
        self._connections, self._backlog = ClientConnections(limits.connections), limits.backlog
        # Clients could fill the log with warnings about their own invalid requests.
        logging.getLogger("uvicorn").setLevel(logging.ERROR)
        asyncio.run(self._main())
        with contextlib.suppress(OSError):
            self.supervisor.flush()
        if self._tracing is not None:
            self._tracing.flush()
        # Threads that wait for an unavailable store must not delay the exit.
        os._exit(0)

    async def _main(self) -> None:
        self._stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_loop_error)
        loop.add_reader(self.loop.fileno(), self._turn)
        turning = asyncio.create_task(self._keep_turning())
        self.send_beats()
        try:
            await self._serve()
        finally:
            turning.cancel()
            loop.remove_reader(self.loop.fileno())
            self._backend.close()

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log what asyncio would print as a traceback; without descriptors that is at every connection."""
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in OUT_OF_RESOURCES:
            self._log.error("gateway.callback_failed", error=context["message"], exc_info=error)
        elif loop.time() >= self._quiet_until:
            self._quiet_until = loop.time() + QUIET_S
            self._log.error("gateway.exhausted", error=error.strerror)

    def _turn(self) -> None:
        self.loop.turn(0)

    async def _keep_turning(self) -> None:
        while True:
            self._turn()
            await asyncio.sleep(self.loop.time_to_timer(MAX_TURN_INTERVAL_S))

    async def _serve(self) -> None:
        sock = await self._bind()
        if sock is None:
            return
        tokens = Tokens(self._config.gateway.token_file)
        rules = HandlerRules(self._config)
        self._state = GatewayState(
            config=self._config,
            backend=self._backend,
            tokens=tokens,
            sessions=Sessions(tokens),
            login_throttle=LoginThrottle(),
            job_polls=LongPolls(self._backend, jobs.ended_of),
            request_polls=LongPolls(self._backend, requests.ended_of),
            batch_enqueue=BatchEnqueue(self._backend, self._config, rules),
            history=History(self._backend),
            stats=StatsCache(self._backend, self._config),
            events=Events(self._render, tokens),
            rules=rules,
            tracing=self._tracing,
        )
        periodic = [
            asyncio.create_task(self._state.history.run()),
            asyncio.create_task(self._backend.keep_checked(self._state.batch_enqueue.check_server)),
        ]
        server = _Server(self._uvicorn_config(), self._stopping)
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        self.become("up")
        self._log.info("gateway.listening", listen=self._config.gateway.listen)
        await self._stopping.wait()
        self._backend.draining = True
        self._state.job_polls.release_all()
        self._state.request_polls.release_all()
        self._state.events.end()
        for task in periodic:
            task.cancel()
        server.should_exit = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SHUTDOWN_TIMEOUT_S * 2):
                await serving

    def _uvicorn_config(self) -> uvicorn.Config:
        return uvicorn.Config(
            application(self._state, self._config, self._connections),
            http=cast("type[asyncio.Protocol]", partial(HttpProtocol, self._connections)),
            loop="none",
            lifespan="off",
            interface="asgi3",
            ws="none",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            backlog=self._backlog,
            timeout_keep_alive=int(HEAD_TIMEOUT_S),
            timeout_graceful_shutdown=int(SHUTDOWN_TIMEOUT_S),
        )

    async def _render(self, path: str, query: str, caller: Caller) -> Parts:
        view = await view_of(self._state, path, query, caller)
        # msgspec encodes no subclasses of str.
        return {name: str(html) for name, html in view.parts.items()}

    async def _bind(self) -> socket.socket | None:
        """The listening socket; retries until it can be opened, None if the gateway is stopped first."""
        while not self._stopping.is_set():
            try:
                return _listen(self._config.gateway.listen, shared=bool(self._generations.alive()))
            except OSError as error:
                trouble = (
                    f"The gateway cannot listen on {self._config.gateway.listen} ({error.strerror}); "
                    "stop the process that uses it, or set gateway.listen to another address."
                )
                if self.trouble != trouble:
                    self._log.error("gateway.bind_failed", error=trouble)
                self.become("failed", trouble)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(BIND_RETRY_S):
                        await self._stopping.wait()
        return None

    def info(self) -> dict[str, Any]:
        """The gateway's fields in `workerd status`."""
        return {"listen": self._config.gateway.listen}

    def on_drain(self, drain: Drain) -> None:
        """Take nothing new, and answer everything else until the last pool is gone."""
        self._backend.draining = True
        self.become("draining" if self.state == "up" else self.state, self.trouble)

    def on_stop(self) -> None:
        """Answer the requests in flight, then exit."""
        self._stopping.set()


class _Server(uvicorn.Server):
    """uvicorn without signal handlers, as the supervisor decides, and without its ten ticks per second."""

    def __init__(self, config: uvicorn.Config, stopping: asyncio.Event) -> None:
        super().__init__(config)
        self._stopping = stopping

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # 0: each tick updates the Date header
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(UVICORN_TICK_S):
                    await self._stopping.wait()
            if self._stopping.is_set():
                return

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


def _listen(address: str, *, shared: bool) -> socket.socket:
    """Listen; `shared`: another generation of the daemon, which will end, may listen there too."""
    if address.startswith("unix:"):
        path = Path(address.removeprefix("unix:"))
        check_replaceable(path)
        return listen_unix(path, SOCKET_MODE)
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    target = (host.strip("[]"), int(port))
    if not shared:
        # A socket that may be shared would be bound beside that of any other program of this user.
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Inherited by each connection: an answer is two writes, and Nagle would delay the second by 40 ms.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind(target)
        sock.listen(LISTEN_BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def main(ctx: RoleContext) -> int:
    """Serve until the supervisor stops the gateway; returns the exit status."""
    return Gateway(ctx).run()
