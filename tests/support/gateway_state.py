"""The gateway in this process: its state, and requests through everything but uvicorn."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
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

ANSWER_TIMEOUT_S = 60.0
"""A request without an answer fails its test after so long."""


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
    return asyncio.run(_ask_together(gateway, path, [document], headers))[0]


def post_together(gateway: GatewayState, path: str, documents: Sequence[Any]) -> list[httpx.Response]:
    """POSTs that arrive in one turn of the loop, in this order."""
    return asyncio.run(_ask_together(gateway, path, documents, {}))


async def _ask_together(
    gateway: GatewayState, path: str, documents: Sequence[Any], headers: dict[str, str]
) -> list[httpx.Response]:
    transport = httpx.ASGITransport(application(gateway, gateway.config, ClientConnections()))

    async def send(client: httpx.AsyncClient, document: Any) -> httpx.Response:
        if document is None:
            return await client.get(path, headers=headers)
        return await client.post(path, json=document, headers=headers)

    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
            return await asyncio.gather(*[send(client, document) for document in documents])
