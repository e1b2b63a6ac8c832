"""What the routes share, for the life of the process."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from workerd.config.model import Config
from workerd.gateway.auth import Tokens
from workerd.gateway.backend import Backend
from workerd.gateway.batch_enqueue import BatchEnqueue
from workerd.gateway.events import Events
from workerd.gateway.history import History
from workerd.gateway.long_poll import LongPolls


@dataclass(frozen=True)
class GatewayState:
    """The configuration, the way to the store, and those who wait."""

    config: Config
    backend: Backend
    tokens: Tokens
    jobs: LongPolls
    requests: LongPolls
    gathering: BatchEnqueue
    history: History
    events: Events


def state(request: Request) -> GatewayState:
    """The gateway that this request came to."""
    gateway: GatewayState = request.app.state.gateway
    return gateway
