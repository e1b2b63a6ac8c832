"""The gateway in this process: its state, and requests through everything but uvicorn."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from workerd.config.model import Config
from workerd.gateway.app import application
from workerd.gateway.backend import Backend
from workerd.gateway.batch_enqueue import BatchEnqueue
from workerd.gateway.connections import ClientConnections
from workerd.gateway.dashboard.routes import view_of
from workerd.gateway.events import Events
from workerd.gateway.history import History
from workerd.gateway.long_poll import LongPolls
from workerd.gateway.roles import Caller
from workerd.gateway.sessions import LoginThrottle, Sessions
from workerd.gateway.state import GatewayState
from workerd.gateway.stats import StatsCache
from workerd.gateway.tokens import Tokens
from workerd.operations import jobs, requests
from workerd.operations.rules import HandlerRules


def gateway_state(config: Config, timeout: float = 4.0) -> GatewayState:
    """The state of a gateway over the store of this configuration."""
    backend = Backend(config, timeout)

    async def render(path: str, query: str, caller: Caller) -> dict[str, str]:
        return {name: str(html) for name, html in (await view_of(gateway, path, query, caller)).parts.items()}

    tokens = Tokens("")
    rules = HandlerRules(config)
    gateway = GatewayState(
        config=config,
        backend=backend,
        tokens=tokens,
        sessions=Sessions(tokens),
        login_throttle=LoginThrottle(),
        job_polls=LongPolls(backend, jobs.ended_of),
        request_polls=LongPolls(backend, requests.ended_of),
        batch_enqueue=BatchEnqueue(backend, config, rules),
        history=History(backend),
        stats=StatsCache(backend, config),
        events=Events(render, tokens),
        rules=rules,
    )
    return gateway


def ask(gateway: GatewayState, path: str, document: Any = None, **headers: str) -> httpx.Response:
    """One GET, or a POST of a document."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(application(gateway, gateway.config, ClientConnections()))
        async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
            if document is None:
                return await client.get(path, headers=headers)
            return await client.post(path, json=document, headers=headers)

    return asyncio.run(send())
