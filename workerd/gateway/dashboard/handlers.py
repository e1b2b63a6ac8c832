"""The page of handlers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workerd.config.workflow_config import WAIT_HANDLER
from workerd.gateway.dashboard.components import (
    DASH,
    Child,
    badge,
    button,
    count,
    el,
    join,
    moment,
    number,
    path,
    seconds,
    table,
)
from workerd.gateway.dashboard.pages import MAX_COUNT, PageQuery, View, jobs_path
from workerd.job import Status
from workerd.operations import figures, stats
from workerd.operations import handlers as handler_operations
from workerd.operations.access import Tx
from workerd.operations.figures import Depth
from workerd.operations.stats import HandlerFigures

Document = dict[str, Any]


async def handlers(query: PageQuery) -> View:
    """All handlers."""

    def work(tx: Tx) -> tuple[list[Document], list[Depth], dict[str, HandlerFigures]]:
        listed = handler_operations.list_(tx, query.gateway.config)
        names = [handler["name"] for handler in listed]
        depths = figures.depths(tx, names, (Status.NEW, Status.INPROGRESS), MAX_COUNT)
        return listed, depths, stats.of_nodes(tx)

    pools = (await query.gateway.backend.supervisor.status()).get("pools") or {}
    listed, depths, published = await query.gateway.backend.read(work)
    headers = (
        "Handler", "State", "Waiting", "Running", "Oldest waiting", "Workers", "Ended per minute", "Nodes",
        "Last seen", "",
    )  # fmt: skip
    none = HandlerFigures()
    listing = table(
        "Handlers",
        headers,
        [
            _row(handler, depth, published.get(handler["name"], none), pools, query.may_act)
            for handler, depth in zip(listed, depths, strict=True)
        ],
        "No handler is known. Configure one, or start a node that has one.",
        minor=("Ended per minute", "Nodes", "Last seen"),
    )
    return View("Handlers", "/ui/handlers", el("h1", "Handlers"), {"list": listing})


def _row(
    handler: Document,
    depth: Depth,
    published: HandlerFigures,
    pools: Mapping[str, Document],
    may_act: bool,
) -> tuple[Child, ...]:
    name = handler["name"]
    return (
        el("a", name, href=jobs_path(handler=name)),
        _state(handler, pools),
        count(depth.counts.get("new", 0), MAX_COUNT),
        count(depth.counts.get("inprogress", 0), MAX_COUNT),
        seconds(depth.oldest_s),
        number(published.workers),
        number(published.ended),
        ", ".join(handler["nodes"]) or "none",
        moment(handler["seen_at"]),
        _button(handler) if may_act else DASH,
    )


def _state(handler: Document, pools: Mapping[str, Document]) -> Child:
    if handler["paused_at"] is not None:
        reason = f": {handler['pause_reason']}" if handler["pause_reason"] else ""
        by = el("span", f"by {handler['paused_by']}{reason}, ", moment(handler["paused_at"]), class_="sub")
        return join(badge("paused"), " ", by)
    if handler["name"] == WAIT_HANDLER:
        return el("span", "Waiting steps of workflows; no pool claims them.", class_="sub")
    if not handler["known"]:
        return badge("unknown", "not loaded by any node")
    pool = next((pool for pool in pools.values() if handler["name"] in (pool.get("handlers") or ())), None)
    if pool is None or pool.get("state") == "up":
        return badge("active")
    # The pool of this node; others may have the handler too.
    state = "quarantined" if pool.get("quarantined") else str(pool.get("state"))
    return join(badge(state), " ", el("span", pool.get("trouble"), class_="sub"))


def _button(handler: Document) -> Child:
    name = handler["name"]
    if handler["paused_at"] is not None:
        return button("Resume", path("handlers", name, "resume"), target=name)
    if not handler["known"]:
        return DASH
    question = f"Pause {name}? No node claims its jobs until it is resumed; running jobs finish."
    return button("Pause", path("handlers", name, "pause"), confirm=question, reason=True, target=name)
