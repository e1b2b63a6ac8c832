"""Requests over HTTP, on both engines: submit, look up, wait, list, cancel."""

from __future__ import annotations

import uuid

from tests.support.eventually import eventually
from tests.support.gateway import Api


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
