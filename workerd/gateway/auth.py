"""Checks before every route: load, Host and Origin headers, token or session cookie, size of the body."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workerd.gateway.connections import ClientConnections
from workerd.gateway.exchange import HAS_BODY
from workerd.gateway.headers import headers_of
from workerd.gateway.hosts import HostRules, check_origin
from workerd.gateway.problems import HTTPProblem, overloaded, problem_response
from workerd.gateway.roles import CALLER, EVERYBODY, Caller
from workerd.gateway.sessions import Cookie, Sessions
from workerd.gateway.tokens import Tokens

LOGIN_REQUIRED = "workerd.login_required"
"""Key of the ASGI scope that marks a page request without a valid token or session."""
BODY_TIMEOUT_S = 10.0
"""For a body to arrive, and a second more for each LEAST_BODY_BYTES_S of it: a slow line is no attack."""
LEAST_BODY_BYTES_S = 16 * 1024
MAX_ANONYMOUS_BODY_BYTES = 4096
"""The limit of bodies whose sender has shown no token yet."""
LIVENESS_PATH = "/heartbeat"
"""Answered however many connections there are."""
PROBE_PATHS = frozenset({LIVENESS_PATH, "/ready"})
"""Served under every Host: probes of a container do not know an allowed name."""
OPEN_PATHS = PROBE_PATHS | {"/login"}
"""Paths that need no token."""
STATIC_PREFIX = "/ui/static/"
"""Needs no token either: the login page uses it."""


class Guard:
    """ASGI middleware. `open_paths`: served without a token, beside OPEN_PATHS."""

    def __init__(
        self,
        app: ASGIApp,
        tokens: Tokens,
        sessions: Sessions,
        hosts: HostRules,
        connections: ClientConnections,
        max_body: int,
        open_paths: Iterable[str],
    ) -> None:
        self._app = app
        self._tokens = tokens
        self._sessions = sessions
        self._hosts = hosts
        self._connections = connections
        self._max_body = max_body
        self._open_paths = OPEN_PATHS | frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = headers_of(scope)
        try:
            if self._connections.is_full and scope["path"] != LIVENESS_PATH:
                raise overloaded()
            if scope["path"] not in PROBE_PATHS:
                self._hosts.check(headers)
            check_origin(scope["method"], headers)
            caller = self._caller(headers)
            self._check_token(scope, caller)
            limit = self._body_limit(scope, caller)
            _check_length(headers, limit)
        except HTTPProblem as problem:
            await problem_response(problem)(scope, receive, send)
            return
        await self._app(scope, _BoundedBody(receive, limit, scope.get(HAS_BODY)), send)

    def _caller(self, headers: Mapping[str, str]) -> Caller | None:
        if not self._tokens.required:
            return EVERYBODY
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        token = self._tokens.identify(secret.strip().encode()) if scheme.lower() == "bearer" else None
        token = token or self._sessions.token(Cookie.of(headers).value(headers))
        return None if token is None else Caller(token.name, token.role, token.id)

    def _check_token(self, scope: Scope, caller: Caller | None) -> None:
        path = scope["path"]
        if path in self._open_paths or path.startswith(STATIC_PREFIX):
            scope[CALLER] = None  # open to all
            return
        scope[CALLER] = caller
        if caller is not None:
            return
        scope[LOGIN_REQUIRED] = True  # pages redirect to the login instead
        if path != "/" and path != "/ui" and not path.startswith("/ui/"):
            raise HTTPProblem(
                401,
                "Expected Authorization: Bearer TOKEN, with a token from gateway.token_file.",
                {"WWW-Authenticate": 'Bearer realm="workerd"'},
            )

    def _body_limit(self, scope: Scope, caller: Caller | None) -> int:
        if caller is None or scope["path"] == "/login":
            return min(MAX_ANONYMOUS_BODY_BYTES, self._max_body)
        return self._max_body


class _BoundedBody:
    """Receives a body of at most `limit` bytes in time; `has_body`: whether it has arrived."""

    def __init__(self, receive: Receive, limit: int, has_body: Callable[[], bool] | None) -> None:
        self._receive = receive
        self._has_body = has_body
        self._limit = limit
        self._bytes_left = limit
        self._began_at: float | None = None
        self._complete = False

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()  # waits for the disconnect
        if self._has_body is not None and self._has_body():
            message = await self._receive()
        else:
            message = await self._receive_in_time()
        self._bytes_left -= len(message.get("body", b""))
        if self._bytes_left < 0:
            raise _too_large(self._limit)
        self._complete = not message.get("more_body", False)
        return message

    async def _receive_in_time(self) -> Message:
        loop = asyncio.get_running_loop()
        self._began_at = self._began_at or loop.time()
        allowed_s = BODY_TIMEOUT_S + (self._limit - self._bytes_left) / LEAST_BODY_BYTES_S
        try:
            async with asyncio.timeout_at(self._began_at + allowed_s):
                return await self._receive()
        except TimeoutError:
            allowed = f"{BODY_TIMEOUT_S:g} s and 1 s more for each {LEAST_BODY_BYTES_S} bytes"
            raise HTTPProblem(
                408, f"The body did not arrive within {allowed}.", {"Connection": "close"}
            ) from None


def _check_length(headers: Mapping[str, str], limit: int) -> None:
    length = headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise _too_large(limit)


def _too_large(limit: int) -> HTTPProblem:
    key = "a body sent without a token" if limit == MAX_ANONYMOUS_BODY_BYTES else "gateway.max_body"
    return HTTPProblem(413, f"The body exceeds the limit of {limit} bytes ({key}).", {"Connection": "close"})
