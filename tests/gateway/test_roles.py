"""Roles: what each may do, by the OpenAPI document; what a page shows them; who acted is recorded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.eventually import eventually
from tests.support.gateway import Api, EventStream
from workerd.config.token_file import Role
from workerd.gateway.app import ROUTES
from workerd.gateway.openapi import OPERATIONS
from workerd.gateway.roles import Access
from workerd.gateway.state import only_post

UNKNOWN = "01900000-0000-7000-8000-000000000000"
TOKENS = "ann operator op-secret\nvic viewer vic-secret\ncrm producer crm-secret\nbare-secret\n"
SECRETS = {Role.OPERATOR: "op-secret", Role.VIEWER: "vic-secret", Role.PRODUCER: "crm-secret"}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token file with one owner for each role."""
    path = tmp_path_factory.mktemp("roles") / "tokens"
    path.write_text(TOKENS)
    return path


@pytest.fixture(scope="module")
def api(module_store_url: str, tmp_path_factory: pytest.TempPathFactory, tokens: Path) -> Iterator[Api]:
    """A node that knows them, on each engine."""
    tokens.write_text(TOKENS)
    gateway, headers = f'token_file = "{tokens}"', {"Authorization": "Bearer op-secret"}
    with Api(tmp_path_factory.mktemp("node") / "node", module_store_url, gateway=gateway, **headers) as api:
        yield api


def as_role(role: Role | str) -> dict[str, str]:
    return {"Authorization": f"Bearer {SECRETS.get(role, role)}"}  # type: ignore[call-overload]


def call(api: Api, method: str, path: str, role: Role) -> httpx.Response:
    """Call an operation with an empty body; whatever the path names does not exist."""
    for name in ("id", "name", "fp"):
        path = path.replace(f"{{{name}}}", UNKNOWN if name == "id" else "none")
    body = {} if method in ("post", "put", "patch") else None
    return api.http.request(method.upper(), path, json=body, headers=as_role(role))


def test_role_by_route(api: Api) -> None:
    """Each role is admitted exactly where the document says so; the 403 names the roles that are."""
    document = api.get("/schema").json()
    checked = 0
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if operation.get("security") == [] or path == "/events":
                continue
            admitted = operation["x-roles"]
            for role in Role:
                answer = call(api, method, path, role)
                checked += 1
                if role in admitted:
                    assert answer.status_code not in (401, 403), (method, path, role, answer.text)
                else:
                    assert answer.status_code == 403, (method, path, role)
                    assert f"the role {' or '.join(admitted)};" in answer.json()["detail"]
    assert checked > 50


def test_every_route_says_whom_it_admits(api: Api) -> None:
    """What changes something that exists is for operators alone; what is not open is in the document."""
    paths = api.get("/schema").json()["paths"]
    for operation in OPERATIONS:
        assert operation.open or paths[operation.path][operation.method]["x-roles"], operation.path
    for route in ROUTES:
        changing = {"POST", "PUT", "PATCH", "DELETE"} & set(route.methods or ())
        if changing and route.access is not Access.ACT and route.endpoint is not only_post:
            assert route.path in ("/jobs", "/jobs/bulk", "/requests", "/login", "/ui/logout"), route.path


def test_each_act_over_http_is_recorded(api: Api) -> None:
    """With the name of the token, the interface and the address; look-ups and enqueues are not acts."""
    job = api.enqueue("noop", run_at="2099-01-01T00:00:00Z")
    api.post(f"/jobs/{job}/cancel")
    api.post(f"/jobs/{job}/retry", headers={**as_role("bare-secret"), "Origin": f"http://{api.address}"})
    api.post("/handlers/limited/pause", {"reason": "tidy"})
    api.post("/handlers/limited/resume")
    api.post("/schedules/tick/pause")
    api.post("/schedules/tick/resume")
    started = api.post("/schedules/tick/run").json()["id"]
    acts = api.get("/audit").json()["audit"]
    assert [(a["actor"], a["via"], a["action"], a["target"]) for a in acts[::-1]] == [
        ("ann", "http", "cancel", job),
        ("token-4", "ui", "retry", job),
        ("ann", "http", "pause", "limited"),
        ("ann", "http", "resume", "limited"),
        ("ann", "http", "pause", "tick"),
        ("ann", "http", "resume", "tick"),
        ("ann", "http", "schedule.run", "tick"),
    ]
    assert acts[0]["detail"] == {"id": started}
    assert {act["address"] for act in acts} == {"127.0.0.1"}
    assert {act["role"] for act in acts} == {"operator"}
    assert [a["action"] for a in api.get(f"/audit?target={job}").json()["audit"]] == ["retry", "cancel"]
    request = api.post("/requests", {"workflow": "held"}).json()["id"]
    api.post(f"/requests/{request}/cancel", headers=as_role("bare-secret"))
    assert f'href="/ui/requests/{request}"' in api.get("/ui/audit?actor=token-4").text
    assert f'href="/ui/jobs/{job}"' in api.get("/ui/audit?actor=token-4").text
    first = api.get("/audit?actor=ann&limit=4").json()
    rest = api.get(f"/audit?actor=ann&after={first['next']}").json()
    assert len(first["audit"]) + len(rest["audit"]) == 6
    assert api.get("/audit?actorr=ann").status_code == 422
    page = api.get(f"/ui/jobs/{job}").text
    assert "Who did what" in page
    assert "token-4" in page
    shown = api.daemon.cli("job", "show", job).stdout
    assert "Who did what" in shown
    assert "token-4" in shown
    assert "token-4" in api.daemon.cli("audit", "--target", job).stdout
    by_name = api.daemon.cli("audit", "--actor", "ann", "--since", "1h", "--json").stdout
    assert by_name.count('"actor": "ann"') == 6


def test_a_page_shows_what_the_role_may_do(api: Api) -> None:
    """No button and no audit for a viewer; nothing for a producer."""
    waiting = api.enqueue("noop", run_at="2099-01-01T00:00:00Z")
    ended = api.enqueue("noop")
    api.ended(ended)
    request = api.post("/requests", {"workflow": "held"}).json()["id"]
    pages = ["/", "/ui/jobs", f"/ui/jobs/{waiting}", f"/ui/jobs/{ended}", "/ui/requests",
             f"/ui/requests/{request}", "/ui/handlers", "/ui/schedules"]  # fmt: skip
    acting = 0
    for page in pages:
        operator, viewer, producer = (api.get(page, headers=as_role(role)) for role in SECRETS)
        assert (operator.status_code, viewer.status_code, producer.status_code) == (200, 200, 403), page
        assert 'href="/ui/audit"' in operator.text
        assert "/ui/audit" not in viewer.text
        assert "data-post" not in viewer.text, page
        assert "viewer or operator" in producer.text
        acting += "data-post" in operator.text
    assert acting >= 5
    assert api.get("/ui/audit").status_code == 200
    assert api.get("/ui/audit", headers=as_role(Role.VIEWER)).status_code == 403
    # The end of the daemon would wait for its run.
    assert api.post(f"/requests/{request}/cancel").status_code == 202


def test_updates_of_a_page_are_those_of_the_role(api: Api) -> None:
    """One page open for an operator and for a viewer."""
    operator = EventStream(api, "/ui/handlers", **as_role(Role.OPERATOR))
    viewer = EventStream(api, "/ui/handlers", **as_role(Role.VIEWER))
    audit = EventStream(api, "/ui/audit", **as_role(Role.VIEWER))
    eventually(lambda: "data-post" in operator.parts.get("list", ""))
    eventually(lambda: "noop" in viewer.parts.get("list", ""))
    assert "data-post" not in viewer.parts["list"]
    eventually(lambda: "the role operator" in audit.parts.get("", ""))
    assert set(audit.parts) == {""}


def test_a_wrong_line_refuses_the_whole_file(api: Api, tokens: Path) -> None:
    """The old tokens stay; `check` and `reload` say which line, and no secret."""
    tokens.write_text(f"{TOKENS}eve admin eve-secret\nnew-secret\n")
    eventually(lambda: "token_file.refused" in api.daemon.logged() or not api.get("/jobs"))
    assert api.get("/jobs").status_code == 200
    assert api.get("/jobs", headers=as_role("new-secret")).status_code == 401
    for command in ("check", "reload"):
        done = api.daemon.cli(command, check=False)
        assert done.returncode != 0, command
        said = done.stdout + done.stderr
        assert "line 5" in said
        assert "producer, viewer, operator" in said
        assert "eve-secret" not in said
    assert "eve-secret" not in api.daemon.logged()
    assert api.get("/jobs").status_code == 200
    tokens.write_text(TOKENS.replace("ann operator", "ann viewer") + "new-secret\n")
    eventually(lambda: api.get("/jobs", headers=as_role("new-secret")).status_code == 200)
    assert api.post("/handlers/noop/pause").status_code == 403
    tokens.write_text(TOKENS)
    eventually(lambda: api.post("/handlers/noop/resume").status_code == 200)


def test_without_a_token_file_everybody_is_an_operator(tmp_path: Path) -> None:
    """The actor is `local`, over HTTP and in the browser."""
    with Api(tmp_path / "node", f"sqlite:///{tmp_path}/store.db") as api:
        api.post("/handlers/noop/pause")
        (act,) = api.get("/audit").json()["audit"]
        assert (act["actor"], act["role"], act["via"]) == ("local", "operator", "http")
        assert "x-roles" not in api.get("/schema").text
        cli: Any = api.daemon.cli("resume", "noop")
        assert cli.returncode == 0
        act = api.get("/audit").json()["audit"][0]
        assert act["actor"].startswith("cli:")
        assert "@" in act["actor"]
        assert (act["via"], act["action"], act["address"]) == ("cli", "resume", None)
