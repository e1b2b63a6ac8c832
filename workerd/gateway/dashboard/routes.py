"""The dashboard's routes, and which view belongs to which path."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from workerd.errors import WorkerdError
from workerd.gateway.auth import COOKIE
from workerd.gateway.dashboard import handlers, jobs, overview, requests
from workerd.gateway.dashboard.pages import ASSETS, PageQuery, View, problem, respond
from workerd.gateway.problems import HTTPProblem, of
from workerd.gateway.state import GatewayState, state

Show = Callable[[PageQuery], Awaitable[View]]

VIEWS: tuple[tuple[re.Pattern[str], Show], ...] = (
    (re.compile(r"/"), overview.overview),
    (re.compile(r"/ui/jobs"), jobs.jobs),
    (re.compile(r"/ui/jobs/(?P<ident>[^/]+)"), jobs.job),
    (re.compile(r"/ui/requests"), requests.requests),
    (re.compile(r"/ui/requests/(?P<ident>[^/]+)"), requests.request),
    (re.compile(r"/ui/handlers"), handlers.handlers),
    (re.compile(r"/ui/schedules"), handlers.schedules),
)


async def view_of(gateway: GatewayState, path: str, query: str) -> View:
    """The view that belongs to a path. Raises Problem 404, and what the view raises."""
    for pattern, show in VIEWS:
        match = pattern.fullmatch(path)
        if match is not None:
            return await show(PageQuery(gateway, QueryParams(query), match.groupdict().get("ident", "")))
    raise HTTPProblem(404, "There is no such page.")


async def page(request: Request) -> Response:
    """Any page."""
    if request.scope.get("workerd.locked"):
        return RedirectResponse("/login", 303, {"Cache-Control": "no-store"})
    gateway = state(request)
    node = gateway.config.node.name or "workerd"
    path, query = request.url.path, request.url.query
    leave = gateway.tokens.wanted and COOKIE in request.cookies
    try:
        view = await view_of(gateway, path, query)
    except (WorkerdError, ValueError, HTTPProblem) as error:
        met = of(error)
        title = "Not found" if met.status == 404 else "This cannot be shown"
        return problem(title, met.detail, node, met.status, leave)
    return respond(view, node, live=f"{path}?{query}" if query else path, leave=leave)


async def static(request: Request) -> Response:
    """A file of the package."""
    asset = ASSETS.get(request.path_params["name"])
    if asset is None:
        raise HTTPProblem(404, "There is no such file.")
    return Response(
        asset.data,
        media_type=asset.media_type,
        headers={"Cache-Control": "public, max-age=86400, immutable", "X-Content-Type-Options": "nosniff"},
    )


ROUTES = [
    Route("/", page, methods=["GET"]),
    Route("/ui/static/{name}", static, methods=["GET"]),
    Route("/ui/{rest:path}", page, methods=["GET"]),
]
