"""The OpenAPI document describes every route, and the gateway's answers match it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.support.gateway import Api
from workerd.gateway.app import ROUTES
from workerd.gateway.dashboard.routes import PAGES as VIEWS
from workerd.gateway.openapi import OPERATIONS, PAGES, document
from workerd.gateway.state import only_post

MIN_CASES = 2000
HOOKS = """
import schemathesis

@schemathesis.hook
def map_query(ctx, query):
    # A long wait only delays the answer.
    if query and "wait" in query:
        query["wait"] = "10ms"
    return query
"""
# What a schema cannot express, such as the known handlers, is refused with 422 and the like.
SETTINGS = """
hooks = "hooks"
[checks]
positive_data_acceptance.expected-statuses = ["2xx", "303", "401", "404", "409", "422", "429"]
negative_data_rejection.expected-statuses = ["400", "401", "403", "404", "405", "415", "422"]

# A new job has no payload yet: a documented 404.
[[operations]]
include-path = "/jobs/{id}/payload"
checks.ensure_resource_availability.enabled = false
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("token", ["", "s3cr3t-token"], ids=["open", "locked"])
def test_only_documented_answers(tmp_path: Path, store_url: str, token: str) -> None:
    """Thousands of requests, valid and not, get documented answers, and no route crashes."""
    folder = tmp_path / "fuzz"
    folder.mkdir()
    (folder / "hooks.py").write_text(HOOKS)
    (folder / "schemathesis.toml").write_text(SETTINGS)
    gateway = ""
    headers = []
    if token:
        (folder / "tokens").write_text(token + "\n")
        gateway = f'token_file = "{folder}/tokens"'
        headers = ["--header", f"Authorization: Bearer {token}"]
    with Api(tmp_path / "node", store_url, gateway=gateway) as api:
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("st")), "--config-file", str(folder / "schemathesis.toml"),
                "run", f"http://{api.address}/schema", "--checks", "all", "--max-examples", "60",
                "--exclude-path", "/events", "--request-timeout", "20", "--workers", "1", "--no-color",
                "--generation-deterministic", "--warnings", "off", *headers,
            ],
            cwd=folder, capture_output=True, text=True, timeout=850, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-4000:]
        counted = re.search(r"([\d,]+) generated", done.stdout)
        assert counted is not None
        assert int(counted[1].replace(",", "")) >= MIN_CASES, done.stdout[-2000:]
        assert "Traceback" not in api.daemon.logged()
        assert api.get("/heartbeat").status_code == 200


def test_every_route_is_described() -> None:
    """The document has each method of each route, and no others."""
    described = {(op.method.upper(), op.path) for op in OPERATIONS}
    served = {
        (method, route.path)
        for route in ROUTES
        if route.endpoint is not only_post
        for method in route.methods or ()
        if method != "HEAD"
    }
    pages = {("GET", page) for page, _ in PAGES}
    assert described - pages == served - {("GET", "/ui/{rest:path}"), ("GET", "/ui/")}
    assert all(any(view.path.fullmatch(page) for view in VIEWS) for _, page in pages)
    assert b'"$ref"' in document(True)
    assert b"securitySchemes" in document(True)
    assert b"securitySchemes" not in document(False)


def test_references_resolve() -> None:
    """Every schema that the document refers to is in it."""
    references = set(re.findall(rb'"#/components/schemas/(\w+)"', document(True)))
    schemas = msgspec.json.decode(document(True))["components"]["schemas"]
    assert {name.decode() for name in references} <= schemas.keys()


def test_times_of_answers() -> None:
    """Times of answers are declared as RFC 3339; those of bodies keep their own constraints."""
    schemas = msgspec.json.decode(document(True))["components"]["schemas"]
    assert schemas["Job"]["properties"]["run_at"] == {"type": ["string", "null"], "format": "date-time"}
    assert "pattern" in str(schemas["JobBody"]["properties"]["run_at"])
