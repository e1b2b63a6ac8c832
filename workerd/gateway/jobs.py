"""The routes of jobs."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from workerd.document_types import Document, Enqueued
from workerd.errors import InvalidValue
from workerd.gateway import params
from workerd.gateway.bodies import (
    MAX_BULK_JOBS,
    EditBody,
    EmptyBody,
    JobBody,
    JobFields,
    JobsBody,
    RetryBody,
    read_body,
)
from workerd.gateway.idempotency import IdempotencyKey
from workerd.gateway.problems import HTTPProblem
from workerd.gateway.roles import Access, Route
from workerd.gateway.state import GatewayState, actor_of, gateway_of, json_response, look_up, only_post
from workerd.job import AttemptRef, Status, id_text
from workerd.job_spec import NewJob
from workerd.operations import jobs, logs
from workerd.operations.access import Tx
from workerd.operations.edit import Edit
from workerd.operations.edit import edit as edit_job
from workerd.operations.enqueue import admit, checked
from workerd.operations.logs import LogTail
from workerd.operations.repeats import check_repeat
from workerd.operations.rules import Rules
from workerd.operations.why import explain
from workerd.tracing import switch as tracing
from workerd.tracing.context import TraceContext

PAYLOAD_HEADERS = {
    # A payload must never run as a page of this origin, which has the session cookie.
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "X-Content-Type-Options": "nosniff",
}


def _checked(gateway: GatewayState, job: JobFields, job_id: uuid.UUID | None = None) -> NewJob:
    return checked(job.spec(None if job_id is None else str(job_id)), gateway.config)


def _caller_span(request: Request) -> TraceContext | None:
    return None if gateway_of(request).tracing is None else params.trace_context(request)


async def enqueue(request: Request) -> Response:
    """Enqueue one job."""
    gateway = gateway_of(request)
    body = await read_body(request, JobBody)
    key = IdempotencyKey.of(request, "job")
    job = _checked(gateway, body, None if key is None else key.id())
    with tracing.sending(gateway.tracing, [job], _caller_span(request)) as sending:
        done, document = await gateway.batch_enqueue.enqueue(sending.jobs[0])
        sending.enqueued = [done]
    answer = document | {"created": done.created, "replaced": done.replaced}
    return json_response(answer, 201 if done.created else 200, {"Location": f"/jobs/{done.id}"})


async def enqueue_bulk(request: Request) -> Response:
    """Enqueue many jobs, all or none."""
    gateway = gateway_of(request)
    body = await read_body(request, JobsBody)
    if len(body.jobs) > MAX_BULK_JOBS:
        raise HTTPProblem(422, f"jobs: expected at most {MAX_BULK_JOBS}, got {len(body.jobs)}.")
    key = IdempotencyKey.of(request, "jobs")
    new_jobs = []
    for index, job in enumerate(body.jobs):
        try:
            new_jobs.append(_checked(gateway, job, None if key is None else key.id(index)))
        except InvalidValue as error:
            raise HTTPProblem(422, f"jobs[{index}]: {error}.") from None
    if not new_jobs:
        return json_response({"items": []}, 201)

    with tracing.sending(gateway.tracing, new_jobs, _caller_span(request)) as sending:

        def work(tx: Tx) -> list[Enqueued]:
            done = admit(tx, sending.jobs, gateway.config)
            if key is not None:
                check_repeat(tx, new_jobs, done, following=key.id(len(new_jobs)).bytes)
            return done

        sending.enqueued = done = await gateway.backend.write(
            work, handlers={job.handler for job in new_jobs}
        )
    return json_response({"items": done}, 201 if key is None or any(one.created for one in done) else 200)


async def show(request: Request) -> Response:
    """One job with its attempts; with `wait`, once it has ended."""
    gateway = gateway_of(request)
    job_id = params.job_id(request)
    wait_s = params.wait(request)
    if wait_s and not await gateway.backend.read(lambda tx: jobs.ended(tx, job_id)):
        await gateway.job_polls.wait(job_id, wait_s)
    return json_response(
        await look_up(request, lambda tx, rules: jobs.get(tx, job_id, rules), id_text(job_id))
    )


async def why(request: Request) -> Response:
    """What a job waits for, or how it ended, in sentences."""
    gateway = gateway_of(request)
    job_id = params.job_id(request)
    pools = (await gateway.backend.supervisor.status()).get("pools") or {}

    def work(tx: Tx, rules: Rules) -> tuple[Document, list[str], LogTail]:
        return *explain(tx, gateway.config, job_id, pools, rules), logs.tail(tx, job_id)

    job, reasons, log = await look_up(request, work, id_text(job_id))
    answer = {"id": job["id"], "status": job["status"], "why": reasons}
    return json_response({**answer, "log": log.lines, "log_attempt": log.attempt, "job": job})


async def payload(request: Request) -> Response:
    """The payload as bytes."""
    job_id = params.job_id(request)
    data, kind = await look_up(request, lambda tx, rules: jobs.payload(tx, job_id, rules), id_text(job_id))
    is_json = kind == "json"
    filename = f"{uuid.UUID(bytes=job_id)}{'.json' if is_json else '.bin'}"
    return Response(
        data,
        media_type="application/json" if is_json else "application/octet-stream",
        headers={"Content-Disposition": f'attachment; filename="{filename}"', **PAYLOAD_HEADERS},
    )


async def log(request: Request) -> Response:
    """The log kept with an attempt, or of one that runs on this node."""
    job_id, attempt = params.job_id(request), params.attempt(request)
    backend = gateway_of(request).backend
    live = await backend.supervisor.live_log(AttemptRef(job_id, attempt or 0))
    if live is not None and not live["ended"]:
        text = live["text"]
    else:
        text = (await backend.read(lambda tx: logs.get(tx, job_id, attempt))).text
    return Response(text, media_type="text/plain; charset=utf-8", headers=PAYLOAD_HEADERS)


async def list_(request: Request) -> Response:
    """Jobs, newest made or ended first."""
    filters: dict[str, Any] = {
        "handler": params.text(request, "handler"),
        "status": params.status(request, Status),
        "since": params.since(request),
        "until": params.until(request),
        "reason": params.reason(request),
        "error": params.fingerprint(request, "error"),
        "group": params.text(request, "group"),
        "request": params.identity(request, "request"),
        "meta": params.meta(request),
        "limit": params.limit(request),
        "after": params.cursor(request),
    }
    page = await look_up(
        request,
        lambda tx, rules: jobs.list_(tx, **filters, rules=rules),
        filters["handler"],
        dict(request.query_params),
    )
    return json_response(page._asdict())


async def cancel(request: Request) -> Response:
    """Cancel a job: 200 if it has ended, 202 if its worker was asked to stop."""
    job_id, actor = params.job_id(request), actor_of(request)
    await read_body(request, EmptyBody)

    gateway = gateway_of(request)

    def work(tx: Tx) -> tuple[str, dict[str, Any]]:
        result = jobs.cancel(tx, actor, job_id)
        return result, jobs.get(tx, job_id, gateway.rules)

    result, document = await gateway.backend.write(work)
    return json_response(document, 200 if result == "ended" else 202)


async def edit(request: Request) -> Response:
    """Change a job that waits."""
    job_id, actor, gateway = params.job_id(request), actor_of(request), gateway_of(request)
    body = await read_body(request, EditBody)
    given = not isinstance(body.group, msgspec.UnsetType)
    group = None if isinstance(body.group, msgspec.UnsetType) else body.group
    change = Edit(body.vars or {}, body.priority, body.run_at, group, given)

    def work(tx: Tx) -> dict[str, Any]:
        edit_job(tx, actor, gateway.config, job_id, change)
        return jobs.get(tx, job_id, gateway.rules)

    return json_response(await gateway.backend.write(work))


async def retry(request: Request) -> Response:
    """Run an ended job again, or a scheduled one now."""
    job_id, actor = params.job_id(request), actor_of(request)
    body = await read_body(request, RetryBody)

    gateway = gateway_of(request)

    def work(tx: Tx) -> dict[str, Any]:
        jobs.retry(tx, actor, job_id, fresh=body.fresh, config=gateway.config, vars_=body.vars)
        return jobs.get(tx, job_id, gateway.rules)

    return json_response(await gateway.backend.write(work), 201)


ROUTES = [
    Route("/jobs", enqueue, methods=["POST"], access=Access.ENQUEUE),
    Route("/jobs", list_, methods=["GET"], access=Access.READ),
    Route("/jobs/bulk", enqueue_bulk, methods=["POST"], access=Access.ENQUEUE),
    # Otherwise "bulk" would be taken for an id.
    Route("/jobs/bulk", only_post, methods=["GET", "PATCH"], access=Access.OPEN),
    Route("/jobs/{id}", show, methods=["GET"], access=Access.LOOK_UP),
    Route("/jobs/{id}", edit, methods=["PATCH"], access=Access.ACT),
    Route("/jobs/{id}/why", why, methods=["GET"], access=Access.LOOK_UP),
    Route("/jobs/{id}/payload", payload, methods=["GET"], access=Access.LOOK_UP),
    Route("/jobs/{id}/log", log, methods=["GET"], access=Access.LOOK_UP),
    Route("/jobs/{id}/cancel", cancel, methods=["POST"], access=Access.ACT),
    Route("/jobs/{id}/retry", retry, methods=["POST"], access=Access.ACT),
]
