"""The OpenAPI document: every operation with its parameters and answers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec
from starlette import requests as starlette_requests
from starlette.responses import Response

import workerd
from workerd.document_types import (
    Changed,
    EnqueuedJob,
    Handler,
    Job,
    Limit,
    Request,
    Schedule,
    Stats,
)
from workerd.gateway import bulk, params
from workerd.gateway.answers import (
    Acknowledged,
    AuditPage,
    BulkResult,
    ErrorDetails,
    ErrorsPage,
    Explanation,
    HandlersPage,
    Heartbeat,
    JobsPage,
    LimitsPage,
    NodesPage,
    ProblemDocument,
    Readiness,
    RequestsPage,
    SchedulesPage,
    StartedRun,
)
from workerd.gateway.auth import LIVENESS_PATH
from workerd.gateway.named_page import NODE_CURSOR
from workerd.gateway.problems import DATA_HEADERS
from workerd.gateway.roles import Access, Route
from workerd.gateway.state import gateway_of
from workerd.job import NAME_LIMIT, Status
from workerd.outcome import Reason
from workerd.workflow import RequestStatus

HTML, STREAM = "text/html", "text/event-stream"


class Operation(NamedTuple):
    """One method of one path. `answers`: a document type, media types, or None, by status."""

    method: str
    path: str
    summary: str
    answers: dict[int, Any]
    body: type | None = None
    query: tuple[dict[str, Any], ...] = ()
    headers: tuple[dict[str, Any], ...] = ()
    errors: tuple[int, ...] = ()
    open: bool = False


def _query(name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema}


_LIMIT = _query(
    "limit",
    "Rows of the page.",
    type="integer",
    minimum=1,
    maximum=params.MAX_PAGE_SIZE,
    default=params.DEFAULT_PAGE_SIZE,
)
_AFTER = _query(
    "after", "`next` of the previous page.", type="string", pattern=r"^[0-9]{1,18}\.[0-9a-f]{32}$"
)
_SINCE = _query(
    "since", "Only items since this time.", type="string", format="date-time", pattern=params.MOMENT_PATTERN
)
_JOBS_AFTER = _query(
    "after",
    "`next` of the previous page.",
    type="string",
    pattern=r"^(later\.)?[0-9]{1,18}\.[0-9a-f]{32}(\.[0-9]{1,18})?$",
)
_JOBS_SINCE = _query(
    "since",
    "Only jobs made since this time.",
    type="string",
    format="date-time",
    pattern=params.MOMENT_PATTERN,
)
_UNTIL = _query(
    "until",
    "Only jobs made before this time.",
    type="string",
    format="date-time",
    pattern=params.MOMENT_PATTERN,
)
_ATTEMPT = _query(
    "attempt",
    "Of this attempt; else the newest that has a log.",
    type="integer",
    minimum=1,
    maximum=999_999_999,
)
_ERRORS_AFTER = _query(
    "after", "`next` of the previous page.", type="string", pattern=r"^[0-9]{1,18}\.[0-9a-f]{16}$"
)
_ALL = _query(
    "all", "Resolved and muted groups too.", type="string", enum=["true", "false", "1", "0"], default="false"
)
_ERRORS_SINCE = _query(
    "since",
    "Only groups that failed since this time.",
    type="string",
    format="date-time",
    pattern=params.MOMENT_PATTERN,
)
_NAMED_LIMIT = _query(
    "limit", "Rows of the page; without it all.", type="integer", minimum=1, maximum=params.MAX_PAGE_SIZE
)
_NODES_AFTER = _query("after", "`next` of the previous page.", type="string", pattern=f"^{NODE_CURSOR}$")
_WAIT = _query(
    "wait",
    'Answer once it has ended, or after this time as it is: seconds, or text such as "10s"; at most 5 min.',
    type="string",
    pattern=params.DURATION_PATTERN,
)
_NAME = {"type": "string", "minLength": 1, "maxLength": NAME_LIMIT}
_NAMED_AFTER = _query("after", "`next` of the previous page.", **_NAME)
_REASONS = [str(reason) for reason in Reason]
_JOB_STATUSES = [str(status) for status in Status]
_REQUEST_STATUSES = [str(status) for status in RequestStatus]
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Ids are derived from it and the token: a repeat answers 200 with what the first has "
    "made, and 422 if its body is another.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[\\x20-\\x7e]+$"},
}
_TRACE = {
    "name": "traceparent",
    "in": "header",
    "description": "The caller's span, by the W3C: where traces are on, the enqueue is a part of its trace. "
    "One that is malformed is ignored.",
    "schema": {"type": "string"},
}
_VIEW = _query(
    "view", "The path of the page to follow.", type="string", pattern="^/", maxLength=2000, default="/"
)
_SOUGHT = _query(
    "q", "An id, a fingerprint, the name of a handler, or KEY=VALUE of meta.", type="string", minLength=1,
    maxLength=NAME_LIMIT,
)  # fmt: skip
_REVEAL = {
    "name": "X-Reveal",
    "in": "header",
    "description": "1: show values that are redacted, to an operator alone; the audit records it.",
    "schema": {"type": "string", "enum": ["0", "1"]},
}
_PAGE = {200: HTML, 303: None}

PAGES = (
    ("/ui/audit", "Dashboard: audit"),
    ("/ui/jobs", "Dashboard: jobs"),
    ("/ui/jobs/{id}", "Dashboard: one job"),
    ("/ui/jobs/{id}/edit", "Dashboard: form to change a job or retry it with other arguments"),
    ("/ui/enqueue", "Dashboard: form to enqueue a job"),
    ("/ui/requests", "Dashboard: requests"),
    ("/ui/requests/{id}", "Dashboard: one request"),
    ("/ui/errors", "Dashboard: error groups"),
    ("/ui/errors/{fp}", "Dashboard: one error group"),
    ("/ui/limits", "Dashboard: limits"),
    ("/ui/handlers", "Dashboard: handlers"),
    ("/ui/schedules", "Dashboard: schedules"),
    ("/ui/schedules/{name}", "Dashboard: one schedule"),
    ("/ui/new-schedule", "Dashboard: form for a schedule"),
)

OPERATIONS = (
    Operation("post", "/jobs", "Enqueue a job", {200: EnqueuedJob, 201: EnqueuedJob}, params.JobBody,
              headers=(_KEY, _TRACE), errors=(409, 429)),
    Operation("get", "/jobs", "List jobs, newest made or ended first", {200: JobsPage}, query=(
        _query("handler", "Only jobs of this handler.", **_NAME),
        _query("status", "Only jobs with this status.", type="string", enum=_JOB_STATUSES),
        _JOBS_SINCE, _UNTIL,
        _query("reason", "Only jobs whose newest attempt ended so.", type="string", enum=_REASONS),
        _query("error", "Only jobs that failed with the error of this fingerprint.", type="string",
               pattern="^[0-9a-fA-F]{16}$"),
        _query("group", "Only jobs of this group.", **_NAME),
        _query("request", "Only jobs of this request.", type="string", format="uuid"),
        _query("meta.KEY", "Only jobs whose meta has this text for KEY; may be given for several keys.",
               type="string"),
        _LIMIT, _JOBS_AFTER), headers=(_REVEAL,), errors=(422,)),
    Operation("post", "/jobs/bulk", "Enqueue several jobs, all or none", {200: BulkResult, 201: BulkResult},
              params.JobsBody, headers=(_KEY, _TRACE), errors=(409, 429)),
    Operation("post", "/jobs/cancel", "Cancel all jobs that match a filter", {200: Changed},
              bulk.CancelJobsBody, errors=(409,)),
    Operation("post", "/jobs/retry", "Run all jobs that match a filter again", {200: Changed},
              bulk.RetryJobsBody, errors=(409,)),
    Operation("get", "/jobs/{id}", "Get a job with its attempts", {200: Job}, query=(_WAIT,),
              headers=(_REVEAL,), errors=(404, 422)),
    Operation("get", "/jobs/{id}/why", "Explain what a job waits for, or how it ended", {200: Explanation},
              headers=(_REVEAL,), errors=(404,)),
    Operation("get", "/jobs/{id}/payload", "Get a job's payload as bytes",
              {200: ("application/json", "application/octet-stream")}, headers=(_REVEAL,), errors=(404,)),
    Operation("get", "/jobs/{id}/log", "Get what an attempt printed and logged", {200: "text/plain"},
              query=(_ATTEMPT,), errors=(404, 422)),
    Operation("post", "/jobs/{id}/cancel", "Cancel a job", {200: Job, 202: Job},
              params.EmptyBody, errors=(404, 409)),
    Operation("patch", "/jobs/{id}", "Change a job that waits", {200: Job}, params.EditBody,
              errors=(404, 409)),
    Operation("post", "/jobs/{id}/retry", "Run an ended job again", {201: Job}, params.RetryBody,
              errors=(404, 409)),
    Operation("post", "/requests", "Submit a request: run a workflow, or its own graph",
              {200: Request, 201: Request}, params.RequestBody, headers=(_KEY, _TRACE)),
    Operation("get", "/requests", "List requests, newest first", {200: RequestsPage}, query=(
        _query("workflow", "Only requests of this workflow.", **_NAME),
        _query("status", "Only requests with this status.", type="string", enum=_REQUEST_STATUSES),
        _SINCE, _LIMIT, _AFTER), headers=(_REVEAL,), errors=(422,)),
    Operation("get", "/requests/{id}", "Get a request with its jobs", {200: Request}, query=(_WAIT,),
              headers=(_REVEAL,), errors=(404, 422)),
    Operation("post", "/requests/{id}/signals/{name}", "Give a signal to a request", {202: Request},
              params.SignalBody, errors=(404, 409)),
    Operation("post", "/requests/{id}/cancel", "Cancel a request", {200: Request, 202: Request},
              params.EmptyBody, errors=(404, 409)),
    Operation("get", "/errors", "List error groups, last failed first", {200: ErrorsPage}, query=(
        _query("handler", "Only groups of this handler.", **_NAME), _ERRORS_SINCE, _ALL, _LIMIT,
        _ERRORS_AFTER), errors=(422,)),
    Operation("get", "/errors/{fp}", "Get an error group with the stack of its newest failure",
              {200: ErrorDetails}, errors=(404, 422)),
    Operation("post", "/errors/{fp}/resolve", "Close an error group until it comes back",
              {200: ErrorDetails}, params.EmptyBody, errors=(404,)),
    Operation("post", "/errors/{fp}/mute", "Leave an error group out of lists for some time",
              {200: ErrorDetails}, params.MuteBody, errors=(404,)),
    Operation("get", "/handlers", "List handlers", {200: HandlersPage},
              query=(_NAMED_LIMIT, _NAMED_AFTER), errors=(422,)),
    Operation("post", "/handlers/{name}/pause", "Pause a handler on all nodes", {200: Handler},
              params.PauseBody),
    Operation("post", "/handlers/{name}/resume", "Resume a handler", {200: Handler},
              params.EmptyBody),
    Operation("get", "/nodes", "List nodes", {200: NodesPage}, query=(_NAMED_LIMIT, _NODES_AFTER),
              errors=(422,)),
    Operation("get", "/limits", "List limits: what they allow, what is used", {200: LimitsPage}),
    Operation("post", "/limits/{name}/unhold", "End the hold of a limit, or of one of its groups",
              {200: Limit}, params.UnholdBody, errors=(404,)),
    Operation("get", "/stats", "Figures for scalers: jobs waiting and running, workers, rates",
              {200: Stats}),
    Operation("get", "/schedules", "List schedules", {200: SchedulesPage},
              query=(_NAMED_LIMIT, _NAMED_AFTER), errors=(422,)),
    Operation("get", "/schedules/{name}", "Get a schedule with its last ticks", {200: Schedule},
              errors=(404,)),
    Operation("put", "/schedules/{name}", "Create or replace a schedule", {200: Schedule, 201: Schedule},
              params.ScheduleBody, errors=(409,)),
    Operation("delete", "/schedules/{name}", "Remove a schedule that was set at run time", {204: None},
              errors=(404, 409)),
    Operation("post", "/schedules/{name}/pause", "Pause a schedule",
              {200: Schedule}, params.EmptyBody, errors=(404,)),
    Operation("post", "/schedules/{name}/resume", "Resume a schedule from now on", {200: Schedule},
              params.EmptyBody, errors=(404,)),
    Operation("post", "/schedules/{name}/run", "Run a schedule once now", {201: StartedRun}, params.EmptyBody,
              errors=(404, 409)),
    Operation("get", "/audit", "List what people and programs changed", {200: AuditPage}, query=(
        _query("actor", "Only what this person or program did.", **_NAME),
        _query("target", "Only what was done to this id or name.", **_NAME),
        _SINCE, _LIMIT, _AFTER), errors=(422,)),
    Operation("get", "/heartbeat", "Liveness: the process answers", {200: Heartbeat}, open=True),
    Operation("get", "/ready", "Readiness: the store answers and every role is up", {200: Readiness},
              open=True),
    Operation("get", "/metrics", "Prometheus metrics",
              {200: ("text/plain", "application/openmetrics-text")}),
    Operation("get", "/schema", "This document", {200: "application/json"}),
    Operation("post", "/login", "Exchange a token for a session cookie", {200: Acknowledged},
              params.LoginBody, errors=(429,), open=True),
    Operation("get", "/login", "Login form", {200: HTML}, open=True),
    Operation("post", "/ui/logout", "Log out: end the session of this browser", {200: Acknowledged},
              params.EmptyBody, open=True),
    Operation("get", "/", "Dashboard: overview", {**_PAGE, 422: HTML}, open=True),
    Operation("get", "/ui", "Dashboard: leads to its overview", {303: None}, open=True),
    *(Operation("get", path, summary, {**_PAGE, 404: HTML, 422: HTML, 503: HTML}, open=True)
      for path, summary in PAGES),
    Operation("get", "/ui/search", "Dashboard: leads to what an id or a name means",
              {303: None, 404: HTML, 422: HTML, 503: HTML}, query=(_SOUGHT,), open=True),
    Operation("get", "/ui/static/{name}", "Static file of the dashboard",
              {200: ("text/css", "text/javascript", "image/svg+xml")}, errors=(404,), open=True),
    Operation("get", "/events", "Updates of one dashboard page, as server-sent events",
              {200: STREAM}, query=(_VIEW,), errors=(422,)),
)  # fmt: skip


REF = "#/components/schemas/{name}"
PROBLEM = "application/problem+json"
_ERROR_DESCRIPTIONS = {
    400: "The body is not valid JSON, or the request not valid HTTP.",
    401: "A token is required.",
    403: "The role of the token is not admitted, the Host header is not allowed, or the request comes from a "
    "page of another site.",
    404: "Not found.",
    408: "The body did not arrive in time.",
    409: "Its current state does not allow this.",
    413: "The body exceeds `gateway.max_body`, or 4 KiB if it was sent without a token.",
    415: "The body is not `application/json`.",
    422: "A value in the body or a parameter is invalid; `detail` says what was expected.",
    429: "The handler has reached its `max_waiting`, or this address has failed to log in too often.",
    500: "Internal error; `incident` is its id in the log.",
    503: "The store is unavailable, or the node is shutting down or overloaded; retry later.",
}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "string"}}}
_BODY_ERRORS = (400, 408, 413, 415, 422)
_TIMES = re.compile(r".*_(at|until|end|tick|seen)")


Roles = tuple[tuple[str, str, tuple[str, ...]], ...]
"""Path, method and the roles that a route admits."""


def roles_of(routes: Iterable[Route]) -> Roles:
    """The roles that each route admits."""
    return tuple(
        (route.path, method.lower(), tuple(map(str, route.access.roles)))
        for route in routes
        for method in sorted(route.methods or ())
    )


@cache
def document(locked: bool, roles: Roles = ()) -> bytes:
    """The document as JSON; `locked`: tokens are required; `roles`: of operations that are not open."""
    admitted = {(path, method): names for path, method, names in roles}
    answers = {kind for op in OPERATIONS for kind in op.answers.values() if isinstance(kind, type)}
    bodies = {op.body for op in OPERATIONS if op.body}
    types = sorted({ProblemDocument, *answers, *bodies}, key=lambda kind: kind.__name__)
    _, components = msgspec.json.schema_components(types, ref_template=REF)
    any_json = components[params.SignalBody.__name__]
    components[params.SignalBody.__name__] = {key: any_json[key] for key in ("title", "description")}
    _mark_times({name: schema for name, schema in components.items() if not name.endswith("Body")})
    paths: dict[str, dict[str, Any]] = {}
    for op in OPERATIONS:
        operation = _operation(op, locked)
        if locked and not op.open and (op.path, op.method) in admitted:
            operation["x-roles"] = admitted[op.path, op.method]
        paths.setdefault(op.path, {})[op.method] = operation
    openapi: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "workerd",
            "version": workerd.__version__,
            "description": "Background jobs for teams who already have MySQL or MariaDB.",
        },
        "paths": paths,
        "components": {"schemas": components},
    }
    if locked:
        openapi["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        openapi["security"] = [{"token": []}]
    return msgspec.json.encode(openapi)


def _mark_times(components: dict[str, Any]) -> None:
    """Declare the times of answers as RFC 3339, which their Python types do not express."""
    for component in components.values():
        for key, schema in component.get("properties", {}).items():
            if _TIMES.fullmatch(key):
                schema.clear()
                schema.update({"type": ["string", "null"], "format": "date-time"})


def _operation(op: Operation, locked: bool) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": op.summary,
        "operationId": re.sub(r"\W+", "_", f"{op.method}_{op.path}").strip("_"),
        "parameters": [*map(_path_parameter, re.findall(r"{(\w+)}", op.path)), *op.query, *op.headers],
        "responses": {str(status): response for status, response in _responses(op, locked).items()},
    }
    if op.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": REF.format(name=op.body.__name__)}}},
        }
    if locked and op.open:
        operation["security"] = []
    return operation


def _path_parameter(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": NAME_LIMIT}
    if name == "id":
        schema = {"type": "string", "format": "uuid"}
    if name == "fp":
        schema = {"type": "string", "pattern": "^[0-9a-f]{16}$"}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _responses(op: Operation, locked: bool) -> dict[int, dict[str, Any]]:
    responses = {status: _response(status, kind, op) for status, kind in op.answers.items()}
    errors = {*op.errors, 403, 422, 500}
    if op.body is not None:
        errors.update(_BODY_ERRORS)
    if op.path != LIVENESS_PATH:  # it alone is answered when all connections are busy
        errors.add(503)
    if (locked and not op.open) or op.path == "/login":
        errors.add(401)
    for status in sorted(errors - responses.keys()):
        schema = {"$ref": REF.format(name=ProblemDocument.__name__)}
        responses[status] = {
            "description": _ERROR_DESCRIPTIONS[status],
            "content": {PROBLEM: {"schema": schema}},
        }
        if status in (429, 503):
            responses[status]["headers"] = _RETRY_AFTER
    return dict(sorted(responses.items()))


def _response(status: int, kind: Any, op: Operation) -> dict[str, Any]:
    response: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    if isinstance(kind, type):
        schema = {"$ref": REF.format(name=kind.__name__)}
        response["content"] = {"application/json": {"schema": schema}}
    elif kind is not None:
        response["content"] = {media: {} for media in ([kind] if isinstance(kind, str) else kind)}
    if op.path in ("/jobs", "/requests") and op.method == "post":
        response["headers"] = {
            "Location": {"description": "Path of the new item.", "schema": {"type": "string"}}
        }
    return response


async def show(request: starlette_requests.Request) -> Response:
    """The document."""
    return Response(
        document(gateway_of(request).tokens.required, roles_of(request.app.state.routes)),
        media_type="application/json",
        headers=DATA_HEADERS,
    )


ROUTES = [Route("/schema", show, methods=["GET"], access=Access.LOOK_UP)]
