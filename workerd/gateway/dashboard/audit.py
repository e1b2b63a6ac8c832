"""The page of the audit: what people and programs changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workerd.document_types import Document
from workerd.gateway.dashboard.components import (
    DASH,
    Child,
    Markup,
    card,
    el,
    join,
    json_line,
    moment,
    pager,
    path,
    table,
)
from workerd.gateway.dashboard.pages import PAGE_SIZE, PageQuery, View
from workerd.operations import audit as operations
from workerd.operations.audit import Action

FILTERS = ("actor", "target")
"""Query parameters of the list."""
ID_LENGTH = len("01900000-0000-7000-8000-000000000000")


async def audit(query: PageQuery) -> View:
    """What people and programs changed, newest first, with filters."""
    filters: dict[str, Any] = {name: query.get(name) or None for name in FILTERS}
    page = await query.gateway.backend.read(
        lambda tx: operations.list_(tx, **filters, limit=PAGE_SIZE, after=query.after)
    )
    listing = join(
        table(
            "What was done, newest first",
            ("When", "Who", "Role", "By", "Did", "To", "Detail", "From"),
            [_row(act) for act in page.audit],
            "No entry matches these filters." if query.filters(*FILTERS) else "No entries yet.",
            minor=("Role", "By", "From"),
        ),
        pager("/ui/audit", query.filters(*FILTERS), page.next, first=query.after is None),
    )
    return View("Audit", "/ui/audit", join(el("h1", "Audit"), _filter_form(query)), {"list": listing})


def _filter_form(query: PageQuery) -> Markup:
    return el(
        "form",
        el("label", "Who", el("input", name="actor", value=query.get("actor"), autocomplete="off")),
        el("label", "Id or name", el("input", name="target", value=query.get("target"), autocomplete="off")),
        el("button", "Apply", class_="main"),
        el("a", "Reset", href="/ui/audit") if query.filters(*FILTERS) else None,
        action="/ui/audit",
        class_="filters",
        role="search",
        aria_label="Filters",
    )


def _row(act: Document) -> tuple[Child, ...]:
    return (
        moment(act["at"]),
        act["actor"],
        act["role"],
        act["via"],
        el("b", act["action"]),
        _target(act),
        _detail(act),
        act["address"] or DASH,
    )


def _target(act: Document) -> Child:
    target: str | None = act["target"]
    if target is None:
        return DASH
    if len(target) != ID_LENGTH or target.count("-") != 4:
        return target
    detail = act["detail"]
    is_request = act["action"] == Action.SIGNAL or (
        isinstance(detail, dict) and detail.get("kind") == "request"
    )
    return el("a", target, href=path("ui", "requests" if is_request else "jobs", target), class_="id")


def _detail(act: Document) -> Child:
    return DASH if act["detail"] is None else el("span", json_line(act["detail"]), class_="id")


def acts_card(acts: Sequence[Document]) -> Markup:
    """Who did what to one job; nothing without entries."""
    if not acts:
        return Markup("")
    rows = [
        (moment(act["at"]), act["actor"], el("b", act["action"]), act["via"], _detail(act)) for act in acts
    ]
    headers = ("When", "Who", "Did", "By", "Detail")
    return card("Who did what", table("What was done to this job, newest first", headers, rows, ""))
