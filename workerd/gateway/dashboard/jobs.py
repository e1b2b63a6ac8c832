"""The list of jobs, and the page of one job."""

from __future__ import annotations

from typing import Any

import msgspec

from workerd.document_types import Document
from workerd.gateway.dashboard.components import (
    DASH,
    Child,
    Markup,
    badge,
    el,
    error_text,
    join,
    microseconds,
    moment,
    number,
    pager,
    path,
    select,
    short_id,
    state_name,
    table,
)
from workerd.gateway.dashboard.pages import PAGE_SIZE, PageQuery, View
from workerd.gateway.params import (
    parsed_fingerprint,
    parsed_identity,
    parsed_moment,
    parsed_reason,
    parsed_status,
)
from workerd.gateway.problems import HTTPProblem
from workerd.job import Status
from workerd.job_filter import JobFilter
from workerd.operations import handlers
from workerd.operations import jobs as operations
from workerd.operations.access import Tx
from workerd.operations.bulk import STATES, Act
from workerd.operations.jobs import JobPage
from workerd.outcome import Reason

FILTERS = ("handler", "status", "since", "until", "reason", "error", "group", "request", "meta")
"""Query parameters of the list."""
_FILTER_STATES = (
    Status.NEW, Status.SCHEDULED, Status.INPROGRESS, Status.COMPLETED, Status.FAILURE, Status.CANCELLED
)  # fmt: skip


async def jobs(query: PageQuery) -> View:
    """Jobs, newest made or ended first, with filters."""
    status, error, meta = query.get("status"), query.get("error"), query.get("meta")
    request = query.get("request").strip()
    filters: dict[str, Any] = {
        "reason": parsed_reason(query.get("reason")) if query.get("reason") else None,
        "error": parsed_fingerprint(error) if error else None,
        "group": query.get("group") or None,
        "meta": _meta(meta) if meta else None,
        "handler": query.get("handler") or None,
        "status": parsed_status(status, Status) if status else None,
        "since": _moment(query, "since"),
        "until": _moment(query, "until"),
        "request": parsed_identity(request, "request") if request else None,
        "limit": PAGE_SIZE,
        "after": query.after,
    }

    def work(tx: Tx) -> tuple[JobPage, list[str]]:
        known = handlers.list_(tx, query.gateway.config)
        return operations.list_(tx, **filters, rules=query.gateway.rules), [
            handler["name"] for handler in known
        ]

    page, names = await query.gateway.backend.read(work)
    rows = [_row(job, query.may_act) for job in page.jobs]
    headers = ("Job", "Handler", "State", "Attempt", "Created", "Due", "Ended", "Run time", "Error")
    listing = join(
        table(
            "Jobs, newest first",
            headers,
            rows,
            "No job matches these filters.",
            minor=("Attempt", "Created", "Due", "Run time"),
        ),
        pager("/ui/jobs", query.filters(*FILTERS), page.next, first=query.after is None),
    )
    enqueue = el("p", el("a", "Enqueue a job", href="/ui/enqueue"), class_="actions")
    head = join(
        el("div", el("h1", "Jobs"), enqueue if query.may_act else None, class_="title"),
        _filter_form(query, names),
        _acts(JobFilter(**{name: filters[name] for name in JobFilter._fields if name in filters}))
        if query.may_act
        else None,
    )
    return View("Jobs", "/ui/jobs", head, {"list": listing})


def _acts(wanted: JobFilter) -> Markup:
    """Buttons that cancel or retry the ticked jobs, and, if the list is filtered, all that match."""
    chosen = {act: wanted.status in (None, *STATES[act]) for act in Act}
    ticked = [
        el("button", f"{act.capitalize()} ticked", type="button", data_ticked=act, disabled=True)
        for act in Act
        if chosen[act]
    ]
    everything = [
        el(
            "button", f"{act.capitalize()} all that match", type="button", data_all=f"/jobs/{act}",
            data_filter=msgspec.json.encode(wanted.document()).decode(),
        )
        for act in Act
        if chosen[act] and not wanted.is_empty
    ]  # fmt: skip
    return el(
        "div",
        el("label", el("input", type="checkbox", id="tick-all"), " Tick this page", class_="tick"),
        el("span", "none ticked", id="ticked", class_="sub", role="status"),
        ticked,
        everything,
        class_="bulk",
        role="group",
        aria_label="Act on several jobs",
    )


def _meta(text: str) -> dict[str, str]:
    """`key=value`, several with commas between. Raises HTTPProblem 422."""
    pairs = [part.strip().partition("=") for part in text.split(",")]
    if not all(key and equals for key, equals, _ in pairs):
        raise HTTPProblem(422, f"meta: expected KEY=VALUE, several with commas between, got {text!r:.60}.")
    return {key: value for key, _, value in pairs}


def _moment(query: PageQuery, name: str) -> int | None:
    text = query.get(name)
    return parsed_moment(_with_offset(text), name) if text else None


def _with_offset(text: str) -> str:
    """A browser's datetime field has no offset, and no seconds if they are 0; without a script it is UTC."""
    if len(text) == len("2026-01-31T12:00"):
        text += ":00"
    return text if text[-1] in "Zz" or "+" in text[10:] or "-" in text[10:] else text + "Z"


def _filter_form(query: PageQuery, names: list[str]) -> Markup:
    handler = query.get("handler")
    names = [*names, handler] if handler and handler not in names else names
    return el(
        "form",
        select("handler", "Handler", [("", "all"), *((name, name) for name in names)], handler),
        select(
            "status",
            "State",
            [("", "all"), *((str(status), state_name(status)) for status in _FILTER_STATES)],
            query.get("status"),
        ),
        _time(query, "since", "Created since"),
        _time(query, "until", "Created before"),
        select("reason", "Reason", [("", "all"), *((text, text) for text in Reason)], query.get("reason")),
        _field(query, "error", "Error (fingerprint)"),
        _field(query, "group", "Group"),
        _field(query, "request", "Request (id)"),
        _field(query, "meta", "Meta (KEY=VALUE)"),
        el("button", "Apply", class_="main"),
        el("a", "Reset", href="/ui/jobs") if query.filters(*FILTERS) else None,
        action="/ui/jobs",
        class_="filters",
        role="search",
        aria_label="Filters",
    )


def _time(query: PageQuery, name: str, label: str) -> Markup:
    value = query.get(name).rstrip("Zz")[:19] or None
    return el(
        "label",
        label,
        el("input", type="datetime-local", name=name, step="1", data_zone=True, value=value),
    )


def _field(query: PageQuery, name: str, label: str) -> Markup:
    return el("label", label, el("input", type="text", name=name, value=query.get(name), maxlength="191"))


def state_badge(document: Document) -> Markup:
    """The state of a job or an attempt, with the reason if it adds something."""
    status, reason = document["status"], document["reason"]
    return badge(status, reason if reason not in (None, "ok", status) else None)


def _row(job: Document, may_act: bool) -> tuple[Child, ...]:
    link = el("a", short_id(job["id"]), href=path("ui", "jobs", job["id"]), class_="id", title=job["id"])
    tick = el("input", type="checkbox", value=job["id"], class_="tick", aria_label=f"Tick job {job['id']}")
    return (
        join(tick, " ", link) if may_act else link,
        job["handler"],
        state_badge(job),
        number(job["attempt"]),
        moment(job["created_at"]),
        moment(job["run_at"]),
        moment(ended_at(job)) if job["complete"] else DASH,
        microseconds(job["run_us"]),
        error_text(job["error"]),
    )


def ended_at(job: Document) -> str | None:
    """When a job ended; one that never ran has only the time of its last write."""
    end: str | None = job["finished_at"] or job["ingested_at"]
    return end
