"""The first page: what wants attention, rates and latencies, pools and what they run, what waits, nodes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from workerd.errors import StoreError
from workerd.gateway.admin import known_handlers
from workerd.gateway.dashboard import components
from workerd.gateway.dashboard.charts import ChartLine, chart
from workerd.gateway.dashboard.components import (
    Child,
    Markup,
    badge,
    card,
    count,
    el,
    join,
    moment,
    notice,
    number,
    path,
    plural,
    seconds,
    size,
    table,
)
from workerd.gateway.dashboard.pages import CAP, PageQuery, View
from workerd.gateway.health import faults
from workerd.gateway.history import by_name
from workerd.gateway.problems import HTTPProblem
from workerd.gateway.state import GatewayState
from workerd.job import Status, id_text
from workerd.store import nodes, queries
from workerd.store.base import Tx
from workerd.store.columns import JobRow
from workerd.store.nodes import NodeRecord

LATEST = 5
"""Failures that the first page shows."""
_STATES = (Status.NEW, Status.SCHEDULED, Status.INPROGRESS, Status.FAILURE)


@dataclass
class Depth:
    """Jobs of one handler by status, counted up to CAP; `oldest`: seconds that the first one has waited."""

    handler: str
    counts: dict[str, int] = field(default_factory=dict)
    oldest: float | None = None
    paused: bool = False


@dataclass(frozen=True)
class Stored:
    """What the store knows."""

    now: int
    depths: list[Depth]
    nodes: list[NodeRecord]
    failures: list[JobRow]


def depths(tx: Tx, gateway: GatewayState) -> list[Depth]:
    """Jobs by handler."""
    rows = known_handlers(tx, gateway.config)
    found = {row.name: Depth(row.name, paused=row.paused_at is not None) for row in rows}
    for one in queries.counts(tx, list(found), _STATES, CAP):
        depth = found[one.handler]
        depth.counts[str(one.status)] = one.count
        if one.oldest is not None:
            depth.oldest = max(0, tx.now - one.oldest) / 1e6
    return list(found.values())


async def _stored(gateway: GatewayState) -> Stored | str:
    """What the store knows, or why it does not say."""

    def work(tx: Tx) -> Stored:
        failures = queries.list_(tx, status=Status.FAILURE, limit=LATEST).rows
        return Stored(tx.now, depths(tx, gateway), nodes.list_(tx), failures)

    try:
        return await gateway.backend.read(work)
    except (StoreError, HTTPProblem) as error:
        return str(error)


async def overview(look: PageQuery) -> View:
    """The first page."""
    gateway = look.gateway
    status = await gateway.backend.status()
    stored = await _stored(gateway)
    there = stored if isinstance(stored, Stored) else None
    return View(
        "Overview",
        "/",
        el("h1", "Overview"),
        {
            "attention": _attention(status, None if there else str(stored)),
            "tiles": _tiles(status, there),
            "charts": _charts(gateway),
            "pools": _pools(status),
            "running": _running(status),
            "waiting": _waiting(there),
            "failures": _failures(there),
            "nodes": _nodes(there),
        },
    )


# -- what wants attention


def _attention(status: dict[str, Any], away: str | None) -> Markup:
    found: list[Markup] = [notice("bad", "Not ready.", fault) for fault in faults(status)]
    if away is not None:
        found.append(notice("bad", "The store does not answer.", away))
    for name, pool in (status.get("pools") or {}).items():
        if pool.get("quarantined"):
            handlers = ", ".join(pool.get("handlers") or ())
            found.append(
                notice(
                    "bad", f"Pool {name} is quarantined; the jobs of {handlers} wait.", pool.get("trouble")
                )
            )
        elif pool.get("trouble") and pool.get("state") != "up":
            found.append(notice("warn", f"Pool {name} is {pool.get('state')}.", pool["trouble"]))
    spool = status.get("spool") or {}
    if spool.get("bytes"):
        said = (
            f"{plural(spool.get('rows', 0), 'outcome')}, {size(spool['bytes'])}, for the store to come back."
        )
        found.append(notice("warn", "Outcomes wait on this node's disk:", said))
    return join(found)


# -- numbers


def _tile(label: str, value: str, href: str | None = None, note: Child = None, tone: str = "") -> Markup:
    inner = [el("dt", el("a", label, href=href) if href else label), el("dd", value), note and el("dd", note)]
    return el("div", inner, class_=f"tile {tone}".strip())


def _tiles(status: dict[str, Any], stored: Stored | None) -> Markup:
    roles = status.get("roles") or {}
    rate = (roles.get("ingester") or {}).get("rate")
    tiles = []
    if stored is not None:

        def total(state: str) -> str:
            counts = [depth.counts.get(state, 0) for depth in stored.depths]
            return f"{sum(counts):,}{'+' if any(one >= CAP for one in counts) else ''}"

        oldest = (
            max((depth.oldest or 0.0, depth.handler) for depth in stored.depths)
            if stored.depths
            else (0.0, "")
        )
        failed = any(depth.counts.get("failure") for depth in stored.depths)
        tiles = [
            _tile("Waiting", total("new"), "/ui/jobs?status=new"),
            _tile("Running", total("inprogress"), "/ui/jobs?status=inprogress"),
            _tile("Scheduled", total("scheduled"), "/ui/jobs?status=scheduled"),
            _tile("Failed", total("failure"), "/ui/jobs?status=failure", tone="bad" if failed else ""),
            _tile(
                "Oldest waiting",
                seconds(oldest[0]) if oldest[0] else "none",
                note=oldest[1] if oldest[0] else None,
            ),
        ]
    lease = (roles.get("dispatcher") or {}).get("lease_left")
    tiles.append(_tile("Ended per second", number(rate), note="this node"))
    if lease is not None:
        held = (roles.get("dispatcher") or {}).get("lease_held")
        tiles.append(_tile("Lease", "held" if held else "lost", tone="" if held else "bad", note="this node"))
    return el("dl", tiles, class_="tiles")


def _charts(gateway: GatewayState) -> Markup:
    lines, span = by_name(gateway.history.samples), gateway.history.span
    return card(
        "Rates and latencies",
        el(
            "div",
            chart(
                "Attempts ended per second",
                [ChartLine("good", "good", lines["good"]), ChartLine("failed", "bad", lines["bad"])],
                number, span,
            ),
            chart(
                "Time in the queue",
                [
                    ChartLine("95 %", "two", lines["queue_most"]),
                    ChartLine("half", "one", lines["queue_half"]),
                ],
                seconds, span,
            ),
            chart(
                "Run time",
                [ChartLine("95 %", "two", lines["run_most"]), ChartLine("half", "one", lines["run_half"])],
                seconds, span,
            ),
            class_="charts",
        ),
        note="this node",
    )  # fmt: skip


# -- pools


def _workers(pool: dict[str, Any]) -> list[dict[str, Any]]:
    workers = pool.get("workers")
    return [one for one in workers if isinstance(one, dict)] if isinstance(workers, list) else []


def _busy(pool: dict[str, Any]) -> Markup:
    workers = _workers(pool)
    busy = sum(1 for worker in workers if worker.get("job"))
    dots = [el("span", class_=f"dot {'busy' if worker.get('job') else 'idle'}") for worker in workers[:64]]
    return join(el("span", dots, class_="dots", aria_hidden="true"), f"{busy} of {len(workers)} busy")


def _pools(status: dict[str, Any]) -> Markup:
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
                    (", " if index else None, el("a", handler, href=f"/ui/jobs?{_handler(handler)}"))
                    for index, handler in enumerate(pool.get("handlers") or ())
                ]
            ),
        )
        for name, pool in (status.get("pools") or {}).items()
    ]
    headers = ("Pool", "State", "Workers", "In hand", "Done", "Restarts", "Handlers")
    return card(
        "Pools", table("Pools of this node", headers, rows, "No pools are configured."), note="this node"
    )


def _handler(name: str) -> str:
    return f"handler={quote(name, safe='')}"


def _running(status: dict[str, Any]) -> Markup:
    busy = [
        (name, worker)
        for name, pool in (status.get("pools") or {}).items()
        for worker in _workers(pool)
        if worker.get("job")
    ]
    busy.sort(key=lambda one: one[1].get("since") or 0)
    rows = [_run(worker) for _, worker in busy[:100]]
    headers = ("Worker", "Handler", "Job", "Attempt", "For", "Progress")
    more = f"{len(busy) - 100} more are not shown." if len(busy) > 100 else None
    return card(
        "Running now",
        table("What the workers of this node run now", headers, rows, "No worker has a job just now."),
        el("p", more, class_="empty") if more else None,
        note="this node",
    )


def _run(worker: dict[str, Any]) -> tuple[Child, ...]:
    since = worker.get("since")
    job = str(worker["job"])
    progress = worker.get("progress")
    return (
        str(worker.get("name")),
        str(worker.get("handler")),
        el("a", components.short_id(job), href=path("ui", "jobs", job), class_="id", title=job),
        number(worker.get("attempt") or 1),
        seconds(max(0.0, time.monotonic() - since)) if isinstance(since, int | float) else "–",
        join(progress_bar(progress), worker.get("note") and el("span", str(worker["note"]), class_="sub")),
    )


def progress_bar(fraction: Any) -> Child:
    """How far a job says that it is."""
    if not isinstance(fraction, int | float):
        return "–"
    percent = f"{100 * fraction:.0f} %"
    return join(el("progress", percent, value=round(fraction, 4), max=1, aria_label="Progress"), " ", percent)


# -- from the store


def _waiting(stored: Stored | None) -> Markup:
    if stored is None:
        return card("Jobs by handler", el("p", "The store does not answer.", class_="empty"))
    ranked = sorted(
        stored.depths, key=lambda one: (-(one.oldest or 0), -one.counts.get("new", 0), one.handler)
    )
    rows = [
        (
            join(
                el("a", one.handler, href=f"/ui/jobs?{_handler(one.handler)}"),
                (" ", badge("paused")) if one.paused else None,
            ),
            *(
                el(
                    "a",
                    count(one.counts[state], CAP),
                    href=f"/ui/jobs?status={state}&{_handler(one.handler)}",
                )
                if one.counts.get(state)
                else "0"
                for state in map(str, _STATES)
            ),
            seconds(one.oldest),
        )
        for one in ranked
    ]
    headers = ("Handler", "Waiting", "Scheduled", "Running", "Failed", "Oldest waiting")
    return card("Jobs by handler", table("Jobs by handler", headers, rows, "No handler is known yet."))


def _failures(stored: Stored | None) -> Markup:
    rows = [
        (
            el("a", row.handler, href=path("ui", "jobs", id_text(row.id))),
            row.reason or "–",
            el("span", row.error or "–", class_="error"),
            moment(row.finished_at or row.ingested_at),
        )
        for row in (stored.failures if stored else ())
    ]
    headers = ("Job", "Reason", "Error", "Ended")
    return card(
        "Latest failures",
        table("Jobs that failed last", headers, rows, "No job has failed."),
        note=el("a", "all", href="/ui/jobs?status=failure", aria_label="All failed jobs"),
    )


def _nodes(stored: Stored | None) -> Markup:
    rows = [
        (
            el("b", row.name),
            badge("up" if stored and row.lease_until > stored.now else "lost"),
            row.host,
            str(row.pid or "–"),
            row.version,
            moment(row.started_at),
            moment(row.lease_until),
        )
        for row in (stored.nodes if stored else ())
    ]
    headers = ("Node", "State", "Host", "Process", "Version", "Started", "Lease until")
    return card("Nodes", table("Nodes on this store", headers, rows, "No node is known."))
