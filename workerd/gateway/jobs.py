"""The routes of jobs."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from workerd import documents as workerd_documents
from workerd.gateway import params
from workerd.gateway.params import MAX_BULK_JOBS, EmptyBody, JobBody, JobsBody
from workerd.gateway.problems import HTTPProblem
from workerd.gateway.state import GatewayState, state
from workerd.job import ENDED
from workerd.job_spec import Checked, check
from workerd.operations.enqueue import admit
from workerd.store import job_control, queries
from workerd.store.base import Tx

KEY_SPACE = uuid.UUID("6f0dbd0c-8a5c-5a3b-9b0e-0d6f0b9f3c11")
"""Namespace of the ids that are derived from an Idempotency-Key (RFC 9562, UUIDv5)."""
KEY_LIMIT = 255
PAYLOAD_HEADERS = {
    # Whatever a handler returned must not run in a browser that has our cookie.
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "X-Content-Type-Options": "nosniff",
}


def answer(document: Any, status: int = 200) -> Response:
    """A JSON answer."""
    return Response(
        msgspec.json.encode(document),
        status_code=status,
        media_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def _id_of_key(request: Request, handler: str) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 0 < len(key) <= KEY_LIMIT or not key.isprintable():
        raise HTTPProblem(422, f"Idempotency-Key: expected 1 to {KEY_LIMIT} printable characters.")
    return str(uuid.uuid5(KEY_SPACE, f"{handler}\n{key}"))


def _checked(gateway: GatewayState, job: JobBody, job_id: str | None = None) -> Checked:
    return check(job.spec(job_id), gateway.config.gateway.max_body)


async def enqueue(request: Request) -> Response:
    """Enqueue one job."""
    gateway = state(request)
    new = await params.body(request, JobBody)
    checked = _checked(gateway, new, _id_of_key(request, new.handler))
    done, document = await gateway.gathering.enqueue(checked)
    gateway.backend.wake()
    result = answer(document, 201 if done.created else 200)
    result.headers["Location"] = f"/jobs/{done.id}"
    return result


async def enqueue_bulk(request: Request) -> Response:
    """Enqueue many, all or none."""
    gateway = state(request)
    new = await params.body(request, JobsBody)
    if len(new.jobs) > MAX_BULK_JOBS:
        raise HTTPProblem(422, f"jobs: expected at most {MAX_BULK_JOBS}, got {len(new.jobs)}.")
    checked = []
    for index, job in enumerate(new.jobs):
        try:
            checked.append(_checked(gateway, job))
        except ValueError as error:
            raise HTTPProblem(422, f"jobs[{index}]: {error}.") from None
    done = await gateway.backend.run(lambda tx: admit(tx, checked, gateway.config)) if checked else []
    gateway.backend.wake()
    return answer({"items": done}, 201)


async def only_post(request: Request) -> Response:
    """There is nothing to look at."""
    raise HTTPProblem(405, f"{request.method} is not for this path.", {"Allow": "POST"})


async def show(request: Request) -> Response:
    """One job with its attempts; `wait`: when it has ended."""
    gateway = state(request)
    key = params.job_id(request)
    seconds = params.wait(request)
    job = await gateway.backend.read(lambda tx: queries.get(tx, key))
    if seconds and job.row.status not in ENDED:
        await gateway.jobs.until_ended(key, seconds)
        job = await gateway.backend.read(lambda tx: queries.get(tx, key))
    return answer(workerd_documents.job(job))


async def payload(request: Request) -> Response:
    """What the job returned, as it is."""
    key = params.job_id(request)
    data, kind = await state(request).backend.read(lambda tx: queries.payload(tx, key))
    name = uuid.UUID(bytes=key)
    return Response(
        data,
        media_type="application/json" if kind == "json" else "application/octet-stream",
        headers={
            "Content-Disposition": f'attachment; filename="{name}{".json" if kind == "json" else ".bin"}"',
            **PAYLOAD_HEADERS,
        },
    )


async def list_(request: Request) -> Response:
    """Jobs by state, newest first."""
    wanted: dict[str, Any] = {
        "handler": params.text(request, "handler"),
        "status": params.status(request),
        "since": params.since(request),
        "limit": params.limit(request),
        "after": params.cursor(request),
    }
    page = await state(request).backend.read(lambda tx: queries.list_(tx, **wanted))
    return answer({"jobs": [workerd_documents.job(row) for row in page.rows], "next": page.next})


async def cancel(request: Request) -> Response:
    """End a job: 200 ended now, 202 asked for."""
    gateway = state(request)
    key = params.job_id(request)
    await params.body(request, EmptyBody)

    def work(tx: Tx) -> tuple[str, dict[str, Any]]:
        done = job_control.cancel(tx, key)
        return done, workerd_documents.job(queries.get(tx, key))

    done, document = await gateway.backend.run(work)
    gateway.backend.wake()
    return answer(document, 200 if done == "ended" else 202)


async def retry(request: Request) -> Response:
    """Run an ended job again."""
    gateway = state(request)
    key = params.job_id(request)
    await params.body(request, EmptyBody)

    def work(tx: Tx) -> dict[str, Any]:
        job_control.retry(tx, key)
        return workerd_documents.job(queries.get(tx, key))

    document = await gateway.backend.run(work)
    gateway.backend.wake()
    return answer(document, 201)


ROUTES = [
    Route("/jobs", enqueue, methods=["POST"]),
    Route("/jobs", list_, methods=["GET"]),
    Route("/jobs/bulk", enqueue_bulk, methods=["POST"]),
    # Otherwise "bulk" would be taken for an id, and there would be no such job.
    Route("/jobs/bulk", only_post, methods=["GET"]),
    Route("/jobs/{id}", show, methods=["GET"]),
    Route("/jobs/{id}/payload", payload, methods=["GET"]),
    Route("/jobs/{id}/cancel", cancel, methods=["POST"]),
    Route("/jobs/{id}/retry", retry, methods=["POST"]),
]
