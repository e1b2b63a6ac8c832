"""The search box of the header: leads to what an id, fingerprint, handler or `key=value` of meta names."""

from __future__ import annotations

from urllib.parse import quote, urlencode

from workerd.errors import InvalidValue, NotFound
from workerd.fingerprint import parse as parse_fingerprint
from workerd.gateway.problems import HTTPProblem
from workerd.gateway.state import GatewayState
from workerd.job import NAME_LIMIT, id_text, parse_id
from workerd.operations import errors, handlers, jobs, requests
from workerd.operations.access import Tx


async def find(gateway: GatewayState, text: str) -> str:
    """The path of what is searched for. Raises HTTPProblem 404 if there is nothing, 422 for no text."""
    text = text.strip()
    if not 0 < len(text) <= NAME_LIMIT:
        raise HTTPProblem(422, f"q: expected 1 to {NAME_LIMIT} characters.")
    key, equals, _ = text.partition("=")
    if key.strip() and equals:
        return f"/ui/jobs?{urlencode({'meta': text})}"
    found = await gateway.backend.read(lambda tx: _find(tx, gateway, text))
    if found is None:
        raise HTTPProblem(
            404,
            f"Nothing found for {text!r}: expected the id of a job or request, the fingerprint of an error,"
            " the name of a handler, or KEY=VALUE of meta.",
        )
    return found


def _find(tx: Tx, gateway: GatewayState, text: str) -> str | None:
    return _by_id(tx, text) or _by_fingerprint(tx, text) or _by_handler(tx, gateway, text)


def _by_id(tx: Tx, text: str) -> str | None:
    try:
        key = parse_id(text)
    except InvalidValue:
        return None
    for kind, ended in (("jobs", jobs.ended), ("requests", requests.ended)):
        try:
            ended(tx, key)
        except NotFound:
            continue
        return f"/ui/{kind}/{id_text(key)}"
    return None


def _by_fingerprint(tx: Tx, text: str) -> str | None:
    try:
        errors.get(tx, parse_fingerprint(text))
    except (InvalidValue, NotFound):
        return None
    return f"/ui/errors/{quote(text.lower(), safe='')}"


def _by_handler(tx: Tx, gateway: GatewayState, text: str) -> str | None:
    names = [handler["name"] for handler in handlers.list_(tx, gateway.config)]
    return f"/ui/jobs?{urlencode({'handler': text})}" if text in names else None
