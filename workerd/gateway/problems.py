"""Errors as RFC 9457 problem documents: what was expected, and what to do next."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from workerd.errors import (
    Conflict,
    HandlerNotFound,
    NotFound,
    StoreAway,
    StoreError,
    TooManyWaiting,
    WrongVersion,
)

RETRY_AFTER = 2
"""Seconds that a client is told to wait when the store or the node cannot take it now."""


class HTTPProblem(Exception):
    """An answer that is an error. `detail`: one sentence for whoever sent the request."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None, **more: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}
        self.more = more


def response(problem: HTTPProblem) -> Response:
    """The document of a problem."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        **problem.more,
    }
    return Response(
        msgspec.json.encode(body),
        status_code=problem.status,
        media_type="application/problem+json",
        headers={"Cache-Control": "no-store", **problem.headers},
    )


def of(error: Exception) -> HTTPProblem:
    """The problem that an error of the program means to a client."""
    match error:
        case HTTPProblem():
            return error
        case HandlerNotFound():
            return HTTPProblem(422, str(error))
        case NotFound():
            return HTTPProblem(404, str(error))
        case Conflict():
            return HTTPProblem(409, str(error))
        case TooManyWaiting():
            return HTTPProblem(429, str(error), {"Retry-After": str(RETRY_AFTER)})
        case WrongVersion():
            return HTTPProblem(503, str(error), {"Retry-After": "30"})
        case StoreAway():
            return away()
        case StoreError():
            return HTTPProblem(422, f"The store refused it: {error}")
        case ValueError():
            return HTTPProblem(422, str(error))
        case _:
            return HTTPProblem(500, "The gateway met a fault of its own; its log says more.")


def away() -> HTTPProblem:
    """The store does not answer now."""
    return HTTPProblem(
        503, "The store does not answer; nothing was changed, try again.", {"Retry-After": str(RETRY_AFTER)}
    )


async def respond(request: Request, error: Exception) -> Response:
    """Starlette's handler of every exception."""
    return response(of(error))
