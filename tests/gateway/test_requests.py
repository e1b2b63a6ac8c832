"""Requests over HTTP, on both engines: submit, look up, wait, list, cancel."""

from __future__ import annotations

import uuid
from contextlib import closing

from tests.support.eventually import eventually
from tests.support.gateway import Api
from workerd.config.build import load
from workerd.gateway.idempotency import IdempotencyKey
from workerd.operations import request_graphs
from workerd.store.engines import open_store


def test_requests(api: Api) -> None:
    """A request runs its jobs; it is waited for, listed and cancelled."""
    answer = api.post("/requests", {"workflow": "pair", "params": {"user": 1}})
    assert answer.status_code == 201
    item_id = answer.json()["id"]
    assert answer.headers["location"] == f"/requests/{item_id}"
    done = api.get(f"/requests/{item_id}?wait=30s").json()
    assert (done["status"], done["params"]) == ("completed", {"user": 1})
    assert [job["name"] for job in done["jobs"]] == ["first", "second"]
    held = api.post("/requests", {"workflow": "held"}).json()["id"]
    eventually(lambda: api.get(f"/requests/{held}").json()["jobs"])
    listed = api.get("/requests?workflow=held&limit=1").json()
    assert [one["id"] for one in listed["requests"]] == [held]
    assert "jobs" not in listed["requests"][0]
    assert api.post(f"/requests/{held}/cancel").status_code in (200, 202)
    assert api.get(f"/requests/{held}?wait=30s").json()["status"] == "cancelled"
    assert api.post(f"/requests/{held}/cancel").status_code == 409
    assert api.post("/requests", {"workflow": "nope"}).status_code == 422
    assert api.post("/requests", {"workflow": "pair", "params": []}).status_code == 422


def test_a_request_is_submitted_once_with_a_key(api: Api) -> None:
    """A repeat answers 200 with it, another body 422."""
    key = {"Idempotency-Key": uuid.uuid4().hex}
    first = api.post("/requests", {"workflow": "pair", "params": {"n": 1}}, headers=key)
    again = api.post("/requests", {"workflow": "pair", "params": {"n": 1}}, headers=key)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    assert again.headers["location"] == first.headers["location"]
    assert api.post("/requests", {"workflow": "pair", "params": {"n": 2}}, headers=key).status_code == 422
    assert api.post("/requests", {"workflow": "held", "params": {"n": 1}}, headers=key).status_code == 422


def test_a_request_with_its_own_graph(api: Api) -> None:
    """`then` follows its jobs, `finally` follows that; the same key again answers with the same request."""
    body = {
        "jobs": [{"name": "a", "handler": "add", "vars": {"a": 1}}, {"name": "b", "handler": "noop"}],
        "then": [{"name": "sum", "handler": "add", "vars": {"a": 2}, "needs": ["a"]}],
        "finally": [{"name": "end", "handler": "noop"}],
        "name": "sums",
        "params": {"x": 1},
    }
    key = {"Idempotency-Key": "graph-1"}
    made = api.post("/requests", body, headers=key)
    assert made.status_code == 201
    request_id = made.json()["id"]
    assert api.post("/requests", body, headers=key).json()["id"] == request_id
    assert api.post("/requests", {**body, "params": {}}, headers=key).status_code == 422
    ended = api.get(f"/requests/{request_id}?wait=20s").json()
    assert (ended["status"], ended["workflow"], ended["name"]) == ("completed", None, "sums")
    assert (ended["done"], ended["failed"], ended["total"]) == (2, 0, 2)
    assert {job["name"] for job in ended["jobs"]} == {"a", "b", "sum", "end"}
    assert api.get(f"/ui/requests/{request_id}").status_code == 200


def test_a_large_graph_is_written_in_slices(api: Api) -> None:
    """One whose first sender did not end is completed by a repeat with the same key, whoever comes next."""
    jobs = [{"name": str(n), "handler": "noop", "needs": [str(n - 1)] if n % 50 else []} for n in range(1200)]
    body, key = {"jobs": jobs, "finally": [{"name": "end", "handler": "noop"}]}, uuid.uuid4().hex
    config = load(api.daemon.path, {})
    with closing(open_store(config.store)) as store:
        plan = store.read(lambda tx: request_graphs.checked(tx, config, body))
        first = IdempotencyKey("", "request", key).id().bytes
        store.run(lambda tx: request_graphs.begin(tx, plan, first))
        part, nodes = next(iter(request_graphs.slices(plan)))
        store.run(lambda tx: request_graphs.add(tx, first, part[:7], nodes[:7]))
    answers = [api.post("/requests", body, headers={"Idempotency-Key": key}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert {answer.json()["id"] for answer in answers} == {str(uuid.UUID(bytes=first))}
    ended = api.get(f"/requests/{uuid.UUID(bytes=first)}?wait=60s").json()
    assert (ended["status"], ended["done"], ended["total"]) == ("completed", 1200, 1200)
    other = {**body, "params": {"n": 1}}
    assert api.post("/requests", other, headers={"Idempotency-Key": key}).status_code == 422
    assert api.post("/requests", body).status_code == 201


def test_a_wrong_graph_is_refused_by_its_place(api: Api) -> None:
    """A cycle by its names."""
    a = {"name": "a", "handler": "noop"}
    for jobs, detail in (
        ([{**a, "needs": ["b"]}, {"name": "b", "handler": "noop", "needs": ["a"]}], "a -> b -> a"),
        ([a, {"name": "b", "handler": "noop", "needs": ["x"]}], "jobs[1].needs[0]"),
        ([a, {"name": "b", "handler": "nope"}], "jobs[1].handler"),
        ([a, {"name": "b", "handler": "noop", "needs": 1}], "jobs[1].needs"),
    ):
        answer = api.post("/requests", {"jobs": jobs})
        assert answer.status_code == 422
        assert detail in answer.json()["detail"]
    assert api.post("/requests", {"jobs": [], "workflow": "pair"}).status_code == 422
    assert api.post("/requests", {}).status_code == 422


def test_a_signal_and_a_wait(api: Api) -> None:
    """The first signal counts; `why` says what is waited for, and the page has a button."""
    jobs = [
        {"name": "cool", "wait": "10ms"},
        {"name": "approve", "signal": "approved", "timeout": "1d"},
        {"name": "after", "handler": "behave", "vars": {"kind": "ok"}, "needs": ["cool", "approve"]},
    ]
    request_id = api.post("/requests", {"jobs": jobs}).json()["id"]
    waiting = {job["name"]: job for job in api.get(f"/requests/{request_id}").json()["jobs"]}
    why = api.get(f"/jobs/{waiting['approve']['id']}/why").json()["why"][0]
    assert "waits for the signal approved, until" in why
    assert "Signal approved" in api.get(f"/ui/requests/{request_id}").text
    path = f"/requests/{request_id}/signals"
    assert api.post(f"{path}/nope", {"by": "me"}).status_code == 422
    assert api.post(f"{path}/approved", {"by": "me"}).status_code == 202
    assert api.post(f"{path}/approved", {"by": "me"}).status_code == 409
    ended = api.get(f"/requests/{request_id}?wait=20s").json()
    assert ended["status"] == "completed"
    assert api.post(f"{path}/approved", {"by": "me"}).status_code == 409
    acts = api.get(f"/audit?target={request_id}").json()["audit"]
    assert [act["action"] for act in acts] == ["signal"]
