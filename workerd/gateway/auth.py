"""Checks before every route: Host header, token or session cookie, size of the body."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import time
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workerd.gateway.problems import HTTPProblem, problem_response

COOKIE = "workerd_session"
LOGIN_REQUIRED = "workerd.login_required"
"""Key of the ASGI scope that marks a page request without a valid token or session."""
BODY_TIMEOUT_S = 10.0
OPEN_PATHS = frozenset({"/heartbeat", "/login"})
"""Paths that need no token."""
STATIC_PREFIX = "/ui/static/"
"""Needs no token either: the login page uses it."""
FILE_CHECK_INTERVAL_S = 1.0
ANY_IPV4 = ".".join(["0"] * 4)
"""All interfaces; the configuration requires tokens to listen there."""
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class Tokens:
    """The bearer tokens of `gateway.token_file`, one per line; reloaded when the file changes."""

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None
        self._checked_at = -FILE_CHECK_INTERVAL_S
        self._version: tuple[int, int] | None = None
        self._tokens: list[bytes] = []

    @property
    def required(self) -> bool:
        """Whether tokens are configured."""
        return self._path is not None

    def _current(self) -> list[bytes]:
        if self._path is None or time.monotonic() - self._checked_at < FILE_CHECK_INTERVAL_S:
            return self._tokens
        self._checked_at = time.monotonic()
        try:
            status = self._path.stat()
            version = status.st_mtime_ns, status.st_ino
            if version != self._version:
                lines = self._path.read_bytes().splitlines()
                self._tokens = [line.strip() for line in lines if line.strip() and not line.startswith(b"#")]
                self._version = version
        except OSError:
            self._tokens, self._version = [], None  # without the file all are refused
        return self._tokens

    def accepts(self, token: bytes) -> bool:
        """Whether the token is valid, compared in constant time."""
        return any([hmac.compare_digest(known, token) for known in self._current()])

    def session(self, token: bytes) -> str:
        """The cookie's value for a token, from which the token cannot be recovered."""
        return hashlib.blake2b(token, key=b"workerd session", digest_size=32).hexdigest()

    def accepts_session(self, value: str) -> bool:
        """Whether a cookie's value belongs to a valid token."""
        given = value.encode()
        valid = [self.session(token).encode() for token in self._current()]
        return any([hmac.compare_digest(session, given) for session in valid])


class Guard:
    """ASGI middleware. `hosts`: the accepted Host headers, with or without port; empty accepts any."""

    def __init__(
        self, app: ASGIApp, tokens: Tokens, hosts: Iterable[str], max_body: int, open_paths: Iterable[str]
    ) -> None:
        self._app = app
        self._tokens = tokens
        self._hosts = frozenset(hosts)
        self._max_body = max_body
        self._open_paths = OPEN_PATHS | frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            self._check_token(scope, headers)
            self._check_length(headers)
            receive = _BoundedBody(receive, self._max_body)
        except HTTPProblem as problem:
            await problem_response(problem)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        if not self._hosts:  # a Unix socket: file permissions decide who reaches it
            return
        host = headers.get("host", "").lower()
        if host not in self._hosts and _without_port(host) not in self._hosts:
            raise HTTPProblem(
                403,
                f"Host {host[:100]!r} is not allowed; add it to gateway.allowed_hosts.",
            )

    def _check_token(self, scope: Scope, headers: Headers) -> None:
        path = scope["path"]
        if not self._tokens.required or path in self._open_paths or path.startswith(STATIC_PREFIX):
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._tokens.accepts(token.strip().encode()):
            return
        if self._tokens.accepts_session(_cookie(headers)):
            return
        scope[LOGIN_REQUIRED] = True  # pages redirect to /login instead
        if path != "/" and not path.startswith("/ui"):
            raise HTTPProblem(
                401,
                "Expected Authorization: Bearer TOKEN, with a token from gateway.token_file.",
                {"WWW-Authenticate": 'Bearer realm="workerd"'},
            )

    def _check_length(self, headers: Headers) -> None:
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_body:
            raise too_large(self._max_body)


class _BoundedBody:
    """Receives a body of at most `limit` bytes within BODY_TIMEOUT_S."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._bytes_left = limit
        self._deadline: float | None = None
        self._complete = False

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()  # waits for the disconnect
        loop = asyncio.get_running_loop()
        self._deadline = self._deadline or loop.time() + BODY_TIMEOUT_S
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise HTTPProblem(
                408, f"The body did not arrive within {BODY_TIMEOUT_S:g} s.", {"Connection": "close"}
            ) from None
        self._bytes_left -= len(message.get("body", b""))
        if self._bytes_left < 0:
            raise too_large(self._limit)
        self._complete = not message.get("more_body", False)
        return message


def too_large(limit: int) -> HTTPProblem:
    """413 for a body over gateway.max_body."""
    return HTTPProblem(
        413, f"The body exceeds the limit of {limit} bytes (gateway.max_body).", {"Connection": "close"}
    )


def _cookie(headers: Headers) -> str:
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel is not None else ""


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


def hosts_of(listen: str, allowed: Iterable[str]) -> set[str]:
    """The Host headers to accept for a listen address; empty, which accepts any, for a Unix socket."""
    if listen.startswith("unix:"):
        return set()
    address, _, port = listen.rpartition(":")
    names = {address.lower(), *(name.lower() for name in allowed)}
    if address in (*_LOOPBACK, "::1", ANY_IPV4, "[::]", "") or address.startswith("127."):
        names.update(_LOOPBACK)
    if address in (ANY_IPV4, "[::]", ""):
        names.add(os.uname().nodename.lower())
    return names | {f"{name}:{port}" for name in names}
