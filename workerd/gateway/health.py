"""Liveness, readiness and metrics of the node."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from workerd import lean_imports
from workerd.clock import SECOND, from_rfc3339
from workerd.config.model import Config
from workerd.errors import StoreError
from workerd.gateway.problems import DATA_HEADERS, HTTPProblem
from workerd.gateway.roles import Access, Route
from workerd.gateway.state import GatewayState, gateway_of, json_response
from workerd.metrics import families
from workerd.operations import handlers, limits, requests, schedules
from workerd.operations.access import Tx
from workerd.operations.figures import WAITING_AND_RUNNING, depth_of_others, depths
from workerd.text import plural

if TYPE_CHECKING:
    from prometheus_client.core import Metric

# With prometheus-client, 2 MiB that a gateway without scrapes does not need.
exposition = lean_imports.deferred("workerd.metrics.exposition")


async def heartbeat(request: Request) -> Response:
    """200 while the process answers."""
    return json_response({"status": "ok"})


def not_ready_reasons(status: dict[str, Any]) -> list[str]:
    """Why the node is not ready, by the supervisor's status; empty if it is."""
    if not status:
        return ["The supervisor does not answer."]
    reasons = [] if status.get("state") in ("ready", "reloading") else [f"The node is {status.get('state')}."]
    for name, role in (status.get("roles") or {}).items():
        if role.get("state") != "up":
            trouble = (role.get("trouble") or "unknown reason").rstrip(".")
            reasons.append(f"{name} is {role.get('state')}: {trouble}.")
    store = status.get("store") or {}
    if store.get("state") not in (None, "up"):
        reasons.append(f"The store is {store.get('state')}: {store.get('error') or 'unknown reason'}.")
    return reasons


def warnings(status: dict[str, Any]) -> list[str]:
    """What a person should look at although the node is ready."""
    ingester = (status.get("roles") or {}).get("ingester") or {}
    found = []
    if ingester.get("set_aside"):
        found.append(
            f"{plural(ingester['set_aside'], 'outcome')} set aside, which the store refused: see "
            f"`workerd dead-letters`."
        )
    if ingester.get("locked"):
        found.append(f"{plural(ingester['locked'], 'outcome')} for rows locked by other transactions.")
    return found


async def ready(request: Request) -> Response:
    """200 if the store answers and every role is up, with the quarantined pools; else 503 and why."""
    gateway = gateway_of(request)
    status = await gateway.backend.supervisor.status()
    reasons = not_ready_reasons(status)
    try:
        await gateway.backend.check_server()
    except (StoreError, HTTPProblem) as error:
        reasons.append(
            str(error) if str(error).startswith("The store") else f"The store is unavailable: {error}"
        )
    quarantined = {
        name: pool.get("trouble")
        for name, pool in (status.get("pools") or {}).items()
        if pool.get("quarantined")
    }
    if reasons:
        raise HTTPProblem(503, " ".join(reasons), {"Retry-After": "1"}, ready=False, quarantined=quarantined)
    return json_response({"ready": True, "quarantined": quarantined, "warnings": warnings(status)})


def handler_metrics(tx: Tx, config: Config) -> list[Metric]:
    """Jobs by handler and status, the age of the oldest waiting one, and pauses; counts are capped.

    The handlers of this node come first, then those of others, then names that only rows have; what is beyond
    the first MAX_HANDLERS is summed as OTHER.
    """
    jobs: dict[tuple[str, ...], float] = {}
    oldest: dict[tuple[str, ...], float] = {}
    listed = handlers.list_(tx, config)
    listed.sort(key=lambda handler: (handler["name"] not in config.handlers, not handler["known"]))
    kept = listed[: families.MAX_HANDLERS]
    names = [handler["name"] for handler in kept]
    found = depths(tx, names, WAITING_AND_RUNNING)
    if len(listed) >= families.MAX_HANDLERS:
        found.append(depth_of_others(tx, names, found))
    for depth in found:
        counts = dict.fromkeys(map(str, WAITING_AND_RUNNING), 0) | depth.counts
        jobs |= {(depth.handler, status): float(count) for status, count in counts.items()}
        oldest[depth.handler,] = depth.oldest_s or 0.0
    paused: dict[tuple[str, ...], float] = {
        (handler["name"],): _seconds_since(handler["paused_at"], tx.now) for handler in kept
    }
    return [
        exposition.gauge(families.JOBS, jobs),
        exposition.gauge(families.OLDEST_SECONDS, oldest),
        exposition.gauge(families.PAUSED, paused),
    ]


def _seconds_since(moment: str | None, now: int) -> float:
    return 0.0 if moment is None else max(0, now - from_rfc3339(moment)) / SECOND


def limit_metrics(tx: Tx, config: Config) -> list[Metric]:
    """What is used of limits, and what waits of their handlers."""
    if not config.limits:
        return []
    used = limits.used(tx, config)
    waiting = {name: limits.waiting(tx, config, name) for name in config.limits}
    return [
        exposition.gauge(families.LIMIT_USED, {(name,): float(count) for name, count in used.items()}),
        exposition.gauge(families.LIMIT_WAITING, {(name,): float(n) for name, n in waiting.items()}),
    ]


def workflow_metrics(tx: Tx, config: Config) -> list[Metric]:
    """Late schedules, and requests that failed recently."""
    late = schedules.lateness(tx, config)
    failed = dict.fromkeys(config.workflows, 0) | requests.failed_lately(tx)
    return [
        exposition.gauge(families.SCHEDULE_LATE, {(name,): seconds for name, seconds in late.items()}),
        exposition.gauge(families.REQUESTS_FAILED, {(name,): float(n) for name, n in failed.items()}),
    ]


def zero_metrics(collected: list[Metric], gateway: GatewayState) -> list[Metric]:
    """Zeros for what has not happened yet, so that a rate includes the first event."""
    present = {
        (sample.name, *(sample.labels.get(name, "") for name in ("handler", "outcome", "code", "status")))
        for family in collected
        for sample in family.samples
    }
    attempts: dict[tuple[str, ...], float] = {
        (name, "ok", "true"): 0.0
        for name in gateway.config.handlers
        if (families.ATTEMPTS.name, name, "ok", "", "") not in present
    }
    errors: dict[tuple[str, ...], float] = {
        (code,): 0.0
        for code in ("1205", "1213")
        if (families.STORE_ERRORS.name, "", "", code, "") not in present
    }
    ended: dict[tuple[str, ...], float] = {
        (name, "failure"): 0.0
        for name in gateway.config.handlers
        if (families.JOBS_ENDED.name, name, "", "", "failure") not in present
    }
    known = {families.ATTEMPTS: attempts, families.JOBS_ENDED: ended, families.STORE_ERRORS: errors}
    return [exposition.gauge(definition, known.get(definition, {})) for definition in families.ALL]


def pids(status: dict[str, Any]) -> dict[str, int]:
    """Process ids of the node's roles and pools, by process name."""
    by_name = {"supervisor": int(status.get("pid") or os.getppid())}
    by_name |= {name: role["pid"] for name, role in (status.get("roles") or {}).items() if role.get("pid")}
    by_name |= {
        f"pool:{name}": pool["pid"] for name, pool in (status.get("pools") or {}).items() if pool.get("pid")
    }
    return by_name


def used_by_roles(status: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """What supervisor and roles say that they use, by process name: other processes may not look."""
    named = {"supervisor": status} | (status.get("roles") or {})
    return {
        name: (float(one["cpu_s"]), float(one["rss_bytes"]))
        for name, one in named.items()
        if one.get("cpu_s") is not None and one.get("pid")
    }


async def show_metrics(request: Request) -> Response:
    """All metrics in the format of Prometheus."""
    gateway = gateway_of(request)
    status = await gateway.backend.supervisor.status()
    collected = [
        *exposition.collect(gateway.backend.metrics_folders()),
        *exposition.from_series(await gateway.backend.supervisor.counted() or ()),
        *exposition.from_status(status),
        *exposition.processes(pids(status), used_by_roles(status)),
    ]
    # While the store is unavailable, the metrics of the processes matter all the more.
    with contextlib.suppress(StoreError, HTTPProblem):
        config = gateway.config
        collected += await gateway.backend.read(
            lambda tx: [
                *handler_metrics(tx, config),
                *limit_metrics(tx, config),
                *workflow_metrics(tx, config),
            ]
        )
    collected += zero_metrics(collected, gateway)
    data, media_type = exposition.render(
        collected, gateway.config.log.labels, request.headers.get("accept", "")
    )
    return Response(data, media_type=media_type, headers=DATA_HEADERS)


ROUTES = [
    Route("/heartbeat", heartbeat, methods=["GET"], access=Access.OPEN),
    Route("/ready", ready, methods=["GET"], access=Access.OPEN),
    Route("/metrics", show_metrics, methods=["GET"], access=Access.READ),
]
