"""Handlers, nodes and schedules over HTTP, on both engines."""

from __future__ import annotations

import html
import re
import uuid
from urllib.parse import quote

import pytest

from tests.support.eventually import eventually
from tests.support.gateway import ODD_NAME, Api, EventStream
from tests.support.rows import Rows


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


def test_a_name_with_a_slash_is_one_segment_of_a_path(api: Api) -> None:
    """Percent-encoded, so are other characters that have a meaning in a URL; on pages as well."""
    segment = quote(ODD_NAME, safe="")
    paused = api.post(f"/handlers/{segment}/pause").json()
    assert (paused["name"], paused["paused_by"]) == (ODD_NAME, "local")
    assert api.post(f"/handlers/{segment}/resume").json()["paused_at"] is None
    assert api.post("/handlers/mail/50%25/pause").status_code == 404
    schedule = f"/schedules/{segment}"
    assert api.http.put(schedule, json={"handler": ODD_NAME, "cron": "0 0 1 1 *"}).json()["name"] == ODD_NAME
    assert api.ended(api.post(f"{schedule}/run").json()["id"])["handler"] == ODD_NAME
    page = api.get(f"/ui{schedule}")
    assert page.status_code == 200
    [live] = re.findall('data-live="([^"]+)"', page.text)
    stream = EventStream(api, html.unescape(live))
    api.post(f"{schedule}/pause")
    eventually(lambda: "by local" in stream.parts.get("facts", ""))
    assert stream.status == 200
    assert api.get(schedule).json()["paused_by"] == "local"
    assert api.http.delete(schedule).status_code == 204
    assert api.get(schedule).status_code == 404


def test_a_page_of_the_longest_name_is_live(api: Api) -> None:
    """Twelve characters of its address for each of its own."""
    schedule = f"/schedules/{quote('😀' * 191)}"
    assert api.http.put(schedule, json={"handler": "noop", "cron": "0 0 1 1 *"}).status_code == 201
    [live] = re.findall('data-live="([^"]+)"', api.get(f"/ui{schedule}").text)
    assert api.http.head("/events", params={"view": html.unescape(live)}).status_code == 200
    assert api.http.delete(schedule).status_code == 204


def test_the_hold_of_a_limit_is_ended(api: Api) -> None:
    """Also of one that was removed since: afterwards nothing is known of it."""
    sql = "INSERT INTO workerd_rates (limit_name, scope, group_key, held_until) VALUES (%s, %s, %s, %s)"
    rows, until = Rows(api.daemon.url), "2099-01-01 00:00:00.000000"
    rows.sql(sql, "gone", "limit", "", until)
    rows.sql(sql, "gone", "group", "é/1", until)
    [limit] = api.get("/limits").json()["limits"]
    assert limit["held_until"].startswith("2099")
    assert api.post("/limits/gone/unhold", {"group": 1}).status_code == 422
    assert api.post("/limits/gone/unhold", {"group": "other"}).json() == limit
    assert api.post("/limits/gone/unhold", {"group": "é/1"}).json() == limit | {"groups": []}
    assert api.post("/limits/gone/unhold").json() == limit | {"held_until": None, "groups": []}
    assert api.post("/limits/gone/unhold").status_code == 404
    assert [act["action"] for act in api.get("/audit?target=gone").json()["audit"]] == ["unhold", "unhold"]


@pytest.mark.parametrize("kind", ["handlers", "nodes", "schedules"])
def test_pages_of_named_lists(api: Api, kind: str) -> None:
    """Page by page, by name, the same as without a limit; what was listed last may be gone meanwhile."""
    names = [one["name"] for one in api.get(f"/{kind}").json()[kind]]
    assert names == sorted(names)
    found, after = [], ""
    while True:
        page = api.http.get(f"/{kind}", params={"limit": "1"} | ({"after": after} if after else {})).json()
        found += [one["name"] for one in page[kind]]
        if page["next"] is None:
            break
        after = page["next"]
    assert found == names
    gone = f"{uuid.UUID(int=0)}." if kind == "nodes" else ""
    assert api.http.get(f"/{kind}", params={"after": f"{gone}zz"}).json() == {kind: [], "next": None}
    for wrong in ("limit=0", "limit=501", "limit=x", "after=", "status=up"):
        assert api.get(f"/{kind}?{wrong}").status_code == 422, wrong
    assert api.get("/nodes?after=alpha").status_code == 422


@pytest.mark.slow
def test_stats(api: Api) -> None:
    """Of every handler that is known, with workers and rates; asked again at once, the same figures."""
    api.ended(api.enqueue("noop"))
    api.post("/handlers/add/pause")
    try:
        waiting = [api.enqueue("add", {"a": 1}) for _ in range(2)]
        waiting.append(api.enqueue("add", {"a": 1}, delay="1h"))

        def figures() -> dict[str, dict[str, float]]:
            found: dict[str, dict[str, float]] = api.get("/stats").json()["handlers"]
            return found

        eventually(lambda: figures()["add"]["due"] == 2)
        eventually(lambda: figures()["noop"]["out_per_s"] > 0, state=figures)
        found = figures()
        scheduled = api.get("/jobs?handler=add&status=scheduled&limit=500").json()["jobs"]
        assert (found["add"]["scheduled"], found["add"]["running"]) == (len(scheduled), 0)
        assert found["add"]["oldest_s"] > 0
        assert found["add"]["in_per_s"] >= 2 / 60 - 0.001
        assert found["add"]["workers"] >= 1
        assert found["noop"]["in_per_s"] > 0
        first, second = api.get("/stats").json(), api.get("/stats").json()
        assert first == second or first["at"] != second["at"]
    finally:
        for job in waiting:
            api.post(f"/jobs/{job}/cancel")
        api.post("/handlers/add/resume")


def test_a_schedule_is_set_replaced_and_removed(api: Api) -> None:
    """It fires, shows its ticks, and is refused where it is wrong or configured."""
    body = {"handler": "add", "cron": "* * * * * *", "vars": {"a": 1, "b": 2}, "group": "eu", "priority": -1}
    made = api.http.put("/schedules/sums", json=body)
    assert made.status_code == 201
    assert (made.json()["origin"], made.json()["vars"], made.json()["group"]) == (
        "api",
        {"a": 1, "b": 2},
        "eu",
    )
    eventually(lambda: len(api.get("/schedules/sums").json()["history"]) >= 2)
    eventually(lambda: api.get("/schedules/sums").json()["history"][1]["status"] == "completed")
    past = api.get("/schedules/sums").json()["history"][1]
    assert set(past) == {"tick", "job_id", "status", "run_us"}
    assert api.get(f"/jobs/{past['job_id']}").json()["payload"] == 3
    assert api.http.put("/schedules/sums", json={**body, "enabled": False}).status_code == 200
    assert api.get("/schedules/sums").json()["next_at"] is None
    assert api.http.delete("/schedules/sums").status_code == 204
    assert api.http.delete("/schedules/sums").status_code == 404
    assert api.get("/schedules/sums").status_code == 404


def test_wrong_schedules_are_refused(api: Api) -> None:
    """With the key and what was expected there."""
    for body, detail in (
        ({"handler": "add", "cron": "61 * * * *"}, "cron: expected a cron expression"),
        ({"handler": "add", "cron": "* * * * *", "timezone": "Mars"}, "timezone: "),
        ({"handler": "nope", "cron": "* * * * *"}, "handler: expected a known handler"),
        ({"handler": "add"}, "expected cron or cooler"),
        ({"handler": "add", "cron": "* * * * *", "vars": {"c": 1}}, "add: "),
        ({"cron": "* * * * *"}, "expected handler or workflow"),
    ):
        answer = api.http.put("/schedules/bad", json=body)
        assert answer.status_code == 422
        assert detail in answer.json()["detail"]
    body = {"handler": "add", "cron": "* * * * *", "vars": {"a": 1}}
    reserved = api.http.put("/schedules/~bad", json=body)
    assert (reserved.status_code, 'start with "~" are reserved' in reserved.json()["detail"]) == (422, True)
    assert api.http.put("/schedules/tick", json=body).status_code == 409
    assert api.http.delete("/schedules/tick").status_code == 409
