"""Invalid and hostile requests: each gets an answer or a closed connection, never a traceback."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.support.eventually import eventually
from tests.support.gateway import Api, until_closed
from workerd.gateway.openapi import OPERATIONS

LIMIT = 8192
HALF_SENT = 4200
GATEWAY = f'max_body = {LIMIT}\nallowed_hosts = ["*.nodes.example"]'
HALF_BODY = (
    b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
)

LARGE_HEAD = b"GET /heartbeat HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000 + b"\r\n\r\n"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A node with a small limit for bodies, and a suffix of served hosts."""
    folder = tmp_path_factory.mktemp("gw")
    with Api(folder / "node", f"sqlite:///{folder}/store.db", gateway=GATEWAY) as api:
        yield api


@pytest.fixture(autouse=True)
def sound(api: Api) -> Iterator[None]:
    """After each test the gateway answers, is the same process, and no route has crashed."""
    pid = api.daemon.pid("gateway")
    yield
    assert api.get("/heartbeat").status_code == 200
    assert api.daemon.pid("gateway") == pid
    assert "route.crashed" not in api.daemon.logged()
    assert "Traceback" not in api.daemon.logged()


JOB = b'{"handler": "noop"}'


def post_head(size: int, more: bytes = b"") -> bytes:
    return (
        b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n%b\r\n" % (size, more)
    )


def send(api: Api, body: bytes, **headers: str) -> httpx.Response:
    return api.http.post("/jobs", content=body, headers={"Content-Type": "application/json", **headers})


def test_bodies_over_the_limit(api: Api) -> None:
    """A body over the limit is 413, with or without Content-Length."""
    large = json.dumps({"handler": "noop", "vars": {"x": "y" * LIMIT}}).encode()
    assert send(api, large).status_code == 413

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(large), 1000):
            yield large[start : start + 1000]

    answer = api.http.post("/jobs", content=pieces(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert str(LIMIT) in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400), (b"{", 400), (b"\xff\xfe", 400), (b'{"handler": "noop"} x', 400), (b"null", 422),
        (b"[]", 422), (b"[" * 2000, 400), (b'{"a":' * 700, 400), (b'{"handler": "\\ud800"}', 400),
        (b'{"handler": "noop", "vars": {"x": NaN}}', 400), (b'{"handler": 1}', 422),
        (b'{"handler": "noop", "vars": {"x": ' + b"[" * 1000 + b"]" * 1000 + b"}}", 400),
        (b'{"handler": "noop", "priority": 1e999}', 422), (b'{"handler": "noop", "delay": -1}', 422),
    ],
)  # fmt: skip
def test_broken_documents(api: Api, body: bytes, status: int) -> None:
    """Invalid JSON, deep nesting and JSON of another shape are answered with a problem."""
    answer = send(api, body)
    assert answer.status_code in (status, 422), answer.text
    assert answer.json()["status"] == answer.status_code


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_a_number_that_json_has_not_is_rejected_with_its_path(api: Api, number: str) -> None:
    """Also where it is not JSON at all, but what many programs write for such a number."""
    answer = send(api, f'{{"handler": "noop", "vars": {{"a": [1, {{"b": {number}}}]}}}}'.encode())
    assert (answer.status_code, answer.json()["detail"].partition(", got")[0]) == (
        422, "vars.a[1].b: expected a number that JSON has, or null",
    )  # fmt: skip


def test_every_post_requires_json(api: Api) -> None:
    """No route accepts a body that a page of another site could send without a preflight request."""
    for operation in OPERATIONS:
        if operation.method == "post":
            path = operation.path.replace("{id}", "01900000-0000-7000-8000-000000000000")
            path = path.replace("{name}", "noop").replace("{fp}", "0" * 16)
            for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None):
                headers = {} if kind is None else {"Content-Type": kind}
                answer = api.http.post(path, content=b"{}", headers=headers)
                assert answer.status_code == 415, operation.path
    assert send(api, b'{"handler": "noop"}', **{"Content-Type": "application/json; charset=utf-8"}).is_success


def test_wrong_methods(api: Api) -> None:
    """A method that a path does not allow is 405 with the allowed ones; HEAD is GET without a body."""
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        answer = api.http.request(method, "/jobs")
        assert answer.status_code == 405
        assert answer.headers["allow"] == "GET, HEAD, POST"
    assert api.http.post("/handlers").status_code == 405
    for path in ("/jobs", "/heartbeat", "/", "/events", "/metrics"):
        answer = api.http.head(path)
        assert (answer.status_code, answer.content) == (200, b""), path
    assert api.get("/nothing/here").status_code == 404


def test_host(api: Api) -> None:
    """A foreign Host header is refused, which prevents DNS rebinding."""
    for host in (
        "evil.example", "127.0.0.1.evil.example", "", "nodes.example", "xnodes.example", "127.1", "[::1",
    ):  # fmt: skip
        assert api.get("/jobs", headers={"Host": host}).status_code == 403, host
        for probe in ("/heartbeat", "/ready"):
            assert api.get(probe, headers={"Host": host}).status_code == 200, host
    for host in (
        f"localhost:{api.port}", "127.0.0.1:1", "10.2.3.4", "10.2.3.4:8020", "[2001:db8::1]:8020", "[::1]",
        "a.nodes.example", "A.b.Nodes.Example:8020",
    ):  # fmt: skip
        assert api.get("/jobs", headers={"Host": host}).status_code == 200, host


def test_pages_of_other_sites(api: Api) -> None:
    """A browser's POST is served for pages of this node only; programs send neither header."""
    own = f"http://{api.address}"
    for headers, status in (
        ({}, 201), ({"Origin": own}, 201), ({"Origin": own.upper()}, 201),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://proxy.example"}, 201),
        ({"Sec-Fetch-Site": "none"}, 201),
        ({"Origin": "https://proxy.example", "X-Forwarded-Host": "proxy.example"}, 201),
        ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403), ({"Origin": ""}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403), ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": own}, 403),
    ):  # fmt: skip
        answer = api.post("/jobs", {"handler": "noop"}, headers=headers)
        assert answer.status_code == status, headers
    assert api.get("/jobs", headers={"Origin": "http://evil.example"}).status_code == 200


def test_data_is_not_sniffed(api: Api) -> None:
    """No browser takes an answer that is data, or an error, for a page."""
    for path in ("/jobs", "/heartbeat", "/ready", "/schema", "/metrics", "/nothing", "/ui/static/workerd.js"):
        assert api.get(path).headers["x-content-type-options"] == "nosniff", path


def test_login_bodies_are_small(api: Api) -> None:
    """A body that anybody may send is limited to 4 KiB, whatever `gateway.max_body` is."""
    answer = api.post("/login", {"token": "x" * 4096})
    assert answer.status_code == 413
    assert "4096 bytes" in answer.json()["detail"]
    assert send(api, json.dumps({"handler": "noop", "meta": "y" * 5000}).encode()).status_code == 201


def test_half_sent_requests(api: Api) -> None:
    """Heads and bodies that never arrive, in any number, take no answer from those who send theirs."""
    with ExitStack() as stack:
        for index in range(HALF_SENT):
            connection = stack.enter_context(api.bare())
            connection.sendall(HALF_BODY if index % 4 == 0 else b"GET /jobs HTTP/1.1\r\nHo")
        for _ in range(5):
            for path in ("/heartbeat", "/jobs"):
                assert httpx.get(f"http://{api.address}{path}").status_code == 200, path


def test_unknown_query_parameters(api: Api) -> None:
    """They are refused with the known ones named: a misspelt filter must not match everything."""
    for path, known in (
        ("/jobs?state=new", "handler, status, since"),
        ("/requests?handler=x", "workflow, status"),
        ("/handlers?state=up", "limit, after"), ("/nodes?x", "limit, after"), ("/limits?paused=1", "none"),
        ("/jobs/01900000-0000-7000-8000-000000000000?wiat=1", "wait"), ("/events?page=/", "view"),
        ("/metrics?x=1", "none"), ("/schema?x=1", "none"), ("/login?x=1", "none"),
    ):  # fmt: skip
        answer = api.get(path)
        assert answer.status_code == 422, path
        assert known in answer.json()["detail"], path
        assert repr(path.partition("?")[2].partition("=")[0]) in answer.json()["detail"]
    assert api.post("/jobs?delay=10", {"handler": "noop"}).status_code == 422
    for page in ("/ui/jobs?state=new", "/?x=1", "/ui/requests/01900000-0000-7000-8000-000000000000?x=1"):
        answer = api.get(page)
        assert answer.status_code == 422, page
        assert "Unknown query parameter" in answer.text
    for path in (
        "/heartbeat?x=1",
        "/ready?x=1",
        "/ui/static/workerd.js?v=1",
        "/ui/jobs?status=&since=",
    ):
        assert api.get(path).status_code == 200, path


def test_the_address_of_the_dashboard(api: Api) -> None:
    """/ui leads to the overview."""
    for path in ("/ui", "/ui/"):
        answer = api.get(path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")


def test_invalid_http(api: Api) -> None:
    """Bytes that are not HTTP get a 400, and the connection is closed."""
    for data in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET /\r\n\r\n", b"GET / HTTP/1.1\r\nHost\r\n\r\n"):
        with api.bare() as connection:
            connection.sendall(data + b"\r\n\r\n")
            assert until_closed(connection).startswith(b"HTTP/1.1 400")


def test_a_large_head(api: Api) -> None:
    """A head over the limit is refused, whether it comes in pieces or one read brings it as a whole."""
    with api.bare() as connection:
        with contextlib.suppress(OSError):
            connection.sendall(LARGE_HEAD)
        assert until_closed(connection)[:12] in (b"HTTP/1.1 400", b"")
    gateway = api.daemon.pid("gateway")
    with api.bare() as connection:
        os.kill(gateway, signal.SIGSTOP)
        try:
            connection.sendall(LARGE_HEAD)
        finally:
            os.kill(gateway, signal.SIGCONT)
        assert until_closed(connection).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("hosts", [b"", b"Host: localhost\r\nHost: other\r\n"], ids=["none", "two"])
def test_a_request_names_one_host(api: Api, hosts: bytes) -> None:
    """The guard checks one Host; a proxy before it might have seen the other."""
    with api.bare() as connection:
        connection.sendall(b"GET /heartbeat HTTP/1.1\r\n" + hosts + b"\r\n")
        assert until_closed(connection).startswith(b"HTTP/1.1 400")


def test_what_surrounds_a_body_is_bounded(api: Api) -> None:
    """Trailers and extensions of chunks are limited like a head; a body in tiny chunks is read."""
    head = (
        b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    for endless in (b"2\r\n{}\r\n0\r\nX: " + b"x" * 500_000, b"2;" + b"x" * 500_000):
        with api.bare() as connection:
            connection.sendall(head)
            with contextlib.suppress(OSError):
                connection.sendall(endless)
            assert until_closed(connection)[:12] in (b"HTTP/1.1 400", b"")
    body = b'{"handler": "noop", "vars": {}' + b" " * (LIMIT - 50) + b"}"
    with api.bare() as connection:
        connection.sendall(head + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 201"


def test_smuggling(api: Api) -> None:
    """Ambiguous or invalid lengths are refused."""
    for headers in (b"Content-Length: 2\r\nContent-Length: 3", b"Content-Length: x"):
        with api.bare() as connection:
            connection.sendall(
                b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                + headers + b"\r\n\r\n{}x"
            )  # fmt: skip
            assert until_closed(connection).startswith(b"HTTP/1.1 400")


def test_a_job_whose_request_is_followed_by_something_else(api: Api) -> None:
    """Its answer comes first, as it is there."""
    with api.bare() as connection:
        connection.sendall(post_head(len(JOB)) + JOB + b"\0\r\n\r\n")
        received = until_closed(connection)
    assert [part[:3] for part in received.split(b"HTTP/1.1 ")[1:]] == [b"201", b"400"]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_request_that_offers_another_protocol(api: Api, at_once: bool) -> None:
    """As Java's client does by itself: it gets the answer of a plain one, and so does the next."""
    head = post_head(
        len(JOB), b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEA\r\n"
    )
    with api.bare() as connection:
        for _ in range(2):
            for part in [head + JOB] if at_once else [head, JOB]:
                connection.sendall(part)
            assert connection.recv(65536).startswith(b"HTTP/1.1 201")


def test_a_client_that_disconnects(api: Api) -> None:
    """Half a body, half a head, an abandoned long poll and event stream leave nothing behind."""
    job = api.enqueue("noop", delay="1h")
    for data in (
        HALF_BODY,
        b"GET /jobs HT",
        f"GET /jobs/{job}?wait=60s HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
        b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ):
        with api.bare() as connection:
            connection.sendall(data)


@pytest.mark.slow
def test_a_thousand_idle_connections(api: Api) -> None:
    """A thousand idle connections delay no other client and are closed in the end."""
    with ExitStack() as stack:
        idle = [stack.enter_context(api.bare()) for _ in range(1000)]
        for connection in idle[::10]:
            connection.sendall(b"GET /jobs HTTP/1.1\r\nHo")
        for _ in range(20):
            assert api.get("/jobs").status_code == 200
        deadline = time.monotonic() + 60
        for connection in idle:
            connection.settimeout(max(0.1, deadline - time.monotonic()))
            until_closed(connection)


@pytest.mark.slow
def test_slow_body(api: Api) -> None:
    """A body that never arrives gets 408 or a closed connection; others are served meanwhile."""
    with api.bare() as connection:
        connection.sendall(
            b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 50\r\n\r\n{"
        )
        assert api.get("/jobs").status_code == 200
        assert until_closed(connection)[:12] in (b"HTTP/1.1 408", b"")


def test_unix_socket(tmp_path: Path) -> None:
    """A Unix socket serves the same, with any Host header."""
    path = tmp_path / "s"
    gateway = f'listen = "unix:{path}"'
    api = Api(tmp_path / "node", f"sqlite:///{tmp_path}/store.db")
    api.daemon.gateway = gateway.removeprefix('listen = "').removesuffix('"')
    api.daemon.write('[handlers.noop]\ncall = "tests.support.handlers:noop"\n')
    with (
        api,
        httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://anything") as client,
    ):
        assert client.get("/ready").status_code == 200
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        job = client.post("/jobs", json={"handler": "noop"}).json()["id"]
        assert client.get(f"/jobs/{job}?wait=30s").json()["status"] == "completed"
        with socket.socket(socket.AF_UNIX) as bare:
            bare.connect(str(path))
            bare.sendall(b"nonsense\r\n\r\n")
            assert until_closed(bare).startswith(b"HTTP/1.1 400")


def test_a_node_that_drains_answers_to_the_end(tmp_path: Path) -> None:
    """What would add work is 503 with Retry-After; probes, metrics and look-ups are answered."""
    with Api(tmp_path / "node", f"sqlite:///{tmp_path}/store.db", gateway=GATEWAY) as api:
        job = api.enqueue("file", {"path": str(tmp_path / "go")})
        eventually(lambda: api.get(f"/jobs/{job}").json()["status"] == "inprogress")
        process = api.daemon.process
        assert process is not None
        process.send_signal(signal.SIGTERM)
        eventually(lambda: api.daemon.status().get("state") == "draining")
        eventually(lambda: api.get("/ready").status_code == 503)
        assert int(api.get("/ready").headers["retry-after"]) > 0
        refused = api.post("/jobs", {"handler": "noop"})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        assert "shutting down" in refused.json()["detail"]
        assert api.get("/heartbeat").status_code == 200
        assert "workerd_process_rss_bytes" in api.get("/metrics").text
        assert api.get(f"/jobs/{job}").json()["status"] == "inprogress"
        (tmp_path / "go").touch()
        assert process.wait(30) == 0
