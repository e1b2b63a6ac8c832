"""The routes of requests: runs of workflows."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from workerd.document_types import Enqueued
from workerd.gateway import params
from workerd.gateway.bodies import EmptyBody, RequestBody, read_any_json, read_body
from workerd.gateway.idempotency import IdempotencyKey
from workerd.gateway.problems import HTTPProblem
from workerd.gateway.roles import Access, Route
from workerd.gateway.state import actor_of, gateway_of, json_response, look_up
from workerd.job import id_text, parse_id
from workerd.operations import request_graphs, requests
from workerd.operations.access import Tx
from workerd.operations.request_graphs import Plan
from workerd.tracing import switch as tracing
from workerd.workflow import ADHOC, RequestStatus


async def submit(request: Request) -> Response:
    """Submit a request."""
    gateway = gateway_of(request)
    body = await read_body(request, RequestBody)
    if (body.workflow is None) == (body.jobs is None):
        raise HTTPProblem(422, "Expected either workflow or jobs.")
    if body.workflow is None:
        return await _submit_graph(request, body)
    if body.graph().keys() - {"params"}:
        raise HTTPProblem(422, "Expected then, finally, name and max_failures with jobs only.")
    workflow = body.workflow
    requests.check_workflow(gateway.config, workflow)
    request_params = requests.checked_params(gateway.config, body.params)

    key = IdempotencyKey.of(request, "request")

    key_id = None if key is None else key.id().bytes
    with tracing.submitting(gateway.tracing, workflow, params.trace_context(request)) as submitting:
        traceparent = tracing.traceparent_of(submitting)

        def work(tx: Tx) -> tuple[Enqueued, dict[str, Any]]:
            submitted = requests.submit(tx, workflow, request_params, key_id, traceparent)
            if not submitted.created:
                requests.check_repeat(tx, parse_id(submitted.id), workflow, request_params)
            return submitted, requests.get(tx, parse_id(submitted.id), gateway.rules)

        done, document = await gateway.backend.write(work)
        submitting.enqueued = [done]
    created = done.created
    response = json_response(document, 201 if created else 200)
    response.headers["Location"] = f"/requests/{document['id']}"
    return response


async def _submit_graph(request: Request, body: RequestBody) -> Response:
    gateway = gateway_of(request)
    key = IdempotencyKey.of(request, "request")

    key_id = None if key is None else key.id().bytes
    with tracing.submitting(gateway.tracing, ADHOC, params.trace_context(request)) as submitting:
        context = tracing.context_of(submitting)

        def plan_of(tx: Tx) -> Plan:
            return request_graphs.traced(request_graphs.checked(tx, gateway.config, body.graph()), context)

        def work(tx: Tx) -> tuple[Enqueued, dict[str, Any]]:
            plan = plan_of(tx)
            submitted = request_graphs.submit(tx, plan, key_id)
            if not submitted.created:
                request_graphs.check_repeat(tx, parse_id(submitted.id), plan)
            return submitted, requests.get(tx, parse_id(submitted.id), gateway.rules)

        if len(body.jobs or ()) <= request_graphs.SLICE_JOBS:
            done, document = await gateway.backend.write(work)
        else:
            plan = await gateway.backend.read(plan_of)
            done = await gateway.backend.write_each(
                lambda run: request_graphs.submit_in_slices(run, plan, key_id)
            )
            document = await gateway.backend.read(
                lambda tx: requests.get(tx, parse_id(done.id), gateway.rules)
            )
        submitting.enqueued = [done]
    created = done.created
    response = json_response(document, 201 if created else 200)
    response.headers["Location"] = f"/requests/{document['id']}"
    return response


async def signal(request: Request) -> Response:
    """Give a signal to a request; the body is its payload, any JSON."""
    gateway, actor, request_id = gateway_of(request), actor_of(request), params.job_id(request)
    name = request.path_params["name"]
    payload = await read_any_json(request)
    await gateway.backend.write(
        lambda tx: requests.signal(tx, actor, gateway.config, request_id, name, payload)
    )
    document = await gateway.backend.read(lambda tx: requests.get(tx, request_id, gateway.rules))
    return json_response(document, 202)


async def show(request: Request) -> Response:
    """One request with its jobs; with `wait`, once it has ended."""
    gateway = gateway_of(request)
    request_id = params.job_id(request)
    wait_s = params.wait(request)
    if wait_s and not await gateway.backend.read(lambda tx: requests.ended(tx, request_id)):
        await gateway.request_polls.wait(request_id, wait_s)
    return json_response(
        await look_up(request, lambda tx, rules: requests.get(tx, request_id, rules), id_text(request_id))
    )


async def list_(request: Request) -> Response:
    """Requests, newest first."""
    filters: dict[str, Any] = {
        "status": params.status(request, RequestStatus),
        "workflow": params.text(request, "workflow"),
        "since": params.since(request),
        "limit": params.limit(request),
        "after": params.cursor(request),
    }
    page = await look_up(
        request,
        lambda tx, rules: requests.list_(tx, **filters, rules=rules),
        filters["workflow"],
        dict(request.query_params),
    )
    return json_response(page._asdict())


async def cancel(request: Request) -> Response:
    """Cancel a request: 200 if it has ended, 202 if running jobs have to stop first."""
    request_id, actor = params.job_id(request), actor_of(request)
    await read_body(request, EmptyBody)

    gateway = gateway_of(request)

    def work(tx: Tx) -> tuple[str, dict[str, Any]]:
        result = requests.cancel(tx, actor, request_id)
        return result, requests.get(tx, request_id, gateway.rules)

    result, document = await gateway.backend.write(work)
    return json_response(document, 200 if result == "ended" else 202)


ROUTES = [
    Route("/requests", submit, methods=["POST"], access=Access.ENQUEUE),
    Route("/requests", list_, methods=["GET"], access=Access.READ),
    Route("/requests/{id}", show, methods=["GET"], access=Access.LOOK_UP),
    Route("/requests/{id}/signals/{name}", signal, methods=["POST"], access=Access.ACT),
    Route("/requests/{id}/cancel", cancel, methods=["POST"], access=Access.ACT),
]
