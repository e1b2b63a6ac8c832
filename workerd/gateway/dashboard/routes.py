"""The dashboard's routes, and the view of each path."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from workerd.gateway.auth import LOGIN_REQUIRED
from workerd.gateway.dashboard import (
    audit,
    errors,
    handlers,
    job,
    job_forms,
    jobs,
    limits,
    overview,
    requests,
    schedules,
    search,
)
from workerd.gateway.dashboard.pages import ASSETS, PageQuery, View, page_response, problem_page
from workerd.gateway.params import check_query
from workerd.gateway.path_prefix import prefix_of
from workerd.gateway.path_segments import value_of
from workerd.gateway.problems import HTTPProblem, problem_of
from workerd.gateway.roles import Access, Caller, Route, caller_of, refused
from workerd.gateway.sessions import Cookie
from workerd.gateway.state import GatewayState, gateway_of


class Page(NamedTuple):
    """A page: its path, what renders it, its query parameters, and who may see it."""

    path: re.Pattern[str]
    view: Callable[[PageQuery], Awaitable[View]]
    params: tuple[str, ...] = ()
    access: Access = Access.READ


PAGES = (
    Page(re.compile(r"/"), overview.overview),
    Page(re.compile(r"/ui/jobs"), jobs.jobs, (*jobs.FILTERS, "after")),
    Page(re.compile(r"/ui/jobs/(?P<item_id>[^/]+)"), job.job),
    Page(re.compile(r"/ui/jobs/(?P<item_id>[^/]+)/edit"), job_forms.edit, access=Access.ACT),
    Page(re.compile(r"/ui/enqueue"), job_forms.enqueue, job_forms.FIELDS, Access.ACT),
    Page(re.compile(r"/ui/requests"), requests.requests, (*requests.FILTERS, "after")),
    Page(re.compile(r"/ui/requests/(?P<item_id>[^/]+)"), requests.request),
    Page(re.compile(r"/ui/errors"), errors.errors, (*errors.FILTERS, "after")),
    Page(re.compile(r"/ui/errors/(?P<item_id>[^/]+)"), errors.error),
    Page(re.compile(r"/ui/handlers"), handlers.handlers),
    Page(re.compile(r"/ui/limits"), limits.limits),
    Page(re.compile(r"/ui/schedules"), schedules.schedules),
    Page(re.compile(r"/ui/schedules/(?P<item_id>[^/]+)"), schedules.schedule),
    Page(re.compile(r"/ui/new-schedule"), schedules.new_schedule, schedules.FIELDS, Access.ACT),
    Page(re.compile(r"/ui/audit"), audit.audit, (*audit.FILTERS, "after"), Access.ACT),
)


async def view_of(gateway: GatewayState, path: str, query: str, caller: Caller) -> View:
    """The view of a path.

    Raises HTTPProblem 404 for an unknown path, 422 for an unknown parameter, 403 for a caller whose role may
    not see it, and what the view raises.
    """
    for page in PAGES:
        match = page.path.fullmatch(path)
        if match is not None:
            if not caller.may(page.access):
                raise refused(caller, page.access)
            given = QueryParams(query)
            check_query(given, page.params)
            return await page.view(
                PageQuery(gateway, given, value_of(match.groupdict().get("item_id", "")), caller)
            )
    raise HTTPProblem(404, "Page not found.")


async def page(request: Request) -> Response:
    """Any page."""
    prefix = prefix_of(request.headers)
    if request.scope.get(LOGIN_REQUIRED):
        return RedirectResponse(f"{prefix}/login", 303, {"Cache-Control": "no-store"})
    gateway, caller = gateway_of(request), caller_of(request)
    path, query = request.scope["path"], request.scope["query_string"].decode("latin-1")
    logged_in = _logged_in(request)
    try:
        view = await view_of(gateway, path, query, caller)
    except Exception as error:
        return problem_page(
            problem_of(error, path), gateway.node_name, prefix=prefix, logged_in=logged_in, caller=caller
        )
    live = f"{path}?{query}" if query else path
    return page_response(
        view, gateway.node_name, prefix=prefix, live=live, logged_in=logged_in, caller=caller
    )


async def find(request: Request) -> Response:
    """The search box: leads to what it names."""
    gateway, caller, prefix = gateway_of(request), caller_of(request), prefix_of(request.headers)
    if request.scope.get(LOGIN_REQUIRED):
        return RedirectResponse(f"{prefix}/login", 303, {"Cache-Control": "no-store"})
    try:
        if not caller.may(Access.READ):
            raise refused(caller, Access.READ)
        check_query(request.query_params, ("q",))
        found = await search.find(gateway, request.query_params.get("q", ""))
    except Exception as error:
        return problem_page(
            problem_of(error, request.scope["path"]),
            gateway.node_name,
            prefix=prefix,
            logged_in=_logged_in(request),
            caller=caller,
        )
    return RedirectResponse(prefix + found, 303, {"Cache-Control": "no-store"})


def _logged_in(request: Request) -> bool:
    tokens = gateway_of(request).tokens
    return tokens.required and Cookie.of(request.headers).name in request.cookies


async def start(request: Request) -> Response:
    """The dashboard's address without a page leads to its first one."""
    return RedirectResponse(f"{prefix_of(request.headers)}/", 303, {"Cache-Control": "no-store"})


async def static(request: Request) -> Response:
    """A static file."""
    asset = ASSETS.get(request.path_params["name"])
    if asset is None:
        raise HTTPProblem(404, "File not found.")
    return Response(
        asset.data,
        media_type=asset.media_type,
        headers={"Cache-Control": "public, max-age=86400, immutable", "X-Content-Type-Options": "nosniff"},
    )


ROUTES = [
    Route("/", page, methods=["GET"], access=Access.LOOK_UP),
    Route("/ui", start, methods=["GET"], access=Access.OPEN),
    Route("/ui/", start, methods=["GET"], access=Access.OPEN),
    Route("/ui/search", find, methods=["GET"], access=Access.LOOK_UP),
    Route("/ui/static/{name}", static, methods=["GET"], access=Access.OPEN),
    Route("/ui/{rest:path}", page, methods=["GET"], access=Access.LOOK_UP),
]
