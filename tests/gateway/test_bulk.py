"""`POST /jobs/cancel` and `/jobs/retry`: all jobs that a filter means."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.eventually import eventually
from tests.support.gateway import Api
from tests.support.gateway_state import ask, gateway_state
from workerd.config.handler_config import HandlerConfig, PoolConfig
from workerd.config.model import Config, GatewayConfig, NodeConfig, StoreConfig
from workerd.gateway import bulk
from workerd.store import columns, jobs
from workerd.store.base import Store, Tx


def later(api: Api, count: int, **more: Any) -> list[str]:
    """Jobs that wait for tomorrow."""
    jobs = [{"handler": "noop", "delay": "1d", **more} for _ in range(count)]
    return [one["id"] for one in api.post("/jobs/bulk", {"jobs": jobs}).json()["items"]]


def statuses(api: Api, group: str) -> list[str]:
    listed = api.get(f"/jobs?group={group}&limit=500").json()["jobs"]
    return [job["status"] for job in listed]


def test_jobs_are_counted_then_cancelled(api: Api) -> None:
    """`matched` counts all, `limit` bounds what is done, `dry_run` does nothing."""
    later(api, 700, group="many")
    body = {"filter": {"group": "many"}}
    assert api.post("/jobs/cancel", {**body, "dry_run": True}).json() == {"matched": 700, "done": 0}
    assert api.post("/jobs/cancel", {**body, "limit": 20}).json() == {"matched": 700, "done": 20}
    answer = api.post("/jobs/cancel", body)
    assert (answer.status_code, answer.json()) == (200, {"matched": 680, "done": 680})
    assert api.post("/jobs/cancel", body).json() == {"matched": 0, "done": 0}
    acts = [act for act in api.get("/audit").json()["audit"] if act["target"] is None][:3]
    assert [len(act["detail"]["ids"]) for act in acts] == [180, 500, 20]
    assert acts[0]["detail"]["filter"] == {"group": "many"}
    assert (acts[0]["actor"], acts[0]["action"], acts[0]["via"]) == ("local", "cancel", "http")


def test_failed_jobs_are_retried_by_their_error(api: Api) -> None:
    """They run again at once, whatever else has failed."""
    made = [api.enqueue("behave", {"kind": "failure"}, group="by-error") for _ in range(3)]
    (fingerprint,) = {api.ended(job)["fingerprint"] for job in made}
    body = {"filter": {"error": fingerprint, "handler": "behave", "group": "by-error"}}
    assert api.post("/jobs/retry", body).json() == {"matched": 3, "done": 3}
    for job in made:
        eventually(lambda job=job: api.ended(job)["attempt"] == 2)
    shown = api.get(f"/ui/jobs/{made[0]}").text
    assert "Who did what" in shown


def test_every_key_of_a_filter(api: Api) -> None:
    """All of them at once; each narrows."""
    (job,) = later(api, 1, group="keys", meta={"tenant": 7, "to": "a=b"})
    full: dict[str, Any] = {
        "handler": "noop", "status": "scheduled", "since": "2026-01-01T00:00:00Z",
        "until": "2099-01-01T00:00:00+01:00", "group": "keys", "meta": {"tenant": "7", "to": "a=b"},
    }  # fmt: skip

    def matched(**other: Any) -> int:
        answer = api.post("/jobs/cancel", {"filter": {**full, **other}, "dry_run": True})
        return int(answer.json()["matched"])

    assert matched() == 1
    others: dict[str, Any] = {
        "handler": "add", "status": "new", "since": "2098-01-01T00:00:00Z",
        "until": "2026-01-01T00:00:00Z", "reason": "oom", "error": "0123456789abcdef", "group": "key",
        "request": job, "meta": {"tenant": "8"},
    }  # fmt: skip
    assert {name: matched(**{name: value}) for name, value in others.items()} == dict.fromkeys(others, 0)
    assert api.post(f"/jobs/{job}/cancel").status_code == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "filter"),
        ({"filter": {}}, "at least one of handler"),
        ({"filter": {"meta": {}}}, "at least one of handler"),
        ({"filter": {"handler": None}}, "at least one of handler"),
        ({"filter": {"handel": "noop"}}, "handel"),
        ({"filter": {"handler": ""}}, "handler: expected 1 to"),
        ({"filter": {"handler": "noop"}, "limit": 0}, "limit"),
        ({"filter": {"handler": "noop"}, "limit": 100_001}, "limit"),
        ({"filter": {"handler": "noop"}, "dry_run": "yes"}, "dry_run"),
        ({"filter": {"status": "running"}}, "status"),
        ({"filter": {"status": "retry"}}, "expected one of"),
        ({"filter": {"error": "12"}}, "error:"),
        ({"filter": {"request": "12"}}, "request:"),
        ({"filter": {"since": "yesterday"}}, "since:"),
        ({"filter": {"meta": {"a": 7}}}, "meta"),
        ({"filter": {"meta": {f"k{n}": "" for n in range(21)}}}, "at most 20"),
        ({"filter": ["handler"]}, "filter"),
    ],
)
@pytest.mark.parametrize("act", ["cancel", "retry"])
def test_wrong_bodies(api: Api, act: str, body: dict[str, Any], words: str) -> None:
    """422 that says what was expected; nothing is done."""
    answer = api.post(f"/jobs/{act}", body)
    assert answer.status_code == 422, answer.text
    assert words in answer.json()["detail"]


def test_only_post(api: Api) -> None:
    """The words are no ids."""
    for path in ("/jobs/cancel", "/jobs/retry"):
        answer = api.get(path)
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_callers_at_the_same_time(api: Api) -> None:
    """Together they cancel each job once."""
    later(api, 1200, group="shared")
    with ThreadPoolExecutor(4) as pool:
        body = {"filter": {"group": "shared"}}
        answers = list(pool.map(lambda _: api.post("/jobs/cancel", body).json(), range(4)))
    assert sum(answer["done"] for answer in answers) == 1200
    assert set(statuses(api, "shared")) == {"cancelled"}


def test_a_node_that_stops_between_slices(
    store_url: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 503 says how far it went: what is done is done, the rest is as it was, and a repeat does it."""
    handler = HandlerConfig(name="noop", call="x:y", pool="noop")
    config = Config(
        node=NodeConfig(runtime_dir=tmp_path / "run", state_dir=tmp_path),
        store=StoreConfig(url=store_url),
        gateway=GatewayConfig(listen="unix:/unused"),
        pools={"noop": PoolConfig(name="noop", handlers=(handler,))},
    )
    gateway = gateway_state(config)
    made = [jobs.NewJob(handler="noop") for _ in range(700)]
    store.run(lambda tx: jobs.insert(tx, made))
    change = bulk.change

    def change_and_drain(tx: Tx, **given: Any) -> int:
        gateway.backend.draining = True
        return change(tx, **given)

    monkeypatch.setattr(bulk, "change", change_and_drain)
    body = {"filter": {"handler": "noop"}}
    answer = ask(gateway, "/jobs/cancel", body)
    assert answer.status_code == 503
    assert (answer.json()["matched"], answer.json()["done"]) == (700, 500)
    assert answer.json()["detail"].startswith("500 of 700 jobs were done before this: ")
    assert answer.headers["retry-after"]
    counted = store.read(lambda tx: tx.query("SELECT status, COUNT(*) FROM workerd_jobs GROUP BY status"))
    assert sorted((columns.text(status), count) for status, count in counted) == [
        ("cancelled", 500), ("new", 200),
    ]  # fmt: skip
    gateway.backend.draining = False
    assert ask(gateway, "/jobs/cancel", body).json() == {"matched": 200, "done": 200}
