"""The OpenAPI document: made of the table of operations and of the types that routes take and answer."""

from __future__ import annotations

import re
from functools import cache
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import workerd
from workerd.gateway import answers
from workerd.gateway.jobs import answer
from workerd.gateway.operations import OPERATIONS, Operation
from workerd.gateway.state import state
from workerd.job import NAME_LIMIT

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
    kinds = {op.body for op in OPERATIONS if op.body} | {answers.Problem}
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


async def show(request: Request) -> Response:
    """The document."""
    result = answer(None)
    result.body = document(state(request).tokens.wanted)
    result.headers["content-length"] = str(len(result.body))
    return result


ROUTES = [Route("/schema", show, methods=["GET"])]
