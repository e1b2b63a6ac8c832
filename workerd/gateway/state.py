"""What the routes share, for the life of the process."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from workerd.config.model import Config
from workerd.gateway.backend import Backend
from workerd.gateway.events import Events
from workerd.gateway.gathering import Gathering
from workerd.gateway.guard import Tokens
from workerd.gateway.history import History
from workerd.gateway.waiting import Waiting


@dataclass(frozen=True)
class Gateway:
    """The configuration, the way to the store, and those who wait."""

    config: Config
    backend: Backend
    tokens: Tokens
    jobs: Waiting
    requests: Waiting
    gathering: Gathering
    history: History
    events: Events


def state(request: Request) -> Gateway:
    """The gateway that this request came to."""
    gateway: Gateway = request.app.state.gateway
    return gateway
