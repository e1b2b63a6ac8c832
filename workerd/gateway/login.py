"""Who uses a browser trades a token for a cookie that no script can read."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from workerd.gateway import params
from workerd.gateway.auth import COOKIE
from workerd.gateway.dashboard.components import el, join
from workerd.gateway.dashboard.pages import View, respond
from workerd.gateway.jobs import answer, only_post
from workerd.gateway.params import EmptyBody, LoginBody
from workerd.gateway.problems import HTTPProblem
from workerd.gateway.state import state

AGE = 12 * 3600
"""Seconds that a browser keeps the cookie; a token that is taken out of the file ends it at once."""


async def login(request: Request) -> Response:
    """Trade a token for a session cookie."""
    tokens = state(request).tokens
    token = (await params.body(request, LoginBody)).token.strip().encode("utf-8", "replace")
    if tokens.wanted and not tokens.accepts(token):
        raise HTTPProblem(
            401,
            "This is no token of gateway.token_file; ask who runs the node for one.",
            {"WWW-Authenticate": 'Bearer realm="workerd"'},
        )
    result = answer({"ok": True})
    if tokens.wanted:
        result.set_cookie(
            COOKIE,
            tokens.session(token),
            max_age=AGE,
            path="/",
            httponly=True,
            samesite="strict",
            secure=request.headers.get("x-forwarded-proto") == "https",
        )
    return result


async def login_page(request: Request) -> Response:
    """Where a browser is asked for a token."""
    gateway = state(request)
    form = el(
        "form",
        el("h1", el("span", class_="mark", aria_hidden="true"), "workerd"),
        el("p", f"Log in to {gateway.config.node.name or 'this node'} with a token of gateway.token_file."),
        el(
            "label",
            "Token",
            el(
                "input", name="token", type="password", autocomplete="current-password", required=True,
                autofocus=True,
            ),
        ),
        el("p", id="wrong", class_="wrong", role="alert"),
        el("button", "Log in", class_="main"),
        id="login",
        class_="login",
        method="post",
        action="/login",
    )  # fmt: skip
    view = View("Log in", "", join(form))
    return respond(view, gateway.config.node.name or "workerd", live=None, leave=False)


async def logout(request: Request) -> Response:
    """End the session in this browser."""
    await params.body(request, EmptyBody)
    result = answer({"ok": True})
    result.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
    return result


ROUTES = [
    Route("/login", login, methods=["POST"]),
    Route("/login", login_page, methods=["GET"]),
    Route("/ui/logout", logout, methods=["POST"]),
    Route("/ui/logout", only_post, methods=["GET"]),
]
