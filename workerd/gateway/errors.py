"""The routes of error groups."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from workerd import fingerprint as fingerprints
from workerd.config.quantities import duration
from workerd.errors import InvalidValue
from workerd.gateway import params
from workerd.gateway.bodies import EmptyBody, MuteBody, read_body
from workerd.gateway.problems import HTTPProblem
from workerd.gateway.roles import Access, Route
from workerd.gateway.state import actor_of, gateway_of, json_response
from workerd.operations import errors


async def list_(request: Request) -> Response:
    """Open groups, the one that failed last first."""
    filters: dict[str, Any] = {
        "handler": params.text(request, "handler"),
        "since": params.since(request),
        "everything": params.flag(request, "all"),
        "limit": params.limit(request),
        "after": params.cursor(request),
    }
    page = await gateway_of(request).backend.read(lambda tx: errors.list_(tx, **filters))
    return json_response(page._asdict())


def _fingerprint(request: Request) -> bytes:
    return parsed_fingerprint(request.path_params["fp"])


def parsed_fingerprint(text: str) -> bytes:
    """A fingerprint in hex. Raises HTTPProblem 422 for other text."""
    try:
        return fingerprints.parse(text)
    except InvalidValue as error:
        raise HTTPProblem(422, f"fingerprint: {error}.") from None


async def show(request: Request) -> Response:
    """One group."""
    fingerprint = _fingerprint(request)
    return json_response(await gateway_of(request).backend.read(lambda tx: errors.get(tx, fingerprint)))


async def resolve(request: Request) -> Response:
    """Close a group until it fails again."""
    fingerprint, actor = _fingerprint(request), actor_of(request)
    await read_body(request, EmptyBody)
    document = await gateway_of(request).backend.write(lambda tx: errors.resolve(tx, actor, fingerprint))
    return json_response(document)


async def mute(request: Request) -> Response:
    """Leave a group out of the list for some time."""
    fingerprint, actor = _fingerprint(request), actor_of(request)
    body = await read_body(request, MuteBody)
    try:
        seconds = duration(body.seconds)
    except InvalidValue as error:
        raise HTTPProblem(422, f"for: {error}.") from None
    document = await gateway_of(request).backend.write(
        lambda tx: errors.mute(tx, actor, fingerprint, seconds)
    )
    return json_response(document)


ROUTES = [
    Route("/errors", list_, methods=["GET"], access=Access.READ),
    Route("/errors/{fp}", show, methods=["GET"], access=Access.READ),
    Route("/errors/{fp}/resolve", resolve, methods=["POST"], access=Access.ACT),
    Route("/errors/{fp}/mute", mute, methods=["POST"], access=Access.ACT),
]
