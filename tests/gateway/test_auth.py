"""Tokens: where they are required, how they change, and sessions of browsers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.eventually import eventually
from tests.support.gateway import Api
from workerd.gateway.openapi import OPERATIONS, PAGES

UNKNOWN = "01900000-0000-7000-8000-000000000000"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The token file."""
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text("# for people\nfirst\n\nsecond\n")
    return path


@pytest.fixture(scope="module")
def api(tokens: Path) -> Iterator[Api]:
    """A node that accepts two tokens."""
    folder = tokens.parent
    gateway = f'token_file = "{tokens}"'
    with Api(folder / "node", f"sqlite:///{folder}/store.db", gateway=gateway) as api:
        yield api


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_every_route_requires_a_token(api: Api) -> None:
    """Without a token each route but the heartbeat answers 401, and pages redirect to the login."""
    for operation in OPERATIONS:
        path = operation.path.replace("{id}", UNKNOWN).replace("{name}", "noop")
        answer = api.http.request(operation.method, path, json={} if operation.method == "post" else None)
        if operation.path in ("/", *(page for page, _ in PAGES)):
            assert (answer.status_code, answer.headers["location"]) == (303, "/login"), path
        elif operation.open:
            assert answer.status_code != 401 or path == "/login", path
        else:
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"].startswith("Bearer")


def test_valid_tokens(api: Api) -> None:
    """Each token of the file is valid, with the scheme in either case; nothing else is."""
    assert api.get("/jobs", headers=bearer("first")).status_code == 200
    assert api.get("/jobs", headers={"Authorization": "bearer second"}).status_code == 200
    for wrong in ("firs", "firstt", "# for people", "First", "for people", "é"):
        headers = {"Authorization": f"Bearer {wrong}".encode()}
        assert api.http.get("/jobs", headers=headers).status_code == 401, wrong
    assert api.get("/jobs", headers={"Authorization": "Basic Zmlyc3Q="}).status_code == 401


def test_a_browser_logs_in_and_out(api: Api) -> None:
    """A token is exchanged for a cookie that scripts cannot read and other sites cannot send."""
    with httpx.Client(base_url=api.http.base_url) as browser:
        assert browser.post("/login", json={"token": "wrong"}).status_code == 401
        answer = browser.post("/login", json={"token": "second"})
        assert answer.status_code == 200
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
        assert "second" not in cookie
        assert browser.get("/").status_code == 200
        assert "Log out" in browser.get("/").text
        assert browser.get("/jobs").status_code == 200
        assert browser.post("/ui/logout", json={}).status_code == 200
        assert browser.get("/jobs").status_code == 401
    for value in ("", "x", "second", '"'):
        assert api.get("/jobs", headers={"Cookie": f"workerd_session={value}"}).status_code == 401


def test_tokens_change(api: Api, tokens: Path) -> None:
    """A token that is removed from the file is soon refused, and its sessions with it."""
    with httpx.Client(base_url=api.http.base_url) as browser:
        assert browser.post("/login", json={"token": "first"}).is_success
        tokens.write_text("third\nsecond\n")
        api.daemon.cli("reload")
        eventually(lambda: api.get("/jobs", headers=bearer("third")).status_code == 200)
        assert api.get("/jobs", headers=bearer("first")).status_code == 401
        assert browser.get("/jobs").status_code == 401
        assert api.get("/jobs", headers=bearer("second")).status_code == 200


def test_no_listening_beyond_loopback_without_tokens(tmp_path: Path) -> None:
    """A node that would serve other hosts without a token does not start."""
    api = Api(tmp_path / "node", f"sqlite:///{tmp_path}/store.db")
    api.daemon.gateway = "0.0.0.0:8020"
    api.daemon.write("")
    done = api.daemon.cli("check", check=False)
    assert done.returncode == 2
    assert "token_file" in done.stdout + done.stderr
    api.http.close()
