"""The ASGI application: all routes, error answers, and the guard in front of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette import routing
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from workerd.config.model import Config
from workerd.errors import WorkerdError
from workerd.gateway import admin, bulk, errors, event_stream, health, jobs, login, openapi, requests
from workerd.gateway.auth import PROBE_PATHS, Guard
from workerd.gateway.connections import ClientConnections
from workerd.gateway.dashboard import routes as dashboard
from workerd.gateway.dashboard.pages import problem_page
from workerd.gateway.hosts import HostRules
from workerd.gateway.params import check_query
from workerd.gateway.path_prefix import prefix_of
from workerd.gateway.path_segments import value_of
from workerd.gateway.problems import HTTPProblem, error_response, problem_response
from workerd.gateway.roles import Route, check_access
from workerd.gateway.state import GatewayState, gateway_of, only_post, wrong_method

Endpoint = Callable[[Request], Awaitable[Response]]

ROUTES: list[Route] = [
    *bulk.ROUTES,
    *jobs.ROUTES,
    *requests.ROUTES,
    *errors.ROUTES,
    *admin.ROUTES,
    *health.ROUTES,
    *login.ROUTES,
    *event_stream.ROUTES,
    *openapi.ROUTES,
    *dashboard.ROUTES,
]


_UNCHECKED = frozenset(
    {*PROBE_PATHS, "/ui", "/ui/", "/ui/search", "/ui/{rest:path}", "/ui/static/{name}", "/"}
)
"""Probes are answered whatever they add; pages check their own parameters."""


def _checked(route: Route) -> routing.Route:
    """The route, refusing roles that it does not admit, and query parameters that it does not know."""
    known = {
        op.method.upper(): tuple(parameter["name"] for parameter in op.query)
        for op in openapi.OPERATIONS
        if op.path == route.path
    }
    checks_query = route.path not in _UNCHECKED and route.endpoint is not only_post

    async def endpoint(request: Request) -> Response:
        check_access(request, route.access)
        if checks_query and request.scope["query_string"]:
            method = "GET" if request.method == "HEAD" else request.method
            check_query(request.query_params, known[method])
        given = request.scope.get("path_params")
        if given:
            request.scope["path_params"] = {name: value_of(text) for name, text in given.items()}
        answer: Response = await route.endpoint(request)
        return answer

    return routing.Route(route.path, endpoint, methods=sorted(route.methods or ()))


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return problem_response(wrong_method(request, *_methods(request.scope["path"])))
    if error.status_code == 404 and request.scope["path"].startswith("/ui/"):
        problem = HTTPProblem(404, "Page not found.")
        prefix = prefix_of(request.headers)
        return problem_page(problem, gateway_of(request).node_name, prefix=prefix, logged_in=False)
    if error.status_code == 404:
        return problem_response(HTTPProblem(404, "Path not found; GET /schema lists all paths."))
    return problem_response(HTTPProblem(error.status_code, str(error.detail), dict(error.headers or {})))


def _methods(path: str) -> set[str]:
    """The methods of all routes that match the path."""
    matching = [route for route in ROUTES if route.path == path]
    matching = matching or [route for route in ROUTES if route.path_regex.match(path)]
    return {method for route in matching if route.endpoint is not only_post for method in route.methods or ()}


class _ByPath:
    """Answers paths without parameters by one look-up, and hands all others to Starlette.

    Starlette tries its routes one after the other and wraps an answer in four layers: 10 % of the gateway's
    CPU time of `POST /jobs`.
    """

    def __init__(self, app: Starlette) -> None:
        self._app = app
        self._endpoints: dict[tuple[str, str], Endpoint] = {}
        for made, declared in zip(app.routes, ROUTES, strict=True):
            assert isinstance(made, routing.Route)
            if not made.param_convertors:
                for method in declared.methods or ():
                    self._endpoints.setdefault((method, made.path), made.endpoint)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._endpoints.get((scope["method"], scope["path"]))
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        scope["app"] = self._app
        request = Request(scope, receive, send)
        try:
            answer = await endpoint(request)
        except HTTPException as error:
            answer = await _http_exception(request, error)
        except Exception as error:
            answer = await _unexpected(request, error)
        await answer(scope, receive, send)


class _Answered:
    """Stops errors that Starlette has answered and raises again for a server to log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except Exception:  # logged where it was answered
            return


async def _unexpected(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        return Response()  # never sent
    return await error_response(request, error)


def application(gateway: GatewayState, config: Config, connections: ClientConnections) -> ASGIApp:
    """The application behind its guard."""
    app = Starlette(
        routes=[_checked(route) for route in ROUTES],
        exception_handlers={
            HTTPException: _http_exception,
            HTTPProblem: error_response,
            WorkerdError: error_response,
            Exception: _unexpected,
        },
    )
    app.router.redirect_slashes = False
    app.state.gateway = gateway
    app.state.routes = ROUTES
    return Guard(
        _Answered(_ByPath(app)),
        gateway.tokens,
        gateway.sessions,
        HostRules(config.gateway.listen, config.gateway.allowed_hosts),
        connections,
        config.gateway.max_body,
        open_paths={"/metrics"} if config.gateway.open_metrics else (),
    )
