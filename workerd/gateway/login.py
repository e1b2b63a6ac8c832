"""Browser sessions: a token is exchanged for a cookie that scripts cannot read."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from workerd.gateway import params
from workerd.gateway.auth import COOKIE
from workerd.gateway.dashboard.components import el, join
from workerd.gateway.dashboard.pages import View, page_response
from workerd.gateway.params import EmptyBody, LoginBody
from workerd.gateway.problems import HTTPProblem
from workerd.gateway.state import gateway_of, json_response, only_post

COOKIE_MAX_AGE_S = 12 * 3600
"""A token that is removed from the file ends its sessions at once."""


async def login(request: Request) -> Response:
    """Exchange a token for a session cookie."""
    tokens = gateway_of(request).tokens
    token = (await params.body(request, LoginBody)).token.strip().encode("utf-8", "replace")
    if tokens.required and not tokens.accepts(token):
        raise HTTPProblem(
            401,
            "Invalid token. Tokens are in the node's gateway.token_file; ask its operator for one.",
            {"WWW-Authenticate": 'Bearer realm="workerd"'},
        )
    response = json_response({"ok": True})
    if tokens.required:
        response.set_cookie(
            COOKIE,
            tokens.session(token),
            max_age=COOKIE_MAX_AGE_S,
            path="/",
            httponly=True,
            samesite="strict",
            secure=request.headers.get("x-forwarded-proto") == "https",
        )
    return response


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
    return page_response(View("Log in", "", join(form)), gateway.node_name)


async def logout(request: Request) -> Response:
    """End the session of this browser."""
    await params.body(request, EmptyBody)
    response = json_response({"ok": True})
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
    return response


ROUTES = [
    Route("/login", login, methods=["POST"]),
    Route("/login", login_page, methods=["GET"]),
    Route("/ui/logout", logout, methods=["POST"]),
    Route("/ui/logout", only_post, methods=["GET"]),
]
