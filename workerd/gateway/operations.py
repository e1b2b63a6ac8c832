"""Every route in words: what it takes, what it answers. /schema is made of this table."""

from __future__ import annotations

from typing import Any, NamedTuple

from workerd.gateway import answers, documents
from workerd.job import NAME_LIMIT, Status

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
    "limit", "Rows of the page.", type="integer", minimum=1, maximum=documents.MOST, default=documents.LIMIT
)
_AFTER = _query("after", "`next` of the page before.", type="string", pattern=r"^[0-9]{1,18}\.[0-9a-f]{32}$")
_SINCE = _query(
    "since", "Not older than this.", type="string", format="date-time", pattern=documents.MOMENT_PATTERN
)
_WAIT = _query(
    "wait",
    'Answer when it has ended, or after so long as it is: "10s", or seconds; at most 5 minutes.',
    type="string",
    pattern=documents.DURATION_PATTERN,
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
    Operation("post", "/jobs", "Enqueue a job", {200: answers.Job, 201: answers.Job}, documents.NewJob,
              headers=(_KEY,), errors=(409, 429)),
    Operation("get", "/jobs", "Jobs by state, newest first", {200: answers.Jobs}, query=(
        _query("handler", "Of this handler only.", **_NAME),
        _query("status", "In this state only.", type="string", enum=_STATES),
        _SINCE, _LIMIT, _AFTER), errors=(422,)),
    Operation("post", "/jobs/bulk", "Enqueue many jobs, all or none", {201: answers.Bulk}, documents.NewJobs,
              errors=(409, 429)),
    Operation("get", "/jobs/{id}", "A job with its attempts", {200: answers.Job}, query=(_WAIT,),
              errors=(404, 422)),
    Operation("get", "/jobs/{id}/payload", "What the job returned, as it is",
              {200: ("application/json", "application/octet-stream")}, errors=(404,)),
    Operation("post", "/jobs/{id}/cancel", "End a job", {200: answers.Job, 202: answers.Job},
              documents.Nothing, errors=(404, 409)),
    Operation("post", "/jobs/{id}/retry", "Run an ended job again", {201: answers.Job}, documents.Nothing,
              errors=(404, 409)),
    Operation("post", "/requests", "Begin a run of a workflow", {201: answers.Request}, documents.NewRequest),
    Operation("get", "/requests", "Requests, newest first", {200: answers.Requests}, query=(
        _query("workflow", "Of this workflow only.", **_NAME),
        _query("status", "In this state only.", type="string", enum=REQUEST_STATUSES),
        _SINCE, _LIMIT, _AFTER), errors=(422,)),
    Operation("get", "/requests/{id}", "A request with its jobs", {200: answers.Request}, query=(_WAIT,),
              errors=(404, 422)),
    Operation("post", "/requests/{id}/cancel", "End a request", {200: answers.Request, 202: answers.Request},
              documents.Nothing, errors=(404, 409)),
    Operation("get", "/handlers", "All handlers", {200: answers.Handlers}),
    Operation("post", "/handlers/{name}/pause", "Hold a handler back on every node", {200: answers.Handler},
              documents.Pause),
    Operation("post", "/handlers/{name}/resume", "Let a handler be claimed again", {200: answers.Handler},
              documents.Nothing),
    Operation("get", "/nodes", "All nodes", {200: answers.Nodes}),
    Operation("get", "/schedules", "All schedules", {200: answers.Schedules}),
    Operation("post", "/schedules/{name}/pause", "Let nothing recur until it is resumed",
              {200: answers.Schedule}, documents.Pause, errors=(404,)),
    Operation("post", "/schedules/{name}/resume", "Go on from now", {200: answers.Schedule},
              documents.Nothing, errors=(404,)),
    Operation("post", "/schedules/{name}/run", "Run it once now", {201: answers.Made}, documents.Nothing,
              errors=(404, 409)),
    Operation("get", "/heartbeat", "Whether the process answers", {200: answers.Heartbeat}, open=True,
              store=False),
    Operation("get", "/ready", "Whether the store answers and every role is up", {200: answers.Ready}),
    Operation("get", "/metrics", "What is measured, for Prometheus",
              {200: ("text/plain", "application/openmetrics-text")}, store=False),
    Operation("get", "/schema", "This document", {200: "application/json"}, store=False),
    Operation("post", "/login", "Trade a token for a session cookie", {200: answers.Done}, documents.Login,
              open=True, store=False),
    Operation("get", "/login", "The page that asks for a token", {200: HTML}, open=True, store=False),
    Operation("post", "/ui/logout", "End the session of this browser", {200: answers.Done}, documents.Nothing,
              open=True, store=False),
    Operation("get", "/", "The dashboard", _PAGE, open=True, store=False),
    *(Operation("get", path, words, {**_PAGE, 404: HTML, 422: HTML, 503: HTML}, open=True, store=False)
      for path, words in PAGES),
    Operation("get", "/ui/static/{name}", "A file of the dashboard",
              {200: ("text/css", "text/javascript", "image/svg+xml")}, errors=(404,), open=True, store=False),
    Operation("get", "/events", "The news of one page of the dashboard, as server-sent events",
              {200: STREAM}, query=(_VIEW,), errors=(422,)),
)  # fmt: skip
