"""The page of limits: used, waiting, held until, by whom."""

from __future__ import annotations

import json

from workerd.document_types import Document
from workerd.gateway.dashboard.components import (
    DASH,
    Child,
    button,
    card,
    el,
    join,
    moment,
    number,
    path,
    short_id,
    table,
)
from workerd.gateway.dashboard.pages import PageQuery, View
from workerd.operations import limits as operations


async def limits(query: PageQuery) -> View:
    """All limits."""
    config = query.gateway.config
    found = await query.gateway.backend.read(lambda tx: operations.list_(tx, config))
    listing = table(
        "Limits",
        ("Limit", "Concurrency", "Per group", "Rate", "Used", "Waiting", "Held until", "Handlers"),
        [_row(one, query.may_act) for one in found],
        "No limit is configured.",
    )
    groups = [(one["name"], group) for one in found for group in one["groups"]]
    holders = [(one["name"], holder) for one in found for holder in one["holders"]]
    return View(
        "Limits",
        "/ui/limits",
        el("h1", "Limits"),
        {
            "list": listing,
            "groups": card(
                "Groups",
                table(
                    "Groups that use a limit or are held",
                    ("Limit", "Group", "Used", "Held until"),
                    [
                        (
                            name,
                            one["group"] or DASH,
                            number(one["used"]),
                            _held(one["held_until"], name, one["group"], query.may_act),
                        )
                        for name, one in groups
                    ],
                    "No group uses a limit.",
                ),
            ),
            "holders": card(
                "Holders",
                table(
                    "Running jobs that hold a limit",
                    ("Limit", "Group", "Job", "Handler", "Node", "Since"),
                    [_holder(name, one) for name, one in holders],
                    "No running job has a limit.",
                ),
            ),
        },
    )


def _moment(value: str | None) -> Child:
    return moment(value) if value is not None else DASH


def _held(until: str | None, name: str, group: str | None, may_act: bool) -> Child:
    """Until when it is held, with a button that ends it."""
    if until is None or not may_act:
        return _moment(until)
    whose = name if group is None else f"{name} for {group or 'jobs without a group'}"
    end = button(
        "End",
        path("limits", name, "unhold"),
        confirm=f"End the hold of {whose}?",
        body=None if group is None else json.dumps({"group": group}),
        target=f"the hold of {whose}",
    )
    return join(moment(until), " ", end)


def _row(one: Document, may_act: bool) -> tuple[Child, ...]:
    burst = f"burst {one['burst']}" if one["burst"] is not None else None
    rates = [one["rate"], one["group_rate"] and f"{one['group_rate']} per group", burst]
    return (
        one["name"] if one["configured"] else join(one["name"], " ", el("span", "removed", class_="sub")),
        _count(one["concurrency"]),
        _count(one["group_concurrency"]),
        ", ".join(filter(None, rates)) or DASH,
        number(one["used"]),
        number(one["waiting"]),
        _held(one["held_until"], one["name"], None, may_act),
        ", ".join(one["handlers"]) or DASH,
    )


def _count(value: int | None) -> Child:
    return DASH if value is None else number(value)


def _holder(name: str, one: Document) -> tuple[Child, ...]:
    job = one["job_id"]
    return (
        name,
        one["group"] or DASH,
        el("a", short_id(job), href=path("ui", "jobs", job), class_="id", title=job),
        one["handler"] or DASH,
        one["node"] or DASH,
        _moment(one["since"]),
    )
