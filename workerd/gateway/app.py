"""The application: routes, errors, and the guard around them."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from workerd import log
from workerd.config.model import Config
from workerd.errors import WorkerdError
from workerd.gateway import admin, event_stream, health, jobs, login, openapi, requests
from workerd.gateway.auth import Guard, hosts_of
from workerd.gateway.dashboard import routes as dashboard
from workerd.gateway.dashboard.pages import problem as page_problem
from workerd.gateway.problems import HTTPProblem, of, respond, response
from workerd.gateway.state import GatewayState

ROUTES: list[Route] = [
    *jobs.ROUTES,
    *requests.ROUTES,
    *admin.ROUTES,
    *health.ROUTES,
    *login.ROUTES,
    *event_stream.ROUTES,
    *openapi.ROUTES,
    *dashboard.ROUTES,
]


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    path = request.url.path
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods(request))
        return response(HTTPProblem(405, f"{request.method} is not for this path.", headers))
    if error.status_code == 404 and path.startswith("/ui/"):
        node = request.app.state.gateway.config.node.name
        return page_problem("Not found", "There is no such page.", node, 404, leave=False)
    if error.status_code == 404:
        return response(HTTPProblem(404, "There is nothing at this path; GET /schema says what there is."))
    return response(HTTPProblem(error.status_code, str(error.detail), headers))


def _methods(request: Request) -> list[str]:
    """What this path takes, over all routes that it fits."""
    path = request.scope["path"]
    fitting = [route for route in ROUTES if route.path == path]
    fitting = fitting or [route for route in ROUTES if route.path_regex.match(path)]
    fitting = [route for route in fitting if route.endpoint is not jobs.only_post]
    return sorted({method for route in fitting for method in route.methods or ()})


async def _fault(request: Request, error: Exception) -> Response:
    return response(of(error))


class _Catching:
    """Logs what went wrong: Starlette has answered, and raises it once more for a server to log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except ClientDisconnect:
            pass
        except Exception as error:
            log.get_logger("gateway").error("a fault in a route", path=scope["path"], exc_info=error)


def application(gateway: GatewayState, config: Config) -> ASGIApp:
    """The guarded application."""
    app = Starlette(
        routes=ROUTES,
        exception_handlers={
            HTTPException: _http_error,
            Exception: _fault,
            **dict.fromkeys((HTTPProblem, WorkerdError, ValueError), respond),
        },
    )
    app.router.redirect_slashes = False
    app.state.gateway = gateway
    return Guard(
        _Catching(app),
        gateway.tokens,
        hosts_of(config.gateway.listen, config.gateway.allowed_hosts),
        config.gateway.max_body,
        open_paths={"/metrics"} if config.gateway.open_metrics else (),
    )
