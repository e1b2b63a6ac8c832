"""The routes that say how the node is: heartbeat, readiness, metrics."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from prometheus_client.core import Metric
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from workerd.errors import StoreError
from workerd.gateway.admin import known_handlers
from workerd.gateway.jobs import answer
from workerd.gateway.problems import HTTPProblem
from workerd.gateway.state import GatewayState, state
from workerd.metrics import exposition
from workerd.metrics import families as metrics_families
from workerd.store import queries
from workerd.store.base import Tx


async def heartbeat(request: Request) -> Response:
    """The process answers."""
    return answer({"status": "ok"})


def faults(status: dict[str, Any]) -> list[str]:
    """What keeps the node from being ready, in the supervisor's words."""
    if not status:
        return ["The supervisor does not answer."]
    found = [] if status.get("state") in ("ready", "reloading") else [f"The node is {status.get('state')}."]
    for name, role in (status.get("roles") or {}).items():
        if role.get("state") != "up":
            found.append(f"{name} is {role.get('state')}: {role.get('trouble') or 'no reason known'}.")
    store = status.get("store") or {}
    if store.get("state") not in (None, "up"):
        found.append(f"The store is {store.get('state')}: {store.get('error') or 'no reason known'}.")
    return found


async def ready(request: Request) -> Response:
    """200 when the store answers and every role is up; quarantined pools are named in the body."""
    gateway = state(request)
    status = await gateway.backend.status()
    found = faults(status)
    try:
        await gateway.backend.read(lambda tx: tx.now)
    except (StoreError, HTTPProblem) as error:
        found.append(f"The store does not answer: {error}")
    quarantined = {
        name: pool.get("trouble")
        for name, pool in (status.get("pools") or {}).items()
        if pool.get("quarantined")
    }
    if found:
        raise HTTPProblem(503, " ".join(found), {"Retry-After": "1"}, ready=False, quarantined=quarantined)
    return answer({"ready": True, "quarantined": quarantined})


def depth(tx: Tx, gateway: GatewayState) -> list[Metric]:
    """Jobs and the age of the oldest by handler, from the store; counts are capped."""
    handlers = [row.name for row in known_handlers(tx, gateway.config)]
    counts = queries.counts(tx, handlers)
    jobs: dict[tuple[str, ...], float] = {
        (name, status): 0.0 for name in handlers for status in ("scheduled", "new", "inprogress")
    }
    jobs |= {(count.handler, str(count.status)): float(count.count) for count in counts}
    oldest: dict[tuple[str, ...], float] = {(name,): 0.0 for name in handlers}
    oldest |= {
        (count.handler,): max(0, tx.now - count.oldest) / 1e6 for count in counts if count.oldest is not None
    }
    return [
        exposition.gauge(metrics_families.JOBS, jobs),
        exposition.gauge(metrics_families.OLDEST_SECONDS, oldest),
    ]


def zeros(families: list[Metric], gateway: GatewayState) -> list[Metric]:
    """What has not happened yet: every family is there from the start, and the first event is a change."""
    there = {
        (sample.name, *(sample.labels.get(name, "") for name in ("handler", "outcome", "code")))
        for family in families
        for sample in family.samples
    }
    attempts: dict[tuple[str, ...], float] = {
        (name, "ok", "true"): 0.0
        for name in gateway.config.handlers
        if (metrics_families.ATTEMPTS.name, name, "ok", "") not in there
    }
    errors: dict[tuple[str, ...], float] = {
        (code,): 0.0
        for code in ("1205", "1213")
        if (metrics_families.STORE_ERRORS.name, "", "", code) not in there
    }
    known = {metrics_families.ATTEMPTS: attempts, metrics_families.STORE_ERRORS: errors}
    return [exposition.gauge(definition, known.get(definition, {})) for definition in metrics_families.ALL]


def pids(status: dict[str, Any]) -> dict[str, int]:
    """The node's processes by name."""
    found = {"supervisor": int(status.get("pid") or os.getppid())}
    found |= {name: role["pid"] for name, role in (status.get("roles") or {}).items() if role.get("pid")}
    found |= {
        f"pool:{name}": pool["pid"] for name, pool in (status.get("pools") or {}).items() if pool.get("pid")
    }
    return found


async def show_metrics(request: Request) -> Response:
    """Everything that is measured, for Prometheus."""
    gateway = state(request)
    status = await gateway.backend.status()
    families = [
        *exposition.collect(gateway.backend.paths.metrics),
        *exposition.from_status(status),
        *exposition.processes(pids(status)),
    ]
    # What the processes know is worth a scrape, all the more while the store is away.
    with contextlib.suppress(StoreError, HTTPProblem):
        families += await gateway.backend.read(lambda tx: depth(tx, gateway))
    families += zeros(families, gateway)
    data, kind = exposition.render(families, gateway.config.log.labels, request.headers.get("accept", ""))
    return Response(data, media_type=kind, headers={"Cache-Control": "no-store"})


ROUTES = [
    Route("/heartbeat", heartbeat, methods=["GET"]),
    Route("/ready", ready, methods=["GET"]),
    Route("/metrics", show_metrics, methods=["GET"]),
]
