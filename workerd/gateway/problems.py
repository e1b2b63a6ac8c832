"""Errors as RFC 9457 problem documents."""

from __future__ import annotations

import hashlib
import traceback
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from workerd import log
from workerd.errors import (
    CommitUnknown,
    Conflict,
    HandlerNotFound,
    InvalidValue,
    NotFound,
    StoreAway,
    StoreBusy,
    StoreError,
    TooManyWaiting,
    WrongVersion,
)

_log = log.get_logger("gateway")

RETRY_AFTER_S = 2
"""Retry-After of answers that mean that the store or the node cannot take the request now."""
WRONG_VERSION_RETRY_AFTER_S = 30
OVERLOADED_RETRY_AFTER_S = 1


DATA_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
"""Of answers that are data: no cache keeps them, and no browser takes them for a page."""


class HTTPProblem(Exception):
    """An error answer. `detail`: one sentence for the client; `members`: further members of the document."""

    def __init__(
        self, status: int, detail: str, headers: dict[str, str] | None = None, **members: Any
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}
        self.members = members


def problem_response(problem: HTTPProblem) -> Response:
    """The problem as a response."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        **problem.members,
    }
    return Response(
        msgspec.json.encode(body),
        status_code=problem.status,
        media_type="application/problem+json",
        headers={**DATA_HEADERS, **problem.headers},
    )


def unavailable(detail: str, retry_after_s: int = RETRY_AFTER_S) -> HTTPProblem:
    """A 503 with Retry-After."""
    return HTTPProblem(503, detail, {"Retry-After": str(retry_after_s)})


def commit_unknown(error: CommitUnknown) -> HTTPProblem:
    """The 503 of a change that may have been made; `ids` are its jobs and requests, if there are any."""
    return HTTPProblem(
        503,
        f"{error.WARNING}; a repeat with the same Idempotency-Key is safe.",
        {"Retry-After": str(RETRY_AFTER_S)},
        unknown=True,
        ids=list(error.ids),
    )


def overloaded() -> HTTPProblem:
    """The 503 of a gateway whose queues are full."""
    return unavailable("The gateway is overloaded; retry in 1 s.", OVERLOADED_RETRY_AFTER_S)


def problem_of(error: Exception, path: str) -> HTTPProblem:
    """The problem that an error means to the client; logs it with an incident id if it is a bug of ours."""
    match error:
        case HTTPProblem():
            return error
        case HandlerNotFound() | InvalidValue():
            return HTTPProblem(422, str(error))
        case NotFound():
            return HTTPProblem(404, str(error))
        case Conflict():
            return HTTPProblem(409, str(error))
        case TooManyWaiting():
            return HTTPProblem(429, str(error), {"Retry-After": str(RETRY_AFTER_S)})
        case WrongVersion():
            return unavailable(str(error), WRONG_VERSION_RETRY_AFTER_S)
        case CommitUnknown():
            return commit_unknown(error)
        case StoreAway():
            return unavailable(f"{_why_away(error)}; nothing was changed. Retry later.")
        case StoreError():
            return HTTPProblem(422, f"The store refused the request: {error}")
        case _:
            return _crashed(error, path)


def _why_away(error: StoreAway) -> str:
    state = "busy" if isinstance(error, StoreBusy) else "unavailable"
    cause = f" ({str(error).rstrip('.')})" if error.answered else ""
    return f"The store is {state}{cause}"


def _crashed(error: Exception, path: str) -> HTTPProblem:
    # Equal faults share an id: the log drops repetitions, and each answered id must be found there.
    trace = "".join(traceback.format_exception(error))
    incident = hashlib.blake2b(trace.encode("utf-8", "replace"), digest_size=6).hexdigest()
    _log.error("route.crashed", incident=incident, path=path, exc_info=error)
    return HTTPProblem(
        500,
        f"Internal error; the gateway's log has the details under incident {incident}.",
        incident=incident,
    )


async def error_response(request: Request, error: Exception) -> Response:
    """Starlette's exception handler for errors of the program."""
    return problem_response(problem_of(error, request.scope["path"]))
