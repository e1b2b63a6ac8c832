"""Path and query parameters: decoded and checked before anything is done."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from enum import StrEnum
from typing import TypeVar

from starlette.requests import Request

from workerd import clock
from workerd import fingerprint as fingerprints
from workerd.config.quantities import duration
from workerd.errors import InvalidValue
from workerd.gateway.headers import headers_of
from workerd.gateway.named_page import NODE_CURSOR, NamedPage
from workerd.gateway.problems import HTTPProblem
from workerd.job import NAME_LIMIT, parse_id
from workerd.outcome import Reason
from workerd.tracing.context import TRACEPARENT, TRACESTATE, TraceContext
from workerd.tracing.context import parse as parse_trace

S = TypeVar("S", bound=StrEnum)
DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 500
"""Rows."""
MAX_WAIT_S = 300.0
META = "meta."
"""How query parameters begin that name a key of meta."""


def check_query(given: Iterable[str], known: Collection[str]) -> None:
    """Raises HTTPProblem 422 for query parameters that are not `known`, lest a misspelt filter is ignored."""
    unknown = sorted(
        name for name in set(given).difference(known) if not (name.startswith(META) and f"{META}KEY" in known)
    )
    if unknown:
        names = ", ".join(repr(name[:60]) for name in unknown[:5])
        raise HTTPProblem(
            422, f"Unknown query parameter {names}; this path takes {', '.join(known) or 'none'}."
        )


def job_id(request: Request) -> bytes:
    """The id in the path. Raises HTTPProblem 404 for text that is no id."""
    return parsed_id(request.path_params["id"])


def parsed_id(text: str) -> bytes:
    """The 16 bytes of an id in UUID form. Raises HTTPProblem 404 for other text."""
    try:
        return parse_id(text)
    except ValueError as error:
        raise HTTPProblem(404, f"Not found: {error}.") from None


def limit(request: Request) -> int:
    """Query parameter `limit`. Raises HTTPProblem 422."""
    text = request.query_params.get("limit")
    if text is None:
        return DEFAULT_PAGE_SIZE
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:9]) <= MAX_PAGE_SIZE or len(text) > 9:
        raise HTTPProblem(
            422, f"limit: expected a whole number from 1 to {MAX_PAGE_SIZE}, got {text[:60]!r}."
        )
    return int(text)


def named_page(request: Request) -> NamedPage:
    """Query parameters `limit`, without which all are listed, and `after`. Raises HTTPProblem 422."""
    return NamedPage(_limit_or_all(request), text(request, "after"))


def node_page(request: Request) -> NamedPage:
    """As `named_page`; `after` has the id too, since incarnations of a node share its name."""
    after = cursor(request)
    if after is not None and re.fullmatch(NODE_CURSOR, after) is None:
        raise HTTPProblem(422, "after: expected `next` of a page.")
    return NamedPage(_limit_or_all(request), after, of_nodes=True)


def _limit_or_all(request: Request) -> int | None:
    return limit(request) if "limit" in request.query_params else None


def status(request: Request, statuses: type[S]) -> S | None:
    """Query parameter `status`. Raises HTTPProblem 422."""
    text = request.query_params.get("status")
    return None if text is None else parsed_status(text, statuses)


def parsed_status(text: str, statuses: type[S]) -> S:
    """A member of `statuses`. Raises HTTPProblem 422."""
    try:
        return statuses(text)
    except ValueError:
        raise HTTPProblem(422, f"status: expected one of {', '.join(statuses)}, got {text[:60]!r}.") from None


def since(request: Request) -> int | None:
    """Query parameter `since`, as store time in microseconds. Raises HTTPProblem 422."""
    text = request.query_params.get("since")
    return None if text is None else parsed_moment(text, "since")


def until(request: Request) -> int | None:
    """Query parameter `until`, as `since`."""
    text = request.query_params.get("until")
    return None if text is None else parsed_moment(text, "until")


def parsed_moment(text: str, name: str) -> int:
    """RFC 3339 as store time in microseconds. Raises HTTPProblem 422."""
    try:
        return clock.from_rfc3339(text)
    except ValueError as error:
        raise HTTPProblem(422, f"{name}: {error}.") from None


def text(request: Request, name: str) -> str | None:
    """A query parameter that is a name. Raises HTTPProblem 422 if it is empty or too long."""
    value = request.query_params.get(name)
    if value is not None and not 0 < len(value) <= NAME_LIMIT:
        raise HTTPProblem(422, f"{name}: expected 1 to {NAME_LIMIT} characters.")
    return value


def reason(request: Request) -> Reason | None:
    """Query parameter `reason`. Raises HTTPProblem 422."""
    text = request.query_params.get("reason")
    return None if text is None else parsed_reason(text)


def parsed_reason(text: str) -> Reason:
    """How an attempt ended. Raises HTTPProblem 422."""
    try:
        return Reason(text)
    except ValueError:
        raise HTTPProblem(422, f"reason: expected one of {', '.join(Reason)}, got {text!r:.60}.") from None


def fingerprint(request: Request, name: str) -> bytes | None:
    """A query parameter that is a fingerprint. Raises HTTPProblem 422."""
    value = request.query_params.get(name)
    return None if value is None else parsed_fingerprint(value, name)


def parsed_fingerprint(text: str, name: str = "error") -> bytes:
    """A fingerprint in hex. Raises HTTPProblem 422."""
    try:
        return fingerprints.parse(text)
    except InvalidValue as error:
        raise HTTPProblem(422, f"{name}: {error}.") from None


def identity(request: Request, name: str) -> bytes | None:
    """A query parameter that is an id. Raises HTTPProblem 422."""
    value = request.query_params.get(name)
    return None if value is None else parsed_identity(value, name)


def parsed_identity(text: str, name: str) -> bytes:
    """The 16 bytes of an id that is a filter. Raises HTTPProblem 422."""
    try:
        return parse_id(text)
    except ValueError as error:
        raise HTTPProblem(422, f"{name}: {error}.") from None


def meta(request: Request) -> dict[str, str] | None:
    """The query parameters `meta.KEY`, by key. Raises HTTPProblem 422 for one without a key."""
    given = {
        name.removeprefix(META): value
        for name, value in request.query_params.items()
        if name.startswith(META)
    }
    if "" in given:
        raise HTTPProblem(422, "meta.: expected meta.KEY=VALUE, got an empty key.")
    return given or None


def attempt(request: Request) -> int | None:
    """Query parameter `attempt`. Raises HTTPProblem 422."""
    text = request.query_params.get("attempt")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or not int(text):
        raise HTTPProblem(422, f"attempt: expected a whole number from 1, got {text[:60]!r}.")
    return int(text)


def flag(request: Request, name: str) -> bool:
    """A query parameter that is `true` or `1`, `false` or `0`, false without it. Raises HTTPProblem 422."""
    text = request.query_params.get(name, "false")
    if text not in ("true", "1", "false", "0"):
        raise HTTPProblem(422, f"{name}: expected true or false, got {text[:60]!r}.")
    return text in ("true", "1")


def cursor(request: Request) -> str | None:
    """Query parameter `after`; the store checks it."""
    return request.query_params.get("after")


def wait(request: Request) -> float:
    """Query parameter `wait` in seconds, at most MAX_WAIT_S; 0 without it. Raises HTTPProblem 422."""
    text = request.query_params.get("wait")
    if text is None:
        return 0.0
    try:
        return min(duration(float(text) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) else text), MAX_WAIT_S)
    except ValueError as error:
        raise HTTPProblem(422, f"wait: {error}.") from None


def trace_context(request: Request) -> TraceContext | None:
    """The caller's span, by the headers of W3C; None without one that can be read."""
    headers = headers_of(request.scope)
    return parse_trace(headers.get(TRACEPARENT, ""), headers.get(TRACESTATE, ""))
