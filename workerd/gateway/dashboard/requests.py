"""The list of requests, and one request with its graph."""

from __future__ import annotations

from typing import Any

from workerd import documents
from workerd import workflow as wf
from workerd.config.model import WorkflowJob
from workerd.gateway.dashboard import components
from workerd.gateway.dashboard.components import (
    Child,
    Markup,
    badge,
    button,
    card,
    code,
    el,
    facts,
    join,
    microseconds,
    moment,
    notice,
    number,
    pager,
    path,
    select,
    table,
)
from workerd.gateway.dashboard.graph import draw
from workerd.gateway.dashboard.pages import ROWS, PageQuery, View
from workerd.gateway.problems import HTTPProblem
from workerd.job import id_text
from workerd.store import requests as store
from workerd.store.columns import JobRow, RequestRow

JOBS_SHOWN = 500
"""Jobs of a request that its page lists."""


async def requests(look: PageQuery) -> View:
    """Requests, newest first, with filters."""
    status = look.get("status") or None
    if status is not None and status not in set(wf.RequestStatus):
        raise HTTPProblem(422, f"There is no state {status!r}; choose one from the list.")
    wanted: dict[str, Any] = {
        "status": status,
        "workflow": look.get("workflow") or None,
        "limit": ROWS,
        "after": look.after,
    }
    page = await look.gateway.backend.read(lambda tx: store.list_(tx, **wanted))
    headers = ("Request", "Workflow", "State", "Step", "Created", "Took", "Error")
    listed = join(
        table(
            "Requests, newest first",
            headers,
            [_row(row) for row in page.rows],
            "No request fits these filters.",
        ),
        pager("/ui/requests", look.filters("workflow", "status"), page.next, first=look.after is None),
    )
    return View("Requests", "/ui/requests", join(el("h1", "Requests"), _filters(look)), {"list": listed})


def _filters(look: PageQuery) -> Markup:
    chosen = look.get("workflow")
    names = sorted({*look.gateway.config.workflows, *([chosen] if chosen else [])})
    return el(
        "form",
        select("workflow", "Workflow", [("", "all"), *((name, name) for name in names)], chosen),
        select(
            "status",
            "State",
            [("", "all"), *((str(s), "running" if s == "inprogress" else str(s)) for s in wf.RequestStatus)],
            look.get("status"),
        ),
        el("button", "Show", class_="main"),
        el("a", "Reset", href="/ui/requests") if look.filters("workflow", "status") else None,
        action="/ui/requests",
        class_="filters",
        role="search",
        aria_label="Filters",
    )


def _row(row: RequestRow) -> tuple[Child, ...]:
    ident = id_text(row.id)
    return (
        el("a", components.short_id(ident), href=path("ui", "requests", ident), class_="id", title=ident),
        row.workflow,
        badge(row.status),
        number(row.step),
        moment(row.created_at),
        _took(row),
        el("span", row.error, class_="error") if row.error else "–",
    )


def _took(row: RequestRow) -> str:
    if row.completed_at is None:
        return "–"
    return components.seconds(max(0, row.completed_at - row.created_at) / 1e6)


# -- one request


async def request(look: PageQuery) -> View:
    """One request."""
    key = look.key
    row, jobs = await look.gateway.backend.read(lambda tx: store.get(tx, key))
    expected = _graph(row, look)
    by_name = {job.name: job for job in jobs if job.name}
    return View(
        f"Request {row.workflow}",
        "/ui/requests",
        el(
            "p",
            el("a", "Requests", href="/ui/requests"), " / ", el("span", id_text(row.id), class_="id"),
            class_="crumbs",
        ),
        {
            "head": _head(row),
            "trouble": notice("bad", "Error:", row.error) if row.error else Markup(""),
            "graph": card("Graph", draw(expected, by_name) or el("p", _no_graph(expected), class_="empty")),
            "facts": _facts(row, jobs, expected),
            "jobs": _jobs(jobs, expected),
            "documents": _documents(row),
        },
    )  # fmt: skip


def _graph(row: RequestRow, look: PageQuery) -> tuple[WorkflowJob, ...]:
    """The jobs of the request's graph, or of its workflow as it is configured while it was not begun."""
    if row.steps is not None:
        try:
            return wf.decode(row.steps).jobs
        except ValueError:
            return ()
    workflow = look.gateway.config.workflows.get(row.workflow)
    return () if workflow is None else workflow.jobs


def _no_graph(expected: tuple[WorkflowJob, ...]) -> str:
    return (
        "It has too many jobs to draw."
        if expected
        else "It was not begun yet, and its workflow is not known here."
    )


def _head(row: RequestRow) -> Markup:
    ended = row.status in wf.REQUEST_ENDED
    ident = id_text(row.id)
    cancel = button("Cancel", f"/requests/{ident}/cancel", ask="Cancel this request?", what="this request")
    return el(
        "div",
        el("h1", row.workflow, " ", badge(row.status)),
        None if ended else el("p", cancel, class_="actions"),
        class_="title",
    )


def _facts(row: RequestRow, jobs: list[JobRow], expected: tuple[WorkflowJob, ...]) -> Markup:
    done = sum(1 for job in jobs if job.status == "completed")
    return card(
        "Facts",
        facts(
            [
                ("Created", moment(row.created_at)),
                ("Ended", moment(row.completed_at)),
                ("Took", _took(row)),
                ("Step", number(row.step)),
                ("Jobs done", f"{done:,} of {max(len(jobs), len(expected)):,}"),
            ]
        ),
    )


def _jobs(jobs: list[JobRow], expected: tuple[WorkflowJob, ...]) -> Markup:
    needs = {job.name: ", ".join(job.needs) for job in expected}
    rows = [
        (
            el(
                "a",
                job.name or components.short_id(id_text(job.id)),
                href=path("ui", "jobs", id_text(job.id)),
            ),
            job.handler,
            badge(str(job.status), job.reason if job.reason not in (None, "ok", str(job.status)) else None),
            needs.get(job.name or "") or "–",
            number(job.attempt),
            microseconds(job.run_us),
            el("span", job.error, class_="error") if job.error else "–",
        )
        for job in jobs[:JOBS_SHOWN]
    ]
    headers = ("Job", "Handler", "State", "Needs", "Attempt", "Run time", "Error")
    more = f"{len(jobs) - JOBS_SHOWN:,} more are not shown." if len(jobs) > JOBS_SHOWN else None
    return card(
        "Jobs",
        table("Jobs of this request", headers, rows, "No job of it has begun."),
        el("p", more, class_="empty") if more else None,
    )


def _documents(row: RequestRow) -> Markup:
    return card(
        "Data",
        el("h3", "Params"),
        code(components.document(documents.json_value(row.params)), "Params"),
        el("h3", "Extras"),
        code(components.document(documents.json_value(row.extras)), "Extras"),
    )
