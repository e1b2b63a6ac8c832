"""Tokens: where they are required, how they change, and sessions of browsers."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.eventually import eventually
from tests.support.gateway import Api, EventStream
from workerd.gateway.openapi import OPERATIONS, PAGES
from workerd.gateway.tokens import Tokens

UNKNOWN = "01900000-0000-7000-8000-000000000000"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The token file."""
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text("# for people\nfirst\n\nsecond\nother\n")
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
    """Without a token each route but the probes answers 401, and pages redirect to the login."""
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
        assert cookie.startswith(f"workerd_session_{api.port}=")
        assert re.search(r"Max-Age=[1-9]", cookie)
        assert browser.get("/").status_code == 200
        assert "Log out" in browser.get("/").text
        assert browser.get("/jobs").status_code == 200
        kept = {"Cookie": cookie.partition(";")[0]}
        assert api.get("/jobs", headers=kept).status_code == 200
        assert browser.post("/ui/logout", json={}).status_code == 200
        assert browser.get("/jobs").status_code == 401
        assert api.get("/jobs", headers=kept).status_code == 401
    for value in ("", "x", "second", '"'):
        cookie = f"workerd_session_{api.port}={value}"
        assert api.get("/jobs", headers={"Cookie": cookie}).status_code == 401


def test_sessions_are_random_and_of_one_port(api: Api) -> None:
    """Each login starts a session of its own, which is valid under the name of this port only."""
    url = f"http://{api.address}"
    first, second = (httpx.post(f"{url}/login", json={"token": "second"}).headers["set-cookie"] for _ in "12")
    value = first.partition(";")[0].partition("=")[2]
    assert value != second.partition(";")[0].partition("=")[2]
    for name, status in ((f"workerd_session_{api.port}", 200), ("workerd_session_1", 401)):
        assert httpx.get(f"{url}/jobs", headers={"Cookie": f"{name}={value}"}).status_code == status
    forwarded = {"X-Forwarded-Proto": "https"}
    cookie = httpx.post(f"{url}/login", json={"token": "second"}, headers=forwarded).headers["set-cookie"]
    assert cookie.startswith("__Host-")
    assert "Secure" in cookie
    assert "Path=/;" in cookie
    assert "Domain" not in cookie
    kept = {"Cookie": cookie.partition(";")[0]}
    assert httpx.get(f"{url}/jobs", headers={**forwarded, **kept}).status_code == 200


def test_anonymous_bodies_are_small(api: Api) -> None:
    """A large body is read only from who has shown a token."""
    url = f"http://{api.address}"
    large = {"handler": "noop", "meta": "y" * 5000}
    assert httpx.post(f"{url}/jobs", json=large).status_code == 401
    assert httpx.post(f"{url}/login", json={"token": "y" * 5000}).status_code == 413
    assert httpx.post(f"{url}/ui/logout", json={"x": "y" * 5000}).status_code == 413
    assert httpx.post(f"{url}/jobs", json=large, headers=bearer("second")).status_code == 201


def test_guessing_is_slow(tmp_path: Path) -> None:
    """After some failed logins an address has to wait, and the log says so; not with a token that is valid.

    Behind a proxy all have its address: whoever guesses keeps nobody else out.
    """
    (tmp_path / "tokens").write_text("right\n")
    gateway = f'token_file = "{tmp_path}/tokens"'
    with Api(tmp_path / "node", f"sqlite:///{tmp_path}/store.db", gateway=gateway) as api:
        with ThreadPoolExecutor(6) as executor:
            answers = list(executor.map(lambda n: api.post("/login", {"token": f"wrong {n}"}), range(6)))
        statuses = [answer.status_code for answer in answers]
        assert sorted(statuses) == [401] * 3 + [429] * 3
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert int(refused.headers["retry-after"]) > 0
        assert api.post("/login", {"token": "right"}).status_code == 200
        logged = [entry for entry in api.daemon.logged().splitlines() if "login.refused" in entry]
        assert len(logged) == 3
        assert not any("wrong" in entry for entry in logged)
        eventually(lambda: "login.accepted" in api.daemon.logged())


def test_event_streams_are_limited_per_token(api: Api) -> None:
    """One token's open pages take none from another."""
    streams = [EventStream(api, "/ui/handlers", **bearer("second")) for _ in range(66)]
    eventually(lambda: sum(stream.status == 200 for stream in streams) == 64)
    eventually(lambda: sum(stream.status == 503 for stream in streams) == 2)
    other = EventStream(api, "/ui/handlers", **bearer("other"))
    eventually(lambda: other.status == 200)


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


def test_any_change_of_the_file_counts(tmp_path: Path) -> None:
    """Tokens are read again even if the file keeps its time, its size, or its inode."""
    path = tmp_path / "tokens"
    path.write_text("aaaa\n")
    tokens = Tokens(str(path))
    known = path.stat()
    assert tokens.identify(b"aaaa")

    def keep_time(changed: Path) -> None:
        os.utime(changed, ns=(known.st_atime_ns, known.st_mtime_ns))

    path.write_text("longer\n")
    keep_time(path)
    eventually(lambda: tokens.identify(b"longer"))
    assert not tokens.identify(b"aaaa")
    (tmp_path / "fresh").write_text("cccccc\n")
    keep_time(tmp_path / "fresh")
    (tmp_path / "fresh").rename(path)
    eventually(lambda: tokens.identify(b"cccccc"))
    assert not tokens.identify(b"longer")


def test_a_file_that_cannot_be_read_is_logged_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """At the start and at each time that it goes: until it is back no token is valid."""
    path = tmp_path / "tokens"
    tokens = Tokens(str(path))
    for _ in range(2):
        tokens._checked_at = -math.inf
        assert tokens.identify(b"a") is None
    assert "".join(capfd.readouterr()).count("token_file.unreadable") == 1
    path.write_text("a\n")
    tokens._checked_at = -math.inf
    assert tokens.identify(b"a") is not None
    path.unlink()
    tokens._checked_at = -math.inf
    assert tokens.identify(b"a") is None
    assert "".join(capfd.readouterr()).count("token_file.unreadable") == 1


def test_no_listening_beyond_loopback_without_tokens(tmp_path: Path) -> None:
    """A node that would serve other hosts without a token does not start."""
    api = Api(tmp_path / "node", f"sqlite:///{tmp_path}/store.db")
    api.daemon.gateway = "0.0.0.0:8020"
    api.daemon.write("")
    done = api.daemon.cli("check", check=False)
    assert done.returncode == 2
    assert "token_file" in done.stdout + done.stderr
    api.http.close()
