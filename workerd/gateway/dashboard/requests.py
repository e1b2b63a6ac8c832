"""The list of requests, and the page of one request with its graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workerd.clock import from_rfc3339
from workerd.document_types import Document
from workerd.documents import request_title
from workerd.gateway.dashboard.components import (
    DASH,
    Child,
    Markup,
    badge,
    button,
    card,
    code,
    el,
    error_text,
    facts,
    join,
    json_text,
    microseconds,
    moment,
    notice,
    number,
    pager,
    path,
    reveal_buttons,
    select,
    short_id,
    state_name,
    table,
    when,
)
from workerd.gateway.dashboard.graph import draw
from workerd.gateway.dashboard.jobs import state_badge
from workerd.gateway.dashboard.pages import PAGE_SIZE, PageQuery, View
from workerd.gateway.params import parsed_status
from workerd.operations import requests as operations
from workerd.operations.requests import RequestDetails
from workerd.workflow import REQUEST_ENDED, RequestStatus

FILTERS = ("workflow", "status")
"""Query parameters of the list."""
MAX_JOBS_SHOWN = 500
"""Jobs of a request that its page lists."""
MAX_NEEDS_SHOWN = 20
"""Needs of a job that the list names."""


async def requests(query: PageQuery) -> View:
    """Requests, newest first, with filters."""
    status = query.get("status")
    filters: dict[str, Any] = {
        "status": parsed_status(status, RequestStatus) if status else None,
        "workflow": query.get("workflow") or None,
        "limit": PAGE_SIZE,
        "after": query.after,
    }
    page = await query.gateway.backend.read(
        lambda tx: operations.list_(tx, **filters, rules=query.gateway.rules)
    )
    rows = [_row(request) for request in page.requests]
    headers = ("Request", "Workflow", "State", "Progress", "Created", "Duration", "Error")
    listing = join(
        table(
            "Requests, newest first",
            headers,
            rows,
            "No request matches these filters.",
            minor=("Step",),
        ),
        pager("/ui/requests", query.filters(*FILTERS), page.next, first=query.after is None),
    )
    head = join(el("h1", "Requests"), _filter_form(query))
    return View("Requests", "/ui/requests", head, {"list": listing})


def _filter_form(query: PageQuery) -> Markup:
    selected = query.get("workflow")
    names = sorted({*query.gateway.config.workflows, *([selected] if selected else [])})
    return el(
        "form",
        select("workflow", "Workflow", [("", "all"), *((name, name) for name in names)], selected),
        select(
            "status",
            "State",
            [("", "all"), *((str(status), state_name(status)) for status in RequestStatus)],
            query.get("status"),
        ),
        el("button", "Apply", class_="main"),
        el("a", "Reset", href="/ui/requests") if query.filters(*FILTERS) else None,
        action="/ui/requests",
        class_="filters",
        role="search",
        aria_label="Filters",
    )


def _row(request: Document) -> tuple[Child, ...]:
    request_id = request["id"]
    return (
        el("a", short_id(request_id), href=path("ui", "requests", request_id), class_="id", title=request_id),
        request_title(request),
        badge(request["status"]),
        _progress(request),
        moment(request["created_at"]),
        _duration(request),
        error_text(request["error"]),
    )


def _duration(request: Document) -> str:
    created, completed = request["created_at"], request["completed_at"]
    if created is None or completed is None:
        return DASH
    return microseconds(max(0, from_rfc3339(completed) - from_rfc3339(created)))


# -- one request


async def request(query: PageQuery) -> View:
    """One request."""
    request_id = query.key
    details = await query.gateway.backend.read(
        lambda tx: operations.details(tx, query.gateway.config, request_id, query.gateway.rules)
    )
    request = details.request
    jobs_by_name = {job["name"]: job for job in request["jobs"] if job["name"]}
    graph = draw(details.graph, jobs_by_name) or el("p", _no_graph(details), class_="empty")
    return View(
        f"Request {request_title(request)}",
        "/ui/requests",
        el(
            "p",
            el("a", "Requests", href="/ui/requests"), " / ", el("span", request["id"], class_="id"),
            class_="crumbs",
        ),
        {
            "head": _head(details, query.may_act),
            "error": notice("bad", "Error:", request["error"]) if request["error"] else Markup(""),
            "graph": card("Graph", graph),
            "details": _facts(details),
            "jobs": _jobs(details),
            "data": _data(request, query.may_act),
        },
    )  # fmt: skip


def _no_graph(details: RequestDetails) -> str:
    if details.graph:
        return "The graph has too many jobs to draw."
    return "The request has not started, and its workflow is not configured on this node."


def _progress(request: Document) -> str:
    failed = f", {request['failed']:,} failed" if request["failed"] else ""
    return f"{request['done']:,} of {request['total']:,}{failed}" if request["total"] else DASH


def _signal_button(request: Document, name: str) -> Markup:
    return button(
        f"Signal {name}",
        path("requests", request["id"], "signals", name),
        confirm=f"Send the signal {name}? Only the first one counts.",
        target="this request",
    )


def _head(details: RequestDetails, may_act: bool) -> Markup:
    request = details.request
    cancel = button(
        "Cancel",
        path("requests", request["id"], "cancel"),
        confirm="Cancel this request?",
        target="this request",
    )
    signals = [_signal_button(request, name) for name in details.signals]
    may_act = may_act and request["status"] not in REQUEST_ENDED
    return el(
        "div",
        el("h1", request_title(request), " ", badge(request["status"])),
        el("p", signals, cancel, class_="actions") if may_act else None,
        class_="title",
    )


def _facts(details: RequestDetails) -> Markup:
    request = details.request
    return card(
        "Details",
        facts(
            [
                ("Created", when(request["created_at"])),
                ("Ended", when(request["completed_at"])),
                ("Duration", _duration(request)),
                ("Step", number(request["step"])),
                ("Name", request["name"]),
                ("Progress", _progress(request)),
            ]
        ),
    )


def _needs_text(needs: Sequence[str]) -> str:
    more = len(needs) - MAX_NEEDS_SHOWN
    shown = ", ".join(needs[:MAX_NEEDS_SHOWN])
    return f"{shown} and {more:,} more" if more > 0 else shown


def _jobs(details: RequestDetails) -> Markup:
    needs = {job.name: job.needs for job in details.graph}
    jobs = details.request["jobs"]
    rows = [
        (
            el("a", job["name"] or short_id(job["id"]), href=path("ui", "jobs", job["id"])),
            job["handler"],
            state_badge(job),
            _needs_text(needs.get(job["name"] or "", ())) or DASH,
            number(job["attempt"]),
            microseconds(job["run_us"]),
            error_text(job["error"]),
        )
        for job in jobs[:MAX_JOBS_SHOWN]
    ]
    headers = ("Job", "Handler", "State", "Needs", "Attempt", "Run time", "Error")
    more = f"{len(jobs) - MAX_JOBS_SHOWN:,} more jobs are not shown." if len(jobs) > MAX_JOBS_SHOWN else None
    return card(
        "Jobs",
        table(
            "Jobs of this request",
            headers,
            rows,
            "No job has been created yet.",
            minor=("Needs", "Attempt"),
        ),
        el("p", more, class_="empty") if more else None,
    )


def _data(request: Document, may_act: bool) -> Markup:
    values = request["params"], request["extras"]
    return card(
        "Data",
        el("h3", "Params"),
        code(json_text(request["params"]), "Params"),
        el("h3", "Extras"),
        code(json_text(request["extras"]), "Extras"),
        note=reveal_buttons(path("requests", request["id"]), values, may_act),
    )
