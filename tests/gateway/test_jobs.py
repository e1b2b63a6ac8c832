"""Jobs over HTTP, on both engines: enqueue, look up, wait, list, cancel, retry."""

from __future__ import annotations

import base64
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.support.eventually import eventually
from tests.support.gateway import Api

UNKNOWN = "01900000-0000-7000-8000-000000000000"


def test_a_job_completes(api: Api) -> None:
    """POST answers 201 with the job and its Location; a wait answers with its end and attempts."""
    answer = api.post("/jobs", {"handler": "add", "vars": {"a": 2, "b": 3}, "meta": {"tenant": "x"}})
    assert answer.status_code == 201
    made = answer.json()
    assert answer.headers["location"] == f"/jobs/{made['id']}"
    assert made["status"] == "new"
    assert made["vars"] == {"a": 2, "b": 3}
    done = api.ended(made["id"])
    assert (done["status"], done["reason"], done["success"], done["payload"]) == ("completed", "ok", True, 5)
    assert done["meta"] == {"tenant": "x"}
    assert [one["attempt"] for one in done["attempts"]] == [1]
    times = [done[f"{name}_at"] for name in ("created", "claimed", "started", "finished", "ingested")]
    assert times == sorted(times)
    assert all(len(time) == len("2026-01-31T12:00:00.000000Z") for time in times)


def test_payloads(api: Api) -> None:
    """Bytes stay bytes and JSON stays JSON, as an attachment; without one there is 404."""
    job = api.enqueue("behave", {"kind": "payload"})
    assert base64.b64decode(api.ended(job)["payload_base64"]) == b"\x00\xff\xfe bytes"
    answer = api.get(f"/jobs/{job}/payload")
    assert answer.content == b"\x00\xff\xfe bytes"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert "sandbox" in answer.headers["content-security-policy"]
    other = api.enqueue("add", {"a": 1})
    api.ended(other)
    assert api.get(f"/jobs/{other}/payload").json() == 2
    waiting = api.enqueue("noop", delay="1h")
    assert api.get(f"/jobs/{waiting}/payload").status_code == 404


def test_when_a_job_is_due(api: Api) -> None:
    """`delay` and `run_at` schedule a job; a time without an offset is refused."""
    document = api.post("/jobs", {"handler": "noop", "run_at": "2030-01-31T12:00:00+01:00"}).json()
    assert (document["status"], document["run_at"]) == ("scheduled", "2030-01-31T11:00:00.000000Z")
    assert api.post("/jobs", {"handler": "noop", "delay": 3600}).json()["status"] == "scheduled"
    refused = api.post("/jobs", {"handler": "noop", "run_at": "2030-01-31T12:00:00"})
    assert refused.status_code == 422
    assert "offset" in refused.json()["detail"]


def test_unique_key(api: Api) -> None:
    """Enqueuing with a live job's unique key answers 200 with that job."""
    first = api.post("/jobs", {"handler": "noop", "delay": "1h", "unique_key": "only"})
    second = api.post("/jobs", {"handler": "noop", "unique_key": "only"})
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json()["id"] == second.json()["id"]
    assert api.post(f"/jobs/{first.json()['id']}/cancel").status_code == 200
    assert api.post("/jobs", {"handler": "noop", "delay": "1h", "unique_key": "only"}).status_code == 201


def test_a_conflict_may_replace_the_waiting_job(api: Api) -> None:
    """The answer says what was done; options that do not go together are 422."""
    job = {"handler": "noop", "delay": "1h", "unique_key": "shared", "on_conflict": "replace"}
    first = api.post("/jobs", {**job, "meta": 1})
    second = api.post("/jobs", {**job, "meta": 2})
    assert (first.status_code, second.status_code) == (201, 200)
    assert [(one.json()["created"], one.json()["replaced"]) for one in (first, second)] == [
        (True, False), (False, True),
    ]  # fmt: skip
    assert (second.json()["id"], second.json()["meta"]) == (first.json()["id"], 2)
    bulk = api.post("/jobs/bulk", {"jobs": [{**job, "meta": 3}, {"handler": "noop", "delay": "1h"}]})
    assert [(one["created"], one["replaced"]) for one in bulk.json()["items"]] == [
        (False, True),
        (True, False),
    ]
    windows = [api.post("/jobs", {"handler": "noop", "unique_key": "w", "unique_for": "200d"}) for _ in "ab"]
    assert [one.status_code for one in windows] == [201, 200]
    assert {one.json()["unique_key"] for one in windows} == {"w"}
    for wrong in ({"unique_key": None}, {"on_conflict": "merge"}, {"on_conflict": "debounce", "delay": None}):
        assert api.post("/jobs", {**job, **wrong}).status_code == 422


def test_idempotency_key(api: Api) -> None:
    """Repeating a POST with its Idempotency-Key answers 200 with the same job, even after its end."""
    key = {"Idempotency-Key": uuid.uuid4().hex}
    first = api.post("/jobs", {"handler": "add", "vars": {"a": 1}}, headers=key)
    api.ended(first.json()["id"])
    again = api.post("/jobs", {"handler": "add", "vars": {"a": 1}}, headers=key)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["id"] == first.json()["id"]
    assert len(again.json()["attempts"]) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"handler": "noop"},
        {"vars": {"a": 2}},
        {"priority": 1},
        {"meta": {"x": 1}},
        {"delay": 60},
        {"max_attempts": 1},
        {"expires": "2h"},
        {"expires": None},
    ],
    ids=lambda other: next(iter(other)),
)
def test_another_body_under_a_used_key_is_refused(api: Api, other: dict[str, Any]) -> None:
    """It is not what the first call has made."""
    key = {"Idempotency-Key": uuid.uuid4().hex}
    body = {"handler": "add", "vars": {"a": 1}, "delay": "1h", "expires": "1h"}
    assert api.post("/jobs", body, headers=key).status_code == 201
    refused = api.post(
        "/jobs", {**body, **({"vars": {}} if "handler" in other else {}), **other}, headers=key
    )
    assert refused.status_code == 422
    assert "Idempotency-Key" in refused.json()["detail"]
    assert api.post("/jobs", body, headers=key).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "change", "other"),
    [
        ("PATCH", "", {"priority": 7}, {"vars": {"a": 2}}),
        ("PATCH", "", {"vars": {"a": 9}}, {"priority": 1}),
        ("PATCH", "", {"run_at": "2031-01-01T00:00:00Z"}, {"priority": 1}),
        ("PATCH", "", {"group": "other"}, {"priority": 1}),
        ("POST", "/retry", {"vars": {"a": 3}}, {"priority": 1}),
        ("POST", "/jobs/retry", {"status": "scheduled", "handler": "add"}, {"vars": {"a": 2}}),
        ("POST", "/jobs/retry", {"status": "scheduled", "meta": {"of": "here"}}, {"vars": {"a": 2}}),
    ],
    ids=["priority", "vars", "run_at", "group", "due", "many due of a handler", "many due"],
)
def test_a_job_that_a_person_has_changed_is_repeated(
    api: Api, method: str, path: str, change: dict[str, Any], other: dict[str, Any]
) -> None:
    """It is what the first call has made, apart from that; what nobody has changed still counts."""
    key = {"Idempotency-Key": uuid.uuid4().hex}
    body = {"handler": "add", "vars": {"a": 1}, "delay": "1h", "group": "own", "meta": {"of": "here"}}
    job = api.post("/jobs", body, headers=key).json()["id"]
    target = path if path.startswith("/jobs") else f"/jobs/{job}{path}"
    document = {"filter": change} if path.startswith("/jobs") else change
    done = api.http.request(method, target, json=document)
    assert done.is_success, done.text
    again = api.post("/jobs", body, headers=key)
    assert (again.status_code, again.json()["id"]) == (200, job)
    assert api.post("/jobs", {**body, **other}, headers=key).status_code == 422


def test_bulk_is_repeated_with_a_key(api: Api) -> None:
    """The same jobs, whether they have ended; a longer or shorter list is another body."""
    key = {"Idempotency-Key": uuid.uuid4().hex}
    body = {"jobs": [{"handler": "add", "vars": {"a": n}} for n in range(3)]}
    first = api.post("/jobs/bulk", body, headers=key)
    ids = [item["id"] for item in first.json()["items"]]
    assert (first.status_code, len(set(ids))) == (201, 3)
    again = api.post("/jobs/bulk", body, headers=key)
    assert again.status_code == 200
    assert again.json()["items"] == [{"id": job, "created": False, "replaced": False} for job in ids]
    for jobs in (body["jobs"][:2], [*body["jobs"], body["jobs"][0]], body["jobs"][::-1]):
        assert api.post("/jobs/bulk", {"jobs": jobs}, headers=key).status_code == 422
    assert api.post("/jobs/bulk", body).json()["items"][0]["id"] not in ids


def test_invalid_jobs(api: Api) -> None:
    """Unknown handlers, invalid vars and invalid documents are 422 with what was expected."""
    # Vars are checked once the pool has announced the signature.
    eventually(lambda: all(one["known"] for one in api.get("/handlers").json()["handlers"]))
    for document, expected in (
        ({"handler": "nope"}, "nope"),
        ({"handler": "add", "vars": {"a": "one"}}, "a"),
        ({"handler": "add", "vars": {"a": 1, "c": 2}}, "c"),
        ({"handler": "noop", "priority": 2**31}, "priority"),
        ({"handler": "noop", "delay": "soon"}, "delay"),
        ({"handler": "noop", "delay": 1, "run_at": "2030-01-01T00:00:00Z"}, "delay"),
        ({"handler": "noop", "unique_key": "~cooler"}, "unique_key"),
        ({"handler": "noop", "max_attempts": 0}, "max_attempts"),
        ({"handler": "noop", "prioritaet": 1}, "prioritaet"),
        ({}, "handler"),
    ):
        answer = api.post("/jobs", document)
        assert answer.status_code == 422, document
        assert answer.headers["content-type"] == "application/problem+json"
        assert expected in answer.json()["detail"], answer.text


def test_max_waiting(api: Api) -> None:
    """A job above `max_waiting` is refused with 429 and Retry-After."""
    api.post("/handlers/limited/pause", {"reason": "test"})
    for _ in range(2):
        api.enqueue("limited", delay="1h")
    answer = api.post("/jobs", {"handler": "limited"})
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 0


def test_bulk(api: Api) -> None:
    """Many jobs are enqueued in order, all or none."""
    answer = api.post("/jobs/bulk", {"jobs": [{"handler": "add", "vars": {"a": n}} for n in range(300)]})
    assert answer.status_code == 201
    items = answer.json()["items"]
    assert len(items) == 300
    assert all(item["created"] for item in items)
    assert [api.ended(item["id"])["payload"] for item in items[:3]] == [1, 2, 3]
    before = len(api.get("/jobs?limit=500&handler=noop").json()["jobs"])
    refused = api.post("/jobs/bulk", {"jobs": [{"handler": "noop"}, {"handler": "nope"}]})
    assert refused.status_code == 422
    assert len(api.get("/jobs?limit=500&handler=noop").json()["jobs"]) == before
    assert api.post("/jobs/bulk", {"jobs": []}).json() == {"items": []}
    assert api.get("/jobs/bulk").status_code == 405


def test_lists_and_pages(api: Api) -> None:
    """A list is newest first and filtered; its cursors lead through all of it once."""
    made = [api.enqueue("noop", delay=f"{n + 10}h") for n in range(7)]
    wanted = "/jobs?handler=noop&status=scheduled&limit=3"
    seen: list[str] = []
    answer = api.get(wanted).json()
    while True:
        assert all("attempts" not in job and "payload" not in job for job in answer["jobs"])
        seen += [job["id"] for job in answer["jobs"]]
        if answer["next"] is None:
            break
        answer = api.get(f"{wanted}&after={answer['next']}").json()
    assert len(seen) == len(set(seen))
    assert [job for job in seen if job in made] == made[::-1]
    for query in ("limit=0", "limit=501", "limit=x", "status=nope", "since=yesterday", "after=x", "handler="):
        assert api.get(f"/jobs?{query}").status_code == 422, query


def test_lists_are_filtered_by_what_a_job_has(api: Api) -> None:
    """By group, meta and reason; what cannot be meant is refused."""
    made = [
        api.post(
            "/jobs",
            {"handler": "noop", "delay": "9h", "group": f"filter-{n % 2}", "meta": {"tenant": f"t{n % 3}"}},
        ).json()["id"]
        for n in range(6)
    ]
    for query, found in (
        ("group=filter-1", made[1::2]),
        ("group=filter-1&meta.tenant=t1", [made[1]]),
        ("group=filter-1&meta.tenant=t1&meta.absent=", []),
        ("group=filter-1&reason=failure", []),
        ("group=filter-1&error=0123456789abcdef", []),
        (f"group=filter-1&request={made[0]}", []),
    ):
        assert [job["id"] for job in api.get(f"/jobs?{query}").json()["jobs"]] == found[::-1], query
    for query, expected in (
        ("reason=bad", "expected one of ok"),
        ("error=12", "16 hex digits"),
        ("error=0123456789abcdeg", "16 hex digits"),
        ("meta.=1", "empty key"),
        ("meta=1", "meta.KEY"),
        ("request=1", "request: "),
        ("group=", "expected 1 to"),
    ):
        answer = api.get(f"/jobs?{query}")
        assert answer.status_code == 422, query
        assert expected in answer.json()["detail"], answer.text
    for job_id in made:
        api.post(f"/jobs/{job_id}/cancel")


def test_cancel(api: Api, tmp_path: Path) -> None:
    """A waiting job is cancelled at once, a running one is asked to stop, an ended one is a conflict."""
    waiting = api.enqueue("noop", delay="1h")
    answer = api.post(f"/jobs/{waiting}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert api.post(f"/jobs/{waiting}/cancel").status_code == 409
    running = api.enqueue("file", {"path": str(tmp_path / "never")})
    eventually(lambda: api.get(f"/jobs/{running}").json()["status"] == "inprogress")
    assert api.post(f"/jobs/{running}/cancel").status_code == 202
    assert api.ended(running)["status"] == "cancelled"


def test_retry(api: Api) -> None:
    """An ended job runs again as a new attempt; a live one does not."""
    failed = api.enqueue("behave", {"kind": "failure"})
    assert api.ended(failed)["status"] == "failure"
    answer = api.post(f"/jobs/{failed}/retry")
    assert (answer.status_code, answer.json()["attempt"]) == (201, 2)
    assert [one["status"] for one in api.ended(failed)["attempts"]] == ["retry", "failure"]
    live = api.enqueue("noop", delay="1h")
    assert api.post(f"/jobs/{live}/retry").status_code in (201, 409)  # a scheduled job may be made due


@pytest.mark.parametrize(
    ("path", "empty"),
    [
        (f"/jobs/{UNKNOWN}/retry", 404),
        ("/handlers/missing/pause", 422),
        (f"/requests/{UNKNOWN}/signals/x", 404),
    ],
)
def test_an_optional_body_is_json(api: Api, path: str, empty: int) -> None:
    """A body may be missing where it is optional; one of white space alone is no JSON."""
    json = {"Content-Type": "application/json"}
    assert api.http.post(path, content=b"", headers=json).status_code == empty
    for blank in (b"\t", b" \r\n"):
        answer = api.http.post(path, content=blank, headers=json)
        assert (answer.status_code, "not valid JSON" in answer.text) == (400, True)


@pytest.mark.parametrize("item_id", ["x", "0", "%00", "%F0%9F%92%A9", "a" * 500, "..%2f..%2fetc", UNKNOWN])
def test_unknown_ids(api: Api, item_id: str) -> None:
    """An invalid or unknown id is 404 on every route."""
    for answer in (
        api.get(f"/jobs/{item_id}"),
        api.get(f"/jobs/{item_id}?wait=1s"),
        api.get(f"/jobs/{item_id}/payload"),
        api.post(f"/jobs/{item_id}/cancel"),
        api.post(f"/jobs/{item_id}/retry"),
        api.get(f"/requests/{item_id}"),
        api.post(f"/requests/{item_id}/cancel"),
        api.get(f"/ui/jobs/{item_id}"),
        api.get(f"/ui/requests/{item_id}"),
    ):
        assert answer.status_code == 404, answer.url


def test_a_waiting_job_is_edited(api: Api) -> None:
    """PATCH merges vars and changes priority, time and group; a running or ended job conflicts."""
    job = api.enqueue("add", {"a": 1, "b": 2}, run_at="2099-01-01T00:00:00Z")
    answer = api.http.patch(f"/jobs/{job}", json={"vars": {"b": 40}, "priority": 5, "group": "g"})
    assert answer.status_code == 200, answer.text
    shown = answer.json()
    assert (shown["vars"], shown["priority"], shown["group"]) == ({"a": 1, "b": 40}, 5, "g")
    for wrong in (
        {}, {"vars": {"a": "x"}}, {"priority": "high"}, {"run_at": "soon"}, {"other": 1}, {"group": ""},
    ):  # fmt: skip
        assert api.http.patch(f"/jobs/{job}", json=wrong).status_code == 422, wrong
    assert api.get(f"/jobs/{job}").json()["group"] == "g"
    assert api.http.patch(f"/jobs/{job}", json={"group": None}).json()["group"] is None
    assert api.http.patch(f"/jobs/{job}", json={"run_at": "2020-01-01T00:00:00Z"}).status_code == 200
    assert api.ended(job)["payload"] == 41
    assert api.http.patch(f"/jobs/{job}", json={"priority": 1}).status_code == 409
    assert api.post(f"/jobs/{job}/retry", {"vars": {"a": "x"}}).status_code == 422
    assert api.post(f"/jobs/{job}/retry", {"vars": {"a": 2}}).status_code == 201
    assert api.ended(job)["payload"] == 42
    later = api.enqueue("add", {"a": 1, "b": 2}, run_at="2099-01-01T00:00:00Z")
    done = api.daemon.cli("job", "edit", later, "a=5", "--run-at", "2020-01-01T00:00:00Z", "--priority", "2")
    assert "changed" in done.stderr
    assert api.ended(later)["payload"] == 7
    api.daemon.cli("job", "retry", later, "a=6")
    assert api.ended(later)["payload"] == 8
    assert api.daemon.cli("job", "retry", "a=6", check=False).returncode == 2
    assert api.daemon.cli("job", "edit", later, "a=6", check=False).returncode == 1
    actions = [act["action"] for act in api.get(f"/audit?target={later}").json()["audit"]]
    assert actions == ["retry", "edit"]
