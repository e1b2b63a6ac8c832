"""The OpenAPI document: every route, what it takes and what it answers."""

from __future__ import annotations

import re
from functools import cache
from http import HTTPStatus
from typing import Any, Literal, NamedTuple

import msgspec
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.routing import Route

import workerd
from workerd.documents import Enqueued, Job, Request
from workerd.gateway import params
from workerd.gateway.jobs import answer
from workerd.gateway.state import state
from workerd.job import NAME_LIMIT, Status

Time = str | None


class ProblemDocument(msgspec.Struct, kw_only=True):
    """An error (RFC 9457). `detail`: one sentence on what was expected and what to do."""

    type: str
    title: str
    status: int
    detail: str


class Bulk(msgspec.Struct):
    """The jobs of a bulk, in its order."""

    items: list[Enqueued]


class Jobs(msgspec.Struct, kw_only=True):
    """Jobs, newest first, without payloads and attempts. `next`: the next page's `after`, null at the end."""

    jobs: list[Job]
    next: str | None


class Requests(msgspec.Struct, kw_only=True):
    """Requests, newest first, without their jobs."""

    requests: list[Request]
    next: str | None


class HandlerDocument(msgspec.Struct, kw_only=True):
    """A handler, with the live nodes that have it. `known`: some node has loaded it."""

    name: str
    known: bool
    signature: Any
    nodes: list[str]
    seen_at: Time
    paused_at: Time
    paused_by: str | None
    pause_reason: str | None


class Handlers(msgspec.Struct, kw_only=True):
    """All handlers."""

    handlers: list[HandlerDocument]
    next: None


class NodeDocument(msgspec.Struct, kw_only=True):
    """A running daemon, or one whose lease is over."""

    id: str
    name: str
    host: str
    pid: int | None
    version: str
    started_at: Time
    lease_until: Time
    state: Literal["up", "lost"]


class Nodes(msgspec.Struct, kw_only=True):
    """All nodes."""

    nodes: list[NodeDocument]
    next: None


class ScheduleDocument(msgspec.Struct, kw_only=True):
    """What recurs. `last_job`: the id of the job, or of the request of a workflow."""

    name: str
    kind: Literal["cron", "cooler"]
    expression: str
    timezone: str
    next_at: Time
    last_tick: Time
    last_job: str | None
    last_status: str | None
    last_end: Time
    paused_at: Time
    paused_by: str | None


class Schedules(msgspec.Struct, kw_only=True):
    """All schedules."""

    schedules: list[ScheduleDocument]
    next: None


class Made(msgspec.Struct):
    """The job, or the request of a workflow, that was begun."""

    id: str


class Done(msgspec.Struct):
    """It was done."""

    ok: bool


class Heartbeat(msgspec.Struct):
    """The process answers."""

    status: Literal["ok"]


class Ready(msgspec.Struct, kw_only=True):
    """The node is ready. `quarantined`: pools that are held back, and why."""

    ready: bool
    quarantined: dict[str, str | None]


HTML, STREAM = "text/html", "text/event-stream"
REQUEST_STATUSES = ["queuing", "inprogress", "completed", "failed", "cancelled"]


class Operation(NamedTuple):
    """One method of one path. `answers`: a type of answers, a media type, or None, by status."""

    method: str
    path: str
    summary: str
    answers: dict[int, Any]
    body: type | None = None
    query: tuple[dict[str, Any], ...] = ()
    headers: tuple[dict[str, Any], ...] = ()
    errors: tuple[int, ...] = ()
    open: bool = False
    store: bool = True


def _query(name: str, words: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": words, "schema": schema}


_LIMIT = _query(
    "limit",
    "Rows of the page.",
    type="integer",
    minimum=1,
    maximum=params.MAX_PAGE_SIZE,
    default=params.DEFAULT_PAGE_SIZE,
)
_AFTER = _query("after", "`next` of the page before.", type="string", pattern=r"^[0-9]{1,18}\.[0-9a-f]{32}$")
_SINCE = _query(
    "since", "Not older than this.", type="string", format="date-time", pattern=params.MOMENT_PATTERN
)
_WAIT = _query(
    "wait",
    'Answer when it has ended, or after so long as it is: "10s", or seconds; at most 5 minutes.',
    type="string",
    pattern=params.DURATION_PATTERN,
)
_NAME = {"type": "string", "minLength": 1, "maxLength": NAME_LIMIT}
_STATES = [str(status) for status in Status]
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The job's id follows from it and the handler: a repeat answers 200 with the same job.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[\\x20-\\x7e]+$"},
}
_VIEW = _query(
    "view", "The page whose news are wanted.", type="string", pattern="^/", maxLength=2000, default="/"
)
_PAGE = {200: HTML, 303: None}

PAGES = (
    ("/ui/jobs", "The dashboard's list of jobs"),
    ("/ui/jobs/{id}", "The dashboard's page of a job"),
    ("/ui/requests", "The dashboard's list of requests"),
    ("/ui/requests/{id}", "The dashboard's page of a request"),
    ("/ui/handlers", "The dashboard's handlers"),
    ("/ui/schedules", "The dashboard's schedules"),
)

OPERATIONS = (
    Operation("post", "/jobs", "Enqueue a job", {200: Job, 201: Job}, params.JobBody,
              headers=(_KEY,), errors=(409, 429)),
    Operation("get", "/jobs", "Jobs by state, newest first", {200: Jobs}, query=(
        _query("handler", "Of this handler only.", **_NAME),
        _query("status", "In this state only.", type="string", enum=_STATES),
        _SINCE, _LIMIT, _AFTER), errors=(422,)),
    Operation("post", "/jobs/bulk", "Enqueue many jobs, all or none", {201: Bulk}, params.JobsBody,
              errors=(409, 429)),
    Operation("get", "/jobs/{id}", "A job with its attempts", {200: Job}, query=(_WAIT,),
              errors=(404, 422)),
    Operation("get", "/jobs/{id}/payload", "What the job returned, as it is",
              {200: ("application/json", "application/octet-stream")}, errors=(404,)),
    Operation("post", "/jobs/{id}/cancel", "End a job", {200: Job, 202: Job},
              params.EmptyBody, errors=(404, 409)),
    Operation("post", "/jobs/{id}/retry", "Run an ended job again", {201: Job}, params.EmptyBody,
              errors=(404, 409)),
    Operation("post", "/requests", "Begin a run of a workflow", {201: Request}, params.RequestBody),
    Operation("get", "/requests", "Requests, newest first", {200: Requests}, query=(
        _query("workflow", "Of this workflow only.", **_NAME),
        _query("status", "In this state only.", type="string", enum=REQUEST_STATUSES),
        _SINCE, _LIMIT, _AFTER), errors=(422,)),
    Operation("get", "/requests/{id}", "A request with its jobs", {200: Request}, query=(_WAIT,),
              errors=(404, 422)),
    Operation("post", "/requests/{id}/cancel", "End a request", {200: Request, 202: Request},
              params.EmptyBody, errors=(404, 409)),
    Operation("get", "/handlers", "All handlers", {200: Handlers}),
    Operation("post", "/handlers/{name}/pause", "Hold a handler back on every node", {200: HandlerDocument},
              params.PauseBody),
    Operation("post", "/handlers/{name}/resume", "Let a handler be claimed again", {200: HandlerDocument},
              params.EmptyBody),
    Operation("get", "/nodes", "All nodes", {200: Nodes}),
    Operation("get", "/schedules", "All schedules", {200: Schedules}),
    Operation("post", "/schedules/{name}/pause", "Let nothing recur until it is resumed",
              {200: ScheduleDocument}, params.PauseBody, errors=(404,)),
    Operation("post", "/schedules/{name}/resume", "Go on from now", {200: ScheduleDocument},
              params.EmptyBody, errors=(404,)),
    Operation("post", "/schedules/{name}/run", "Run it once now", {201: Made}, params.EmptyBody,
              errors=(404, 409)),
    Operation("get", "/heartbeat", "Whether the process answers", {200: Heartbeat}, open=True,
              store=False),
    Operation("get", "/ready", "Whether the store answers and every role is up", {200: Ready}),
    Operation("get", "/metrics", "What is measured, for Prometheus",
              {200: ("text/plain", "application/openmetrics-text")}, store=False),
    Operation("get", "/schema", "This document", {200: "application/json"}, store=False),
    Operation("post", "/login", "Trade a token for a session cookie", {200: Done}, params.LoginBody,
              open=True, store=False),
    Operation("get", "/login", "The page that asks for a token", {200: HTML}, open=True, store=False),
    Operation("post", "/ui/logout", "End the session of this browser", {200: Done}, params.EmptyBody,
              open=True, store=False),
    Operation("get", "/", "The dashboard", _PAGE, open=True, store=False),
    *(Operation("get", path, words, {**_PAGE, 404: HTML, 422: HTML, 503: HTML}, open=True, store=False)
      for path, words in PAGES),
    Operation("get", "/ui/static/{name}", "A file of the dashboard",
              {200: ("text/css", "text/javascript", "image/svg+xml")}, errors=(404,), open=True, store=False),
    Operation("get", "/events", "The news of one page of the dashboard, as server-sent events",
              {200: STREAM}, query=(_VIEW,), errors=(422,)),
)  # fmt: skip


REF = "#/components/schemas/{name}"
PROBLEM = "application/problem+json"
_WORDS = {
    400: "The body is no valid JSON, or the request no valid HTTP.",
    401: "A token is expected.",
    403: "The Host is not served here.",
    404: "There is nothing of this name or id.",
    408: "The body did not arrive in time.",
    409: "It is in a state in which this cannot be done.",
    413: "The body is over `gateway.max_body`.",
    415: "The body is not `application/json`.",
    422: "The document or a parameter is not what was expected; the detail says what was.",
    429: "The handler has `max_waiting` jobs waiting.",
    503: "The store does not answer, or the node is ending or busy; send it again.",
}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "string"}}}
_BODY_ERRORS = (400, 408, 413, 415, 422)
_TIMES = re.compile(r".*_(at|until|end|tick)")


@cache
def document(locked: bool) -> bytes:
    """The document as JSON; `locked`: tokens are expected."""
    kinds = {op.body for op in OPERATIONS if op.body} | {ProblemDocument}
    kinds |= {kind for op in OPERATIONS for kind in op.answers.values() if isinstance(kind, type)}
    _, components = msgspec.json.schema_components(sorted(kinds, key=lambda k: k.__name__), ref_template=REF)
    _mark_times(components)
    paths: dict[str, dict[str, Any]] = {}
    for op in OPERATIONS:
        paths.setdefault(op.path, {})[op.method] = _operation(op, locked)
    whole: dict[str, Any] = {
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
        whole["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        whole["security"] = [{"token": []}]
    return msgspec.json.encode(whole)


def _mark_times(components: dict[str, Any]) -> None:
    """Times of answers are RFC 3339, which their Python types do not say."""
    for name, component in components.items():
        for key, schema in component.get("properties", {}).items():
            if _TIMES.fullmatch(key) and not name.startswith("New"):
                schema.clear()
                schema.update({"type": ["string", "null"], "format": "date-time"})


def _operation(op: Operation, locked: bool) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": op.summary,
        "operationId": re.sub(r"\W+", "_", f"{op.method}_{op.path}").strip("_"),
        "parameters": [*map(_path_parameter, re.findall(r"{(\w+)}", op.path)), *op.query, *op.headers],
        "responses": {str(status): described for status, described in _responses(op, locked).items()},
    }
    if op.body is not None:
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": REF.format(name=op.body.__name__)}}},
        }
    if locked and op.open:
        described["security"] = []
    return described


def _path_parameter(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": NAME_LIMIT}
    if name == "id":
        schema = {"type": "string", "format": "uuid"}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _responses(op: Operation, locked: bool) -> dict[int, dict[str, Any]]:
    found = {status: _answer(status, kind, op) for status, kind in op.answers.items()}
    errors = {*op.errors, 403}
    if op.body is not None:
        errors.update(_BODY_ERRORS)
    if op.store or op.body is not None:
        errors.add(503)
    if (locked and not op.open) or op.path == "/login":
        errors.add(401)
    for status in sorted(errors - found.keys()):
        schema = {"$ref": REF.format(name="Problem")}
        found[status] = {"description": _WORDS[status], "content": {PROBLEM: {"schema": schema}}}
        if status in (429, 503):
            found[status]["headers"] = _RETRY_AFTER
    return dict(sorted(found.items()))


def _answer(status: int, kind: Any, op: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    if isinstance(kind, type):
        schema = {"$ref": REF.format(name=kind.__name__)}
        described["content"] = {"application/json": {"schema": schema}}
    elif kind is not None:
        described["content"] = {media: {} for media in ([kind] if isinstance(kind, str) else kind)}
    if op.path in ("/jobs", "/requests") and op.method == "post":
        described["headers"] = {"Location": {"description": "Its path.", "schema": {"type": "string"}}}
    return described


async def show(request: HTTPRequest) -> Response:
    """The document."""
    result = answer(None)
    result.body = document(state(request).tokens.wanted)
    result.headers["content-length"] = str(len(result.body))
    return result


ROUTES = [Route("/schema", show, methods=["GET"])]
