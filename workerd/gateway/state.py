"""What the routes share: the gateway's state, JSON answers, and the answer to a wrong method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from workerd.config.model import Config
from workerd.gateway.backend import Backend
from workerd.gateway.batch_enqueue import BatchEnqueue
from workerd.gateway.events import Events
from workerd.gateway.history import History
from workerd.gateway.long_poll import LongPolls
from workerd.gateway.problems import DATA_HEADERS, HTTPProblem
from workerd.gateway.roles import Access, caller_of, check_access
from workerd.gateway.sessions import LoginThrottle, Sessions
from workerd.gateway.stats import StatsCache
from workerd.gateway.tokens import Tokens
from workerd.operations import audit
from workerd.operations.access import Tx
from workerd.operations.actor import Actor
from workerd.operations.rules import UNREDACTED, HandlerRules, Rules

if TYPE_CHECKING:
    from workerd.tracing.enqueues import EnqueueTracing

T = TypeVar("T")
NO_HEADERS: Mapping[str, str] = {}


@dataclass(frozen=True)
class GatewayState:
    """One instance for the life of the process."""

    config: Config
    backend: Backend
    tokens: Tokens
    sessions: Sessions
    login_throttle: LoginThrottle
    job_polls: LongPolls
    request_polls: LongPolls
    batch_enqueue: BatchEnqueue
    history: History
    stats: StatsCache
    events: Events
    rules: HandlerRules
    tracing: EnqueueTracing | None = None

    @property
    def node_name(self) -> str:
        """The node's name as pages show it."""
        return self.config.node.name or "workerd"


def gateway_of(request: Request) -> GatewayState:
    """The state of the gateway that received the request."""
    gateway: GatewayState = request.app.state.gateway
    return gateway


def token_id_of(request: Request) -> str:
    """The id of the token that the request carries, itself or by its session; "" without one."""
    return caller_of(request).token_id


def address_of(request: Request) -> str:
    """The address that the request came from, "" on a Unix socket."""
    return request.client.host if request.client else ""


def actor_of(request: Request) -> Actor:
    """Who sent the request."""
    # Browsers send Origin with each POST, and Sec-Fetch-Site with every request to a trustworthy address.
    in_browser = "origin" in request.headers or "sec-fetch-site" in request.headers
    via: Literal["ui", "http"] = "ui" if in_browser else "http"
    caller = caller_of(request)
    return Actor(caller.name, via, caller.role, address_of(request) or None)


async def look_up(
    request: Request,
    read: Callable[[Tx, Rules], T],
    target: str | None,
    query: Mapping[str, Any] | None = None,
) -> T:
    """What `read` finds, redacted by the rules that it gets.

    With the header `X-Reveal: 1` an operator sees everything, and that is recorded with `target`, and
    the `query` of a list. Raises HTTPProblem 403 for another role.
    """
    gateway = gateway_of(request)
    wanted = request.headers.get("x-reveal", "0")
    if wanted not in ("0", "1"):
        raise HTTPProblem(422, "X-Reveal: expected 0 or 1.")
    if wanted == "0":
        return await gateway.backend.read(lambda tx: read(tx, gateway.rules))
    check_access(request, Access.ACT)
    actor = actor_of(request)

    def reveal(tx: Tx) -> T:
        found = read(tx, UNREDACTED)
        audit.reveal(tx, actor, target, query)
        return found

    return await gateway.backend.write(reveal)


class _JSONResponse(Response):
    """JSON that no cache keeps.

    Its head is put together from bytes: Starlette's 5 µs for it were 4 % of the gateway's in `POST /jobs`.
    """

    _HEADERS = tuple(
        (name.lower().encode(), value.encode())
        for name, value in {"Content-Type": "application/json", **DATA_HEADERS}.items()
    )

    def __init__(self, body: bytes, status: int, more: Mapping[str, str]) -> None:
        self.body = body
        self.status_code = status
        self.background = None
        own = ((name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in more.items())
        self.raw_headers = [(b"content-length", b"%d" % len(body)), *self._HEADERS, *own]


def json_response(document: Any, status: int = 200, headers: Mapping[str, str] = NO_HEADERS) -> Response:
    """A JSON answer that no cache keeps."""
    return _JSONResponse(msgspec.json.encode(document), status, headers)


def wrong_method(request: Request, *allowed: str) -> HTTPProblem:
    """405, with the methods that the path allows."""
    return HTTPProblem(
        405, f"This path does not allow {request.method}.", {"Allow": ", ".join(sorted(allowed))}
    )


async def only_post(request: Request) -> Response:
    """Answer 405 for a path that another route's pattern would match as well."""
    raise wrong_method(request, "POST")
