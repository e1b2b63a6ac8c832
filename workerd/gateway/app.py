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
from workerd.gateway import handlers, health, jobs, login, requests, schema, stream
from workerd.gateway.dashboard import routes as dashboard
from workerd.gateway.dashboard.page import problem as page_problem
from workerd.gateway.guard import Guard, hosts_of
from workerd.gateway.problems import Problem, of, respond, response
from workerd.gateway.state import Gateway

ROUTES: list[Route] = [
    *jobs.ROUTES,
    *requests.ROUTES,
    *handlers.ROUTES,
    *health.ROUTES,
    *login.ROUTES,
    *stream.ROUTES,
    *schema.ROUTES,
    *dashboard.ROUTES,
]


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    path = request.url.path
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods(request))
        return response(Problem(405, f"{request.method} is not for this path.", headers))
    if error.status_code == 404 and path.startswith("/ui/"):
        node = request.app.state.gateway.config.node.name
        return page_problem("Not found", "There is no such page.", node, 404, leave=False)
    if error.status_code == 404:
        return response(Problem(404, "There is nothing at this path; GET /schema says what there is."))
    return response(Problem(error.status_code, str(error.detail), headers))


def _methods(request: Request) -> list[str]:
    """What this path takes, over all routes that it fits."""
    fitting = (route for route in ROUTES if route.path_regex.match(request.scope["path"]))
    return sorted({method for route in fitting for method in route.methods or ()})


async def _fault(request: Request, error: Exception) -> Response:
    problem = of(error)
    if problem.status == 500:
        log.get_logger("gateway").error("a fault in a route", path=request.url.path, exc_info=error)
    return response(problem)


class _Catching:
    """Answers what went wrong; Starlette's own net would raise it once more for the server to log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except ClientDisconnect:
            pass
        except RuntimeError as error:
            # Starlette answered with 500 already, and raises for a server to log; ours logs here.
            log.get_logger("gateway").error("a fault in a route", path=scope["path"], exc_info=error)


def application(gateway: Gateway, config: Config) -> ASGIApp:
    """The guarded application."""
    app = Starlette(
        routes=ROUTES,
        exception_handlers={
            HTTPException: _http_error,
            **dict.fromkeys((Problem, WorkerdError, ValueError), respond),
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
