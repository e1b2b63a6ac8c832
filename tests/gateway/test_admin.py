"""Handlers, nodes and schedules over HTTP, on both engines."""

from __future__ import annotations

from tests.support.gateway import Api


def test_handlers(api: Api) -> None:
    """A paused handler shows who paused it and why; its jobs wait until it is resumed."""
    paused = api.post("/handlers/add/pause", {"reason": "mending"})
    assert paused.status_code == 200
    assert paused.json()["pause_reason"] == "mending"
    assert paused.json()["paused_by"] == "local"
    job = api.enqueue("add", {"a": 1})
    assert api.get(f"/jobs/{job}?wait=600ms").json()["status"] == "new"
    assert api.post("/handlers/add/resume").json()["paused_at"] is None
    assert api.ended(job)["status"] == "completed"
    names = [one["name"] for one in api.get("/handlers").json()["handlers"]]
    assert {"add", "noop", "behave"} <= set(names)
    assert api.post("/handlers/nope/pause").status_code == 422


def test_nodes_and_schedules(api: Api) -> None:
    """Nodes have a state; schedules are paused, resumed and run once."""
    node = api.get("/nodes").json()["nodes"][0]
    assert (node["name"], node["state"]) == ("alpha", "up")
    names = {one["name"]: one for one in api.get("/schedules").json()["schedules"]}
    assert {"cool", "tick"} <= names.keys()
    assert api.post("/schedules/tick/pause").json()["paused_by"] == "local"
    assert api.post("/schedules/tick/resume").json()["paused_at"] is None
    made = api.post("/schedules/tick/run")
    assert made.status_code == 201
    assert api.ended(made.json()["id"])["handler"] == "tick"
    assert api.post("/schedules/nope/run").status_code == 404
