"""The routes of handlers, nodes, schedules, their figures and the audit."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from workerd.document_types import Document
from workerd.gateway import params
from workerd.gateway.params import EmptyBody, PauseBody, ScheduleBody, UnholdBody
from workerd.gateway.problems import DATA_HEADERS
from workerd.gateway.roles import Access, Route
from workerd.gateway.state import actor_of, gateway_of, json_response
from workerd.job import id_text
from workerd.operations import audit, handlers, limits, schedules
from workerd.operations.access import Tx


async def list_handlers(request: Request) -> Response:
    """All handlers, or a page of them."""
    gateway = gateway_of(request)
    page = params.named_page(request)
    listed = await gateway.backend.read(lambda tx: handlers.list_(tx, gateway.config))
    return json_response(page.of("handlers", listed))


async def pause_handler(request: Request) -> Response:
    """Pause a handler: once this has answered, no node claims its jobs."""
    gateway, actor, name = gateway_of(request), actor_of(request), request.path_params["name"]
    reason = (await params.body(request, PauseBody)).reason

    def work(tx: Tx) -> Document:
        handlers.pause(tx, actor, gateway.config, name, reason)
        return handlers.find(tx, gateway.config, name)

    return json_response(await gateway.backend.write(work))


async def resume_handler(request: Request) -> Response:
    """Resume a paused handler."""
    gateway, actor, name = gateway_of(request), actor_of(request), request.path_params["name"]
    await params.body(request, EmptyBody)

    def work(tx: Tx) -> Document:
        handlers.resume(tx, actor, gateway.config, name)
        return handlers.find(tx, gateway.config, name)

    return json_response(await gateway.backend.write(work))


async def list_nodes(request: Request) -> Response:
    """All nodes, with the state of their lease, or a page of them."""
    page = params.node_page(request)
    return json_response(page.of("nodes", await gateway_of(request).backend.read(handlers.list_nodes)))


async def show_stats(request: Request) -> Response:
    """Waiting and running jobs, workers and rates of all handlers."""
    return json_response(await gateway_of(request).stats.read())


async def list_limits(request: Request) -> Response:
    """All limits, with what is used of them."""
    gateway = gateway_of(request)
    listed = await gateway.backend.read(lambda tx: limits.list_(tx, gateway.config))
    return json_response({"limits": listed, "next": None})


async def unhold_limit(request: Request) -> Response:
    """End the hold of a limit, or of one of its groups."""
    gateway, actor, name = gateway_of(request), actor_of(request), request.path_params["name"]
    group = (await params.body(request, UnholdBody)).group

    document, _ = await gateway.backend.write(
        lambda tx: limits.unhold(tx, actor, gateway.config, name, group)
    )
    return json_response(document)


async def list_schedules(request: Request) -> Response:
    """All schedules, or a page of them."""
    gateway = gateway_of(request)
    page = params.named_page(request)
    listed = await gateway.backend.read(lambda tx: schedules.list_(tx, gateway.config))
    return json_response(page.of("schedules", listed))


async def pause_schedule(request: Request) -> Response:
    """Pause a schedule: it starts nothing until it is resumed."""
    gateway, actor, name = gateway_of(request), actor_of(request), request.path_params["name"]
    await params.body(request, EmptyBody)
    document = await gateway.backend.write(lambda tx: schedules.pause(tx, actor, gateway.config, name))
    return json_response(document)


async def resume_schedule(request: Request) -> Response:
    """Resume a schedule from now on."""
    gateway, actor, name = gateway_of(request), actor_of(request), request.path_params["name"]
    await params.body(request, EmptyBody)
    document, _ = await gateway.backend.write(lambda tx: schedules.resume(tx, actor, gateway.config, name))
    return json_response(document)


async def run_schedule(request: Request) -> Response:
    """Run a schedule once now, paused or not."""
    gateway, actor, name = gateway_of(request), actor_of(request), request.path_params["name"]
    await params.body(request, EmptyBody)
    started = await gateway.backend.write(lambda tx: schedules.run_now(tx, actor, gateway.config, name))
    return json_response({"id": id_text(started)}, 201)


async def list_audit(request: Request) -> Response:
    """What people and programs changed, newest first."""
    filters: dict[str, Any] = {
        "actor": params.text(request, "actor"),
        "target": params.text(request, "target"),
        "since": params.since(request),
        "limit": params.limit(request),
        "after": params.cursor(request),
    }
    page = await gateway_of(request).backend.read(lambda tx: audit.list_(tx, **filters))
    return json_response(page._asdict())


async def show_schedule(request: Request) -> Response:
    """One schedule, with its last ticks."""
    gateway, name = gateway_of(request), request.path_params["name"]
    found = await gateway.backend.read(lambda tx: schedules.find(tx, gateway.config, name))
    return json_response(found[0])


async def set_schedule(request: Request) -> Response:
    """Create or replace a schedule: 201 or 200."""
    gateway, actor, name = gateway_of(request), actor_of(request), request.path_params["name"]
    given = (await params.body(request, ScheduleBody)).given()
    document, created = await gateway.backend.write(
        lambda tx: schedules.set_(tx, actor, gateway.config, name, given)
    )
    return json_response(document, 201 if created else 200)


async def remove_schedule(request: Request) -> Response:
    """Remove a schedule that was set at run time."""
    gateway, actor, name = gateway_of(request), actor_of(request), request.path_params["name"]
    await gateway.backend.write(lambda tx: schedules.remove(tx, actor, gateway.config, name))
    return Response(status_code=204, headers=DATA_HEADERS)


ROUTES = [
    Route("/handlers", list_handlers, methods=["GET"], access=Access.READ),
    Route("/handlers/{name}/pause", pause_handler, methods=["POST"], access=Access.ACT),
    Route("/handlers/{name}/resume", resume_handler, methods=["POST"], access=Access.ACT),
    Route("/audit", list_audit, methods=["GET"], access=Access.ACT),
    Route("/nodes", list_nodes, methods=["GET"], access=Access.READ),
    Route("/limits", list_limits, methods=["GET"], access=Access.READ),
    Route("/limits/{name}/unhold", unhold_limit, methods=["POST"], access=Access.ACT),
    Route("/stats", show_stats, methods=["GET"], access=Access.READ),
    Route("/schedules", list_schedules, methods=["GET"], access=Access.READ),
    Route("/schedules/{name}", show_schedule, methods=["GET"], access=Access.READ),
    Route("/schedules/{name}", set_schedule, methods=["PUT"], access=Access.ACT),
    Route("/schedules/{name}", remove_schedule, methods=["DELETE"], access=Access.ACT),
    Route("/schedules/{name}/pause", pause_schedule, methods=["POST"], access=Access.ACT),
    Route("/schedules/{name}/resume", resume_schedule, methods=["POST"], access=Access.ACT),
    Route("/schedules/{name}/run", run_schedule, methods=["POST"], access=Access.ACT),
]
