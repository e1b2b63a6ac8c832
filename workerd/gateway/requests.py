"""The routes of requests: runs of workflows."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from workerd import documents as workerd_documents
from workerd.gateway import params as gateway_params
from workerd.gateway.jobs import answer
from workerd.gateway.params import EmptyBody, RequestBody
from workerd.gateway.problems import HTTPProblem
from workerd.gateway.state import state
from workerd.job_spec import params_json
from workerd.store import requests
from workerd.store.base import Tx

STATUSES = ("queuing", "inprogress", "completed", "failed", "cancelled")
ENDED = ("completed", "failed", "cancelled")


def view(tx: Tx, key: bytes) -> dict[str, Any]:
    """The document of a request with its jobs."""
    row, jobs = requests.get(tx, key)
    return workerd_documents.request(row, jobs)


async def submit(request: Request) -> Response:
    """Begin a request."""
    gateway = state(request)
    new = await gateway_params.body(request, RequestBody)
    if new.workflow not in gateway.config.workflows:
        known = ", ".join(sorted(gateway.config.workflows)) or "none"
        raise HTTPProblem(422, f"There is no workflow {new.workflow!r}; known are: {known}.")
    params = params_json(new.params, gateway.config.gateway.max_body)

    def work(tx: Tx) -> dict[str, Any]:
        return view(tx, requests.submit(tx, new.workflow, params).id)

    document = await gateway.backend.run(work)
    gateway.backend.wake()
    result = answer(document, 201)
    result.headers["Location"] = f"/requests/{document['id']}"
    return result


async def show(request: Request) -> Response:
    """One request with its jobs; `wait`: when it has ended."""
    gateway = state(request)
    key = gateway_params.job_id(request)
    seconds = gateway_params.wait(request)
    document = await gateway.backend.read(lambda tx: view(tx, key))
    if seconds and document["status"] not in ENDED:
        await gateway.requests.until_ended(key, seconds)
        document = await gateway.backend.read(lambda tx: view(tx, key))
    return answer(document)


async def list_(request: Request) -> Response:
    """Requests, newest first."""
    status = request.query_params.get("status")
    if status is not None and status not in STATUSES:
        raise HTTPProblem(422, f"status: expected one of {', '.join(STATUSES)}.")
    wanted: dict[str, Any] = {
        "status": status,
        "workflow": gateway_params.text(request, "workflow"),
        "since": gateway_params.since(request),
        "limit": gateway_params.limit(request),
        "after": gateway_params.cursor(request),
    }
    page = await state(request).backend.read(lambda tx: requests.list_(tx, **wanted))
    return answer({"requests": [workerd_documents.request(row) for row in page.rows], "next": page.next})


async def cancel(request: Request) -> Response:
    """End a request: 200 ended now, 202 when its running jobs have ended."""
    gateway = state(request)
    key = gateway_params.job_id(request)
    await gateway_params.body(request, EmptyBody)

    def work(tx: Tx) -> tuple[str, dict[str, Any]]:
        done = requests.cancel(tx, key)
        return done, view(tx, key)

    done, document = await gateway.backend.run(work)
    gateway.backend.wake()
    return answer(document, 200 if done == "ended" else 202)


ROUTES = [
    Route("/requests", submit, methods=["POST"]),
    Route("/requests", list_, methods=["GET"]),
    Route("/requests/{id}", show, methods=["GET"]),
    Route("/requests/{id}/cancel", cancel, methods=["POST"]),
]
