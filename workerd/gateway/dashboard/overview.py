"""The overview: problems, rates and latencies, pools and running jobs, waiting jobs, failures, nodes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from workerd.errors import StoreError
from workerd.gateway.dashboard.charts import ChartLine, chart
from workerd.gateway.dashboard.components import (
    DASH,
    Child,
    Markup,
    badge,
    card,
    count,
    el,
    error_text,
    join,
    moment,
    notice,
    number,
    path,
    progress,
    seconds,
    short_id,
    table,
)
from workerd.gateway.dashboard.jobs import ended_at
from workerd.gateway.dashboard.pages import MAX_COUNT, PageQuery, View, jobs_path
from workerd.gateway.health import not_ready_reasons
from workerd.gateway.history import History
from workerd.gateway.problems import HTTPProblem
from workerd.gateway.state import GatewayState
from workerd.job import Status
from workerd.operations import figures, handlers, jobs
from workerd.operations.access import Tx
from workerd.operations.figures import Depth
from workerd.text import plural, size_text

FAILURES_SHOWN = 5
MAX_RUNNING_SHOWN = 100
MAX_DOTS = 64
_STATES = (Status.NEW, Status.SCHEDULED, Status.INPROGRESS, Status.FAILURE)

Document = dict[str, Any]


@dataclass(frozen=True)
class StoreOverview:
    """What the overview shows from the store."""

    handlers: list[Document]
    depths: list[Depth]
    nodes: list[Document]
    failures: list[Document]


async def _stored(gateway: GatewayState) -> StoreOverview | str:
    """The store's part, or why it cannot be read."""

    def work(tx: Tx) -> StoreOverview:
        listed = handlers.list_(tx, gateway.config)
        return StoreOverview(
            handlers=listed,
            depths=figures.depths(tx, [handler["name"] for handler in listed], _STATES, MAX_COUNT),
            nodes=handlers.list_nodes(tx),
            failures=jobs.list_(tx, status=Status.FAILURE, limit=FAILURES_SHOWN, rules=gateway.rules).jobs,
        )

    try:
        return await gateway.backend.read(work)
    except (StoreError, HTTPProblem) as error:
        return str(error)


async def overview(query: PageQuery) -> View:
    """The overview of the node and its store."""
    gateway = query.gateway
    status = await gateway.backend.supervisor.status()
    found = await _stored(gateway)
    stored = found if isinstance(found, StoreOverview) else None
    return View(
        "Overview",
        "/",
        el("h1", "Overview"),
        {
            "attention": _attention(status, None if stored else str(found)),
            "tiles": _tiles(status, stored),
            "charts": _charts(gateway.history),
            "pools": _pools(status),
            "running": _running(status),
            "waiting": _handlers(stored),
            "failures": _failures(stored),
            "nodes": _nodes(stored),
        },
    )


# -- problems


def _attention(status: Document, store_error: str | None) -> Markup:
    notices: list[Markup] = [notice("bad", "Not ready.", reason) for reason in not_ready_reasons(status)]
    if store_error is not None:
        notices.append(notice("bad", "The store is unavailable.", store_error))
    for name, pool in (status.get("pools") or {}).items():
        trouble = pool.get("trouble")
        if pool.get("quarantined"):
            handlers = ", ".join(pool.get("handlers") or ())
            notices.append(
                notice("bad", f"Pool {name} is quarantined; jobs of {handlers} are waiting.", trouble)
            )
        elif trouble and pool.get("state") != "up":
            notices.append(notice("warn", f"Pool {name} is {pool.get('state')}.", trouble))
    spool = status.get("spool") or {}
    if spool.get("bytes"):
        outcomes = plural(spool.get("rows", 0), "outcome")
        size = size_text(spool["bytes"])
        notices.append(notice("warn", f"{outcomes} spooled on disk ({size}) until the store is available."))
    return join(notices)


# -- numbers


def _tile(label: str, value: str, href: str | None = None, note: Child = None, bad: bool = False) -> Markup:
    title = el("dt", el("a", label, href=href) if href else label)
    return el(
        "div", title, el("dd", value), el("dd", note) if note else None, class_="tile bad" if bad else "tile"
    )


def _tiles(status: Document, stored: StoreOverview | None) -> Markup:
    roles = status.get("roles") or {}
    dispatcher = roles.get("dispatcher") or {}
    tiles = [] if stored is None else _depth_tiles(stored.depths)
    rate = (roles.get("ingester") or {}).get("rate")
    tiles.append(_tile("Attempts per second", number(rate), note="this node"))
    if dispatcher.get("lease_left") is not None:
        held = dispatcher.get("lease_held")
        tiles.append(_tile("Lease", "held" if held else "lost", note="this node", bad=not held))
    return el("dl", tiles, class_="tiles")


def _depth_tiles(depths: list[Depth]) -> list[Markup]:
    def total(status: str) -> str:
        counts = [depth.counts.get(status, 0) for depth in depths]
        return f"{sum(counts):,}{'+' if any(one >= MAX_COUNT for one in counts) else ''}"

    oldest_s, handler = max(((depth.oldest_s or 0.0, depth.handler) for depth in depths), default=(0.0, ""))
    failed = any(depth.counts.get("failure") for depth in depths)
    return [
        _tile("Waiting", total("new"), jobs_path(status="new")),
        _tile("Running", total("inprogress"), jobs_path(status="inprogress")),
        _tile("Scheduled", total("scheduled"), jobs_path(status="scheduled")),
        _tile("Failed", total("failure"), jobs_path(status="failure"), bad=failed),
        _tile(
            "Oldest waiting", seconds(oldest_s) if oldest_s else "none", note=handler if oldest_s else None
        ),
    ]


def _charts(history: History) -> Markup:
    series, span_s = history.series(), history.span_s
    span = f"last {span_s / 60:.0f} min" if span_s >= 60 else f"last {span_s:.0f} s"

    def times(title: str, name: str) -> Markup:
        lines = [
            ChartLine("95 % within", "two", series[f"{name}_p95"]),
            ChartLine("mean", "one", series[f"{name}_mean"]),
        ]
        return chart(title, lines, seconds, span)

    rates = [
        ChartLine("succeeded", "good", series["succeeded"]),
        ChartLine("failed", "bad", series["failed"]),
    ]
    return card(
        "Rates and latencies",
        el(
            "div",
            chart("Attempts per second", rates, number, span),
            times("Queue time", "queue"),
            times("Run time", "run"),
            class_="charts",
        ),
        note="this node",
    )


# -- pools


def _workers(pool: Document) -> list[Document]:
    workers = pool.get("workers")
    return [worker for worker in workers if isinstance(worker, dict)] if isinstance(workers, list) else []


def _busy(pool: Document) -> Markup:
    workers = _workers(pool)
    busy = sum(1 for worker in workers if worker.get("job"))
    dots = [
        el("span", class_=f"dot {'busy' if worker.get('job') else 'idle'}") for worker in workers[:MAX_DOTS]
    ]
    return join(el("span", dots, class_="dots", aria_hidden="true"), f"{busy} of {len(workers)} busy")


def _pools(status: Document) -> Markup:
    rows = [
        (
            el("b", name),
            badge("quarantined" if pool.get("quarantined") else str(pool.get("state"))),
            _busy(pool),
            number(pool.get("waiting") or 0),
            number(sum((pool.get("done") or {}).values())),
            number(pool.get("restarts") or 0),
            join(
                [
                    (", " if index else None, el("a", handler, href=jobs_path(handler=handler)))
                    for index, handler in enumerate(pool.get("handlers") or ())
                ]
            ),
        )
        for name, pool in (status.get("pools") or {}).items()
    ]
    headers = ("Pool", "State", "Workers", "Buffered", "Done", "Restarts", "Handlers")
    listing = table(
        "Pools of this node", headers, rows, "No pools are configured.", minor=("Buffered", "Handlers")
    )
    return card("Pools", listing, note="this node")


def _running(status: Document) -> Markup:
    pools = (status.get("pools") or {}).values()
    busy = [worker for pool in pools for worker in _workers(pool) if worker.get("job")]
    busy.sort(key=lambda worker: worker.get("since") or 0)
    rows = [_worker(worker) for worker in busy[:MAX_RUNNING_SHOWN]]
    headers = ("Worker", "Handler", "Job", "Attempt", "Running for", "Progress")
    more = len(busy) - MAX_RUNNING_SHOWN
    return card(
        "Running jobs",
        table("Running jobs of this node", headers, rows, "No job is running.", minor=("Attempt",)),
        el("p", f"{more} more are not shown.", class_="empty") if more > 0 else None,
        note="this node",
    )


def _worker(worker: Document) -> tuple[Child, ...]:
    since = worker.get("since")
    job = str(worker["job"])
    return (
        str(worker.get("name")),
        str(worker.get("handler")),
        el("a", short_id(job), href=path("ui", "jobs", job), class_="id", title=job),
        number(worker.get("attempt") or 1),
        seconds(None if since is None else max(0.0, time.monotonic() - since)),
        progress(worker.get("progress"), worker.get("note")) or DASH,
    )


# -- from the store


def _handlers(stored: StoreOverview | None) -> Markup:
    if stored is None:
        return card("Jobs by handler", el("p", "The store is unavailable.", class_="empty"))
    paused = {handler["name"] for handler in stored.handlers if handler["paused_at"] is not None}
    ranked = sorted(
        stored.depths, key=lambda one: (-(one.oldest_s or 0), -one.counts.get("new", 0), one.handler)
    )
    rows = [
        (
            join(
                el("a", depth.handler, href=jobs_path(handler=depth.handler)),
                (" ", badge("paused")) if depth.handler in paused else None,
            ),
            *(_count_link(depth, str(status)) for status in _STATES),
            seconds(depth.oldest_s),
        )
        for depth in ranked
    ]
    headers = ("Handler", "Waiting", "Scheduled", "Running", "Failed", "Oldest waiting")
    return card("Jobs by handler", table("Jobs by handler", headers, rows, "No handler is known yet."))


def _count_link(depth: Depth, status: str) -> Child:
    jobs = depth.counts.get(status)
    if not jobs:
        return "0"
    return el("a", count(jobs, MAX_COUNT), href=jobs_path(status=status, handler=depth.handler))


def _failures(stored: StoreOverview | None) -> Markup:
    rows = [
        (
            el("a", job["handler"], href=path("ui", "jobs", job["id"])),
            job["reason"] or DASH,
            error_text(job["error"]),
            moment(ended_at(job)),
        )
        for job in (stored.failures if stored else ())
    ]
    headers = ("Job", "Reason", "Error", "Ended")
    return card(
        "Recent failures",
        table("Recently failed jobs", headers, rows, "No failed jobs."),
        note=el("a", "all", href=jobs_path(status="failure"), aria_label="All failed jobs"),
    )


def _nodes(stored: StoreOverview | None) -> Markup:
    rows = [
        (
            el("b", node["name"]),
            badge(node["state"]),
            node["host"],
            str(node["pid"] or DASH),
            node["version"],
            moment(node["started_at"]),
            moment(node["lease_until"]),
        )
        for node in (stored.nodes if stored else ())
    ]
    headers = ("Node", "State", "Host", "PID", "Version", "Started", "Lease until")
    return card(
        "Nodes",
        table("Nodes of this store", headers, rows, "No nodes.", minor=("Host", "PID", "Version")),
    )
