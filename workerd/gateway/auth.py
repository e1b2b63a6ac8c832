"""What every request passes before its route: Host, token or session, size."""

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

from workerd.gateway.problems import HTTPProblem, response

COOKIE = "workerd_session"
BODY_TIME = 10.0
"""Seconds that a body may take."""
OPEN = frozenset({"/heartbeat", "/login"})
"""Paths without a token; those below /ui/static too, which is how the login page looks like something."""
STATIC = "/ui/static/"
LOOK_EVERY = 1.0
"""Seconds between two looks whether the file of tokens has changed."""
ANY = ".".join(["0"] * 4)
"""IPv4's address for every interface; listening there needs tokens, which the configuration checks."""
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class Tokens:
    """The bearer tokens of `gateway.token_file`, one a line; read again when the file changes."""

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None
        self._looked = -LOOK_EVERY
        self._stamp: tuple[int, int] | None = None
        self._tokens: list[bytes] = []

    @property
    def wanted(self) -> bool:
        """Whether a token is needed at all."""
        return self._path is not None

    def _current(self) -> list[bytes]:
        if self._path is None or time.monotonic() - self._looked < LOOK_EVERY:
            return self._tokens
        self._looked = time.monotonic()
        try:
            status = self._path.stat()
            stamp = status.st_mtime_ns, status.st_ino
            if stamp != self._stamp:
                lines = self._path.read_bytes().splitlines()
                self._tokens = [line.strip() for line in lines if line.strip() and not line.startswith(b"#")]
                self._stamp = stamp
        except OSError:
            self._tokens, self._stamp = [], None  # a file that is gone lets nobody in
        return self._tokens

    def accepts(self, token: bytes) -> bool:
        """Whether the token is one of them; takes as long for a wrong one as for a right one."""
        return any([hmac.compare_digest(known, token) for known in self._current()])

    def session(self, token: bytes) -> str:
        """The cookie's value for a token: proves it without holding it."""
        return hashlib.blake2b(token, key=b"workerd session", digest_size=32).hexdigest()

    def accepts_session(self, value: str) -> bool:
        """Whether a cookie was made of one of the tokens."""
        given = value.encode()
        known = [self.session(token).encode() for token in self._current()]
        return any([hmac.compare_digest(one, given) for one in known])


class Guard:
    """ASGI middleware; see the module. `hosts`: Host headers that are answered, without port."""

    def __init__(
        self, app: ASGIApp, tokens: Tokens, hosts: Iterable[str], max_body: int, open_paths: Iterable[str]
    ) -> None:
        self._app = app
        self._tokens = tokens
        self._hosts = frozenset(hosts)
        self._max_body = max_body
        self._open = OPEN | frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            self._check_token(scope, headers)
            self._check_length(headers)
            receive = _Bounded(receive, self._max_body)
        except HTTPProblem as problem:
            await response(problem)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        if not self._hosts:  # a Unix socket: whoever reaches it was let in by the file's rights
            return
        host = headers.get("host", "").lower()
        if host not in self._hosts and _without_port(host) not in self._hosts:
            raise HTTPProblem(
                403,
                f"The Host {host[:100]!r} is not served here; add it to gateway.allowed_hosts to allow it.",
            )

    def _check_token(self, scope: Scope, headers: Headers) -> None:
        path = scope["path"]
        if not self._tokens.wanted or path in self._open or path.startswith(STATIC):
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._tokens.accepts(token.strip().encode()):
            return
        if self._tokens.accepts_session(_cookie(headers)):
            return
        scope["workerd.locked"] = True
        if path != "/" and not path.startswith("/ui"):
            raise HTTPProblem(
                401,
                "A token of gateway.token_file is expected: Authorization: Bearer TOKEN.",
                {"WWW-Authenticate": 'Bearer realm="workerd"'},
            )

    def _check_length(self, headers: Headers) -> None:
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_body:
            raise too_large(self._max_body)


class _Bounded:
    """Receives a body of at most `limit` bytes within BODY_TIME."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._left = limit
        self._until: float | None = None
        self._complete = False

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()  # waits for the client to go away
        loop = asyncio.get_running_loop()
        self._until = self._until or loop.time() + BODY_TIME
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            raise HTTPProblem(
                408, f"The body did not arrive within {BODY_TIME:g} s.", {"Connection": "close"}
            ) from None
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise too_large(self._limit)
        self._complete = not message.get("more_body", False)
        return message


def too_large(limit: int) -> HTTPProblem:
    """The body is over gateway.max_body."""
    return HTTPProblem(
        413, f"The body is over the limit of {limit} bytes (gateway.max_body).", {"Connection": "close"}
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
    """The Host headers that belong to a listen address; empty for a Unix socket: any."""
    if listen.startswith("unix:"):
        return set()
    address, _, port = listen.rpartition(":")
    names = {address.lower(), *(name.lower() for name in allowed)}
    if address in (*_LOOPBACK, "::1", ANY, "[::]", "") or address.startswith("127."):
        names.update(_LOOPBACK)
    if address in (ANY, "[::]", ""):
        names.add(os.uname().nodename.lower())
    return names | {f"{name}:{port}" for name in names}
