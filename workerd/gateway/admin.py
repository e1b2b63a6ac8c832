"""The routes of handlers, nodes and schedules."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from workerd import documents
from workerd.config.model import Config
from workerd.gateway import params
from workerd.gateway.params import EmptyBody, PauseBody
from workerd.gateway.state import gateway_of, json_response
from workerd.job import id_text
from workerd.operations.enqueue import check_handlers
from workerd.schedule import Cron
from workerd.store import handlers, nodes, schedules
from workerd.store.base import Tx
from workerd.store.handlers import HandlerRow
from workerd.store.schedules import ScheduleRow


def paused_by(request: Request) -> str:
    """Who pauses: the gateway knows an address, not a person."""
    return f"http {request.client.host}" if request.client else "http"


# -- handlers


def known_handlers(tx: Tx, config: Config) -> list[HandlerRow]:
    """The stored handlers, and those of this configuration that no node has loaded yet."""
    rows = handlers.list_(tx)
    names = {row.name for row in rows}
    rows += [HandlerRow(name=name, known=True) for name in config.handlers if name not in names]
    return sorted(rows, key=lambda row: row.name)


async def list_handlers(request: Request) -> Response:
    """All handlers."""
    gateway = gateway_of(request)
    rows = await gateway.backend.read(lambda tx: known_handlers(tx, gateway.config))
    return json_response({"handlers": [documents.handler(row) for row in rows], "next": None})


def _one(tx: Tx, name: str, config: Config) -> dict[str, Any]:
    row = handlers.find(tx, name) or HandlerRow(name=name, known=name in config.handlers)
    return documents.handler(row)


async def pause_handler(request: Request) -> Response:
    """Pause a handler: once this has answered, no node claims its jobs."""
    gateway = gateway_of(request)
    name = request.path_params["name"]
    reason = (await params.body(request, PauseBody)).reason

    def work(tx: Tx) -> dict[str, Any]:
        check_handlers([name], handlers.known(tx), gateway.config)
        handlers.pause(tx, name, paused_by(request), reason)
        return _one(tx, name, gateway.config)

    document = await gateway.backend.write(work)
    return json_response(document)


async def resume_handler(request: Request) -> Response:
    """Resume a paused handler."""
    gateway = gateway_of(request)
    name = request.path_params["name"]
    await params.body(request, EmptyBody)

    def work(tx: Tx) -> dict[str, Any]:
        check_handlers([name], handlers.known(tx), gateway.config)
        if handlers.find(tx, name) is not None:
            handlers.resume(tx, name)
        return _one(tx, name, gateway.config)

    document = await gateway.backend.write(work)
    return json_response(document)


# -- nodes


async def list_nodes(request: Request) -> Response:
    """All nodes, with the state of their lease."""

    def work(tx: Tx) -> list[dict[str, Any]]:
        return [documents.node(row, tx.now) for row in nodes.list_(tx)]

    return json_response({"nodes": await gateway_of(request).backend.read(work), "next": None})


# -- schedules


def known_schedules(tx: Tx, config: Config) -> list[dict[str, Any]]:
    """The stored schedules, and those of this configuration that have not started yet."""
    rows = {row.name: row for row in schedules.list_(tx)}
    for name, schedule in schedules.wanted(config).items():
        if name not in rows:
            kind, expression, timezone = schedules.described(schedule)
            rows[name] = ScheduleRow(
                name=name, kind=kind, expression=expression, timezone=timezone,
                last_tick=None, last_job=None, paused_at=None, paused_by=None,
            )  # fmt: skip
    return [_schedule(rows[name], tx.now) for name in sorted(rows)]


def _schedule(row: ScheduleRow, now: int) -> dict[str, Any]:
    upcoming = None
    if row.kind == "cron" and row.paused_at is None:
        upcoming = next(iter(Cron(row.expression, row.timezone).after(now)), None)
    return documents.schedule(row, upcoming)


async def list_schedules(request: Request) -> Response:
    """All schedules."""
    gateway = gateway_of(request)
    rows = await gateway.backend.read(lambda tx: known_schedules(tx, gateway.config))
    return json_response({"schedules": rows, "next": None})


async def pause_schedule(request: Request) -> Response:
    """Pause a schedule: it starts nothing until it is resumed."""
    name = request.path_params["name"]
    await params.body(request, PauseBody)
    return await _act(request, lambda tx: schedules.pause(tx, name, paused_by(request)))


async def resume_schedule(request: Request) -> Response:
    """Resume a schedule from now on."""
    name = request.path_params["name"]
    await params.body(request, EmptyBody)
    return await _act(request, lambda tx: schedules.resume(tx, name))


async def _act(request: Request, act: Any) -> Response:
    gateway = gateway_of(request)
    name = request.path_params["name"]

    def work(tx: Tx) -> dict[str, Any]:
        act(tx)
        return _schedule(schedules.find(tx, name), tx.now)

    document = await gateway.backend.write(work)
    return json_response(document)


async def run_schedule(request: Request) -> Response:
    """Run a schedule once now, paused or not."""
    gateway = gateway_of(request)
    name = request.path_params["name"]
    await params.body(request, EmptyBody)
    workflow = name in gateway.config.workflows
    made = await gateway.backend.write(lambda tx: schedules.run_now(tx, name, workflow=workflow))
    return json_response({"id": id_text(made)}, 201)


ROUTES = [
    Route("/handlers", list_handlers, methods=["GET"]),
    Route("/handlers/{name}/pause", pause_handler, methods=["POST"]),
    Route("/handlers/{name}/resume", resume_handler, methods=["POST"]),
    Route("/nodes", list_nodes, methods=["GET"]),
    Route("/schedules", list_schedules, methods=["GET"]),
    Route("/schedules/{name}/pause", pause_schedule, methods=["POST"]),
    Route("/schedules/{name}/resume", resume_schedule, methods=["POST"]),
    Route("/schedules/{name}/run", run_schedule, methods=["POST"]),
]
