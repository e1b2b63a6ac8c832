"""Handlers, with pause and resume; schedules, with pause, resume and run."""

from __future__ import annotations

from urllib.parse import quote

from workerd.clock import from_rfc3339
from workerd.gateway.admin import known_handlers, known_schedules
from workerd.gateway.dashboard.components import (
    Child,
    badge,
    button,
    count,
    el,
    join,
    moment,
    path,
    seconds,
    table,
)
from workerd.gateway.dashboard.overview import Depth, depths
from workerd.gateway.dashboard.pages import CAP, PageQuery, View
from workerd.store.base import Tx
from workerd.store.handlers import HandlerRow


async def handlers(look: PageQuery) -> View:
    """All handlers."""
    gateway = look.gateway

    def work(tx: Tx) -> tuple[list[HandlerRow], dict[str, Depth]]:
        return known_handlers(tx, gateway.config), {d.handler: d for d in depths(tx, gateway)}

    rows, found = await gateway.backend.read(work)
    headers = ("Handler", "State", "Waiting", "Running", "Oldest waiting", "Nodes", "Last seen", "")
    listed = table(
        "Handlers", headers, [_row(row, found.get(row.name, Depth(row.name))) for row in rows],
        "No handler is known yet: name one in the configuration, or start a node that has it.",
    )  # fmt: skip
    return View("Handlers", "/ui/handlers", el("h1", "Handlers"), {"list": listed})


def _row(row: HandlerRow, depth: Depth) -> tuple[Child, ...]:
    return (
        el("a", row.name, href=f"/ui/jobs?handler={quote(row.name, safe='')}"),
        _state(row),
        count(depth.counts.get("new", 0), CAP),
        count(depth.counts.get("inprogress", 0), CAP),
        seconds(depth.oldest),
        ", ".join(row.nodes) or "none",
        moment(row.seen_at),
        _button(row),
    )


def _state(row: HandlerRow) -> Child:
    if row.paused_at is not None:
        why = f": {row.pause_reason}" if row.pause_reason else ""
        return join(
            badge("paused"),
            " ",
            el("span", f"by {row.paused_by}{why}, ", moment(row.paused_at), class_="sub"),
        )
    return badge("active") if row.known else badge("unknown", "no node has loaded it")


def _button(row: HandlerRow) -> Child:
    if row.paused_at is not None:
        return button("Resume", path("handlers", row.name, "resume"), what=row.name)
    if not row.known:
        return "–"
    question = f"Pause {row.name}? No node claims its jobs until it is resumed; what runs goes on to its end."
    return button("Pause", path("handlers", row.name, "pause"), ask=question, reason=True, what=row.name)


async def schedules(look: PageQuery) -> View:
    """All schedules."""
    rows = await look.gateway.backend.read(lambda tx: known_schedules(tx, look.gateway.config))
    workflows = look.gateway.config.workflows
    headers = ("Name", "When", "State", "Next", "Last run", "")
    listed = table(
        "Schedules",
        headers,
        [_schedule(row, str(row["name"]) in workflows) for row in rows],
        "Nothing recurs: give a handler or a workflow a cron or a cooler.",
    )
    return View("Schedules", "/ui/schedules", el("h1", "Schedules"), {"list": listed})


def _schedule(row: dict[str, str | None], workflow: bool) -> tuple[Child, ...]:
    name = str(row["name"])
    when = (
        f"{row['expression']} ({row['timezone']})"
        if row["kind"] == "cron"
        else f"{row['expression']} after each end"
    )
    last = row["last_job"]
    href = None if last is None else path("ui", "requests" if workflow else "jobs", last)
    paused = row["paused_at"] is not None
    return (
        join(el("b", name), el("span", "workflow" if workflow else "handler", class_="sub")),
        el("span", when, class_="id"),
        join(badge("paused"), " ", el("span", f"by {row['paused_by']}", class_="sub"))
        if paused
        else badge("active"),
        _moment(row["next_at"]),
        join(el("a", row["last_status"] or "there", href=href), " ", _moment(row["last_end"]))
        if href
        else "–",
        join(
            button("Run now", path("schedules", name, "run"), what=name),
            button("Resume", path("schedules", name, "resume"), what=name)
            if paused
            else button("Pause", path("schedules", name, "pause"), ask=f"Pause {name}?", what=name),
        ),
    )


def _moment(text: str | None) -> Child:
    return moment(None if text is None else from_rfc3339(text))
