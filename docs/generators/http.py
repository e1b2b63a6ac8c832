"""The page of HTTP, from the OpenAPI document that the gateway serves."""

from __future__ import annotations

from typing import Any

import msgspec

from workerd.gateway import openapi
from workerd.gateway.app import ROUTES

_HEAD = """# HTTP

The gateway (`[gateway] listen`) serves this interface, and the same as an OpenAPI 3.1 document at `/schema`. Bodies
and answers are JSON; an error is a problem document (RFC 9457) whose `detail` says what was expected: 400 for a body that is
not valid JSON, 401 without a token, 403 for the wrong role or Host, 404, 409 for a state that does not allow it, 413 for a
body that is too large, 415 for one without `Content-Type: application/json`, 422 for a wrong value in a body or parameter,
429 when a handler has enough waiting, 503 while the store is away. With a token file a request needs
`Authorization: Bearer TOKEN`, and the role in the table. A name in a path is one segment, percent-encoded: the handler `mail/daily` is paused by `POST /handlers/mail%2Fdaily/pause`.

`Idempotency-Key` (a text of your own) makes `POST /jobs`, `/jobs/bulk` and `/requests` safe to repeat. A commit whose
answer was lost is 503 with `"unknown": true` and the `ids` that exist if it took effect: send the same again.

| route | | role | answers |
|---|---|---|---|
"""


def page() -> str:
    """The routes, then each body and document with its fields."""
    document = msgspec.json.decode(openapi.document(True, openapi.roles_of(ROUTES)))
    rows, bodies = [], {}
    for path, methods in document["paths"].items():
        if path.startswith(("/ui", "/login")) or path in ("/", "/events"):
            continue  # the dashboard, for browsers
        for method, operation in methods.items():
            rows.append(_row(path, method, operation))
            body = operation.get("requestBody")
            if body is not None:
                name = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
                bodies.setdefault(name, []).append(f"`{method.upper()} {path}`")
    schemas = document["components"]["schemas"]
    parts = [_HEAD + "\n".join(rows) + "\n", "## Bodies\n"]
    parts += [_schema(name, schemas[name], f"Of {', '.join(used)}.") for name, used in sorted(bodies.items())]
    parts.append("## Documents\n")
    parts += [_schema(name, schema, "") for name, schema in sorted(schemas.items()) if name not in bodies]
    return "\n".join(parts)


def _row(path: str, method: str, operation: dict[str, Any]) -> str:
    query = [p["name"] for p in operation["parameters"] if p["in"] == "query"]
    roles = operation.get("x-roles")
    good = [status for status in operation["responses"] if status < "4"]
    parameters = f"; parameters {', '.join(f'`{name}`' for name in query)}" if query else ""
    return (
        f"| `{method.upper()} {path}` | {_cell(operation['summary'])}{parameters} |"
        f" {', '.join(roles) if roles else 'none'} | {', '.join(good)} |"
    )


def _schema(name: str, schema: dict[str, Any], used: str) -> str:
    lines = [f"### {name}", "", " ".join(filter(None, [_prose(schema.get("description", "")), used])), ""]
    properties = schema.get("properties", {})
    if properties:
        required = set(schema.get("required", ()))
        lines += ["| field | type | |", "|---|---|---|"]
        lines += [
            f"| `{key}` | {_cell(_type(kind))} | {'required' if key in required else ''} |"
            for key, kind in properties.items()
        ]
        lines.append("")
    return "\n".join(lines)


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "any JSON")
    if isinstance(kind, list):
        kind = " or ".join(kind)
    if kind == "array" and "items" in schema:
        return f"array of {_type(schema['items'])}"
    return f"{kind}, {schema['format']}" if "format" in schema else str(kind)


def _prose(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _prose(text).replace("|", "\\|")
