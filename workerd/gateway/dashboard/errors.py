"""The list of error groups, and the page of one group."""

from __future__ import annotations

from workerd.document_types import Document
from workerd.gateway.dashboard.charts import spark
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
    moment,
    number,
    pager,
    path,
    select,
    short_id,
    table,
    when,
)
from workerd.gateway.dashboard.pages import PAGE_SIZE, PageQuery, View
from workerd.gateway.errors import parsed_fingerprint
from workerd.operations import errors as operations
from workerd.operations import handlers
from workerd.operations.access import Tx
from workerd.operations.errors import ErrorPage

FILTERS = ("handler", "all")
"""Query parameters of the list."""
MUTED_FOR = "1d"
"""How long the button mutes a group."""


async def errors(query: PageQuery) -> View:
    """Groups of failures, the one that failed last first."""
    everything = query.get("all") == "true"

    def work(tx: Tx) -> tuple[ErrorPage, list[str]]:
        page = operations.list_(
            tx,
            handler=query.get("handler") or None,
            everything=everything,
            limit=PAGE_SIZE,
            after=query.after,
        )
        return page, [handler["name"] for handler in handlers.list_(tx, query.gateway.config)]

    page, names = await query.gateway.backend.read(work)
    headers = ("Error", "Handler", "Last 24 h", "Count", "First seen", "Last seen", "Newest job", "")
    listing = join(
        table(
            "Error groups, the one that failed last first",
            headers,
            [_row(group, query.may_act) for group in page.errors],
            "No group matches these filters." if query.filters(*FILTERS) else "No open errors.",
            minor=("First seen", "Newest job"),
        ),
        pager("/ui/errors", query.filters(*FILTERS), page.next, first=query.after is None),
    )
    return View(
        "Errors", "/ui/errors", join(el("h1", "Errors"), _filter_form(query, names)), {"list": listing}
    )


def _filter_form(query: PageQuery, names: list[str]) -> Markup:
    handler = query.get("handler")
    names = [*names, handler] if handler and handler not in names else names
    return el(
        "form",
        select("handler", "Handler", [("", "all"), *((name, name) for name in names)], handler),
        select("all", "Groups", [("", "open"), ("true", "open, resolved and muted")], query.get("all")),
        el("button", "Apply", class_="main"),
        el("a", "Reset", href="/ui/errors") if query.filters(*FILTERS) else None,
        action="/ui/errors",
        class_="filters",
        role="search",
        aria_label="Filters",
    )


def _row(group: Document, may_act: bool) -> tuple[Child, ...]:
    name = group["error_class"]
    link = el("a", name, href=path("ui", "errors", group["fingerprint"]), title=group["fingerprint"])
    return (
        join(link, " ", _state(group), " ", error_text(group["error"])),
        group["handler"],
        spark(group["hours"], f"Failures by hour, last 24 h: {sum(group['hours']):,}"),
        number(group["count"]),
        moment(group["first_seen"]),
        moment(group["last_seen"]),
        _newest(group),
        _buttons(group) if may_act else DASH,
    )


def _state(group: Document) -> Child:
    if group["open"]:
        return None
    return badge("resolved" if group["resolved_at"] is not None else "muted")


def _newest(group: Document) -> Markup:
    job = group["job_id"]
    return el("a", short_id(job), href=path("ui", "jobs", job), class_="id", title=job)


def _buttons(group: Document) -> Markup:
    fingerprint = group["fingerprint"]
    target = f"{group['error_class']} of {group['handler']}"
    return join(
        button("Resolve", path("errors", fingerprint, "resolve"), target=target)
        if group["resolved_at"] is None
        else None,
        button(
            "Mute 1 day",
            path("errors", fingerprint, "mute"),
            confirm=f"Mute {target} for a day? It is left out of this list and of alerts, but still counted.",
            body=f'{{"for":"{MUTED_FOR}"}}',
            target=target,
        ),
    )


async def error(query: PageQuery) -> View:
    """One group of failures."""
    fingerprint = parsed_fingerprint(query.item_id)
    group = await query.gateway.backend.read(lambda tx: operations.get(tx, fingerprint))
    resolved_by = f" by {group['resolved_by']}" if group["resolved_by"] else ""
    details = facts(
        [
            ("Handler", group["handler"]),
            ("Failures", number(group["count"])),
            ("First seen", when(group["first_seen"])),
            ("Last seen", when(group["last_seen"])),
            ("Resolved", join(when(group["resolved_at"]), resolved_by) if group["resolved_at"] else None),
            ("Muted until", when(group["muted_until"]) if group["muted_until"] else None),
            ("Newest job", join(_newest(group), f", attempt {group['attempt']}")),
            ("Jobs", el("a", "Jobs with this failure", href=f"/ui/jobs?error={group['fingerprint']}")),
            ("Last 24 h", spark(group["hours"], f"Failures by hour, last 24 h: {sum(group['hours']):,}")),
        ]
    )
    stack = card("Stack of the newest failure", code(group["stack"], "Stack")) if group["stack"] else None
    return View(
        f"Error {group['error_class']}",
        "/ui/errors",
        el(
            "p",
            el("a", "Errors", href="/ui/errors"),
            " / ",
            el("span", query.item_id, class_="id"),
            class_="crumbs",
        ),
        {
            "head": el(
                "div",
                el("h1", group["error_class"], " ", _state(group) or badge("failed", "open")),
                el("p", _buttons(group), class_="actions") if query.may_act else None,
                class_="title",
            ),
            "error": code(group["error"] or group["error_class"], "Newest error"),
            "details": card("Details", details),
            "stack": stack or Markup(""),
        },
    )
