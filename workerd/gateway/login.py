"""Browser sessions: a token is exchanged for a cookie that scripts cannot read."""

from __future__ import annotations

import asyncio
import math

from starlette.requests import Request
from starlette.responses import Response

from workerd import log
from workerd.gateway.bodies import EmptyBody, LoginBody, read_body
from workerd.gateway.dashboard.components import el, join
from workerd.gateway.dashboard.pages import View, page_response
from workerd.gateway.path_prefix import prefix_of
from workerd.gateway.problems import HTTPProblem
from workerd.gateway.roles import Access, Route
from workerd.gateway.sessions import SESSION_LIFE_S, Cookie
from workerd.gateway.state import GatewayState, address_of, gateway_of, json_response, only_post

FAILED_LOGIN_DELAY_S = 0.5
"""An invalid token is answered after this time."""

_log = log.get_logger("gateway")


async def login(request: Request) -> Response:
    """Exchange a token for a session cookie."""
    gateway, address = gateway_of(request), address_of(request)
    body = await read_body(request, LoginBody)
    if not gateway.tokens.required:
        return json_response({"ok": True})
    token = gateway.tokens.identify(body.token.strip().encode("utf-8", "replace"))
    if token is None:
        raise await _refused(gateway, address)
    gateway.login_throttle.succeeded(address)
    _log.info("login.accepted", address=address, name=token.name)
    cookie = Cookie.of(request.headers)
    response = json_response({"ok": True})
    response.set_cookie(
        cookie.name, gateway.sessions.start(token.id), max_age=SESSION_LIFE_S, path="/", httponly=True,
        samesite="strict", secure=cookie.secure,
    )  # fmt: skip
    return response


async def _refused(gateway: GatewayState, address: str) -> HTTPProblem:
    """The answer to an invalid token, after a while. A valid one never waits: many may share an address."""
    if (wait_s := gateway.login_throttle.wait_s(address)) > 0:
        return HTTPProblem(
            429,
            f"Too many failed logins from this address; try again in {math.ceil(wait_s)} s.",
            {"Retry-After": str(math.ceil(wait_s))},
        )
    failures = gateway.login_throttle.failed(address)
    retry_in_s = round(gateway.login_throttle.wait_s(address), 1)
    _log.warning("login.refused", address=address, failures=failures, retry_in_s=retry_in_s)
    await asyncio.sleep(FAILED_LOGIN_DELAY_S)
    return HTTPProblem(
        401,
        "Invalid token. Tokens are in the node's gateway.token_file; ask its operator for one.",
        {"WWW-Authenticate": 'Bearer realm="workerd"'},
    )


async def login_page(request: Request) -> Response:
    """The login form."""
    gateway = gateway_of(request)
    form = el(
        "form",
        el("h1", el("span", class_="mark", aria_hidden="true"), "workerd"),
        el("p", f"Log in to {gateway.node_name} with a token from its gateway.token_file."),
        el(
            "label",
            "Token",
            el(
                "input", name="token", type="password", autocomplete="current-password", required=True,
                autofocus=True,
            ),
        ),
        el("p", id="login-error", class_="login-error", role="alert"),
        el("button", "Log in", class_="main"),
        id="login",
        class_="login",
        method="post",
        action="/login",
    )  # fmt: skip
    return page_response(View("Log in", "", join(form)), gateway.node_name, prefix=prefix_of(request.headers))


async def logout(request: Request) -> Response:
    """End the session of this browser."""
    await read_body(request, EmptyBody)
    cookie = Cookie.of(request.headers)
    gateway_of(request).sessions.end(cookie.value(request.headers))
    response = json_response({"ok": True})
    response.delete_cookie(cookie.name, path="/", httponly=True, samesite="strict", secure=cookie.secure)
    return response


ROUTES = [
    Route("/login", login, methods=["POST"], access=Access.OPEN),
    Route("/login", login_page, methods=["GET"], access=Access.OPEN),
    Route("/ui/logout", logout, methods=["POST"], access=Access.OPEN),
    Route("/ui/logout", only_post, methods=["GET"], access=Access.OPEN),
]
