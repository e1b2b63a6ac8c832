"""Expiry by every way in, in a running daemon: nothing begins after its time, whatever keeps it waiting."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.daemon import HANDLERS, ROOT
from tests.support.eventually import eventually
from tests.support.gateway import Api
from tests.support.rows import Rows, assert_settled
from workerd.client import Client
from workerd.errors import InvalidValue
from workerd.job_spec import JobSpec

CONFIG = f"""
[defaults]
path = ["{ROOT}"]
[handlers.quick]
call = "{HANDLERS}:noop"
[handlers.short]
call = "{HANDLERS}:noop"
expires = "1s"
[workflows.one]
jobs = [{{ name = "only", handler = "short" }}]
"""


@pytest.fixture(scope="module")
def api(module_store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with Api(tmp_path_factory.mktemp("expiry") / "node", module_store_url, CONFIG) as api:
        for handler in ("quick", "short"):
            api.post(f"/handlers/{handler}/pause")
        yield api
        for handler in ("quick", "short"):
            api.post(f"/handlers/{handler}/resume")
        eventually(lambda: not {"new", "inprogress"} & Rows(api.daemon.url).counts().keys())
        assert_settled(Rows(api.daemon.url))


def expired(api: Api, job: str) -> bool:
    found = api.get(f"/jobs/{job}").json()
    return (found["status"], found["reason"]) == ("cancelled", "expired")


@pytest.mark.slow
def test_every_way_in(api: Api) -> None:
    """All of a paused handler; `why` tells the reason."""
    soon = (datetime.now(UTC) + timedelta(seconds=5)).isoformat()
    jobs = [api.enqueue("quick", expires="900ms"), api.enqueue("quick", expires=soon)]
    bulk = api.post("/jobs/bulk", {"jobs": [{"handler": "quick", "expires": 0.5}]}).json()["items"]
    jobs += [one["id"] for one in bulk]
    jobs.append(api.daemon.cli("enqueue", "quick", "--expires", "800ms").stdout.strip())
    with Client(api.daemon.path) as client:
        jobs.append(client.enqueue("quick", expires=timedelta(milliseconds=700)).id)
        jobs += [one.id for one in client.enqueue_many([JobSpec(handler="quick", expires=0.6)])]
    stays = api.enqueue("quick", expires="1h")
    eventually(lambda: all(expired(api, job) for job in jobs), within=30)
    assert api.get(f"/jobs/{stays}").json()["status"] == "new"
    assert api.get(f"/jobs/{stays}").json()["expires_at"] is not None
    why = api.get(f"/jobs/{jobs[0]}/why").json()["why"][0]
    assert "expired before it started" in why
    assert "It had to start within" in why


@pytest.mark.slow
def test_a_handlers_own_and_its_request(api: Api) -> None:
    """Plain INSERTs and jobs of requests too; a request of one that expired fails."""
    rows = Rows(api.daemon.url)
    plain = rows.insert("short", {})
    nobodys = rows.insert("unknown", {}, expires_at=rows.sql(_NOW[rows.sqlite])[0]["t"])
    request = api.post("/requests", {"workflow": "one"}).json()["id"]
    eventually(lambda: rows.last(plain)["reason"] == "expired", within=30)
    eventually(lambda: rows.last(nobodys)["reason"] == "expired", within=30)
    eventually(lambda: api.get(f"/requests/{request}").json()["status"] == "failed", within=30)
    assert '"only" expired' in api.get(f"/requests/{request}").json()["error"]


_NOW = {True: "SELECT strftime('%Y-%m-%d %H:%M:%f000', 'now') AS t", False: "SELECT UTC_TIMESTAMP(6) AS t"}


@pytest.mark.parametrize(
    "body",
    [
        {"expires": "2001-01-01T00:00:00Z"},
        {"expires": "soon"},
        {"expires": -1},
        {"expires": "2030-01-01T00:00:00"},
        {"run_at": "2030-01-02T00:00:00Z", "expires": "2030-01-01T00:00:00Z"},
        {"delay": "2h", "expires": (datetime.now(UTC) + timedelta(hours=1)).isoformat()},
    ],
)
def test_a_wrong_time_is_refused(api: Api, body: dict[str, Any]) -> None:
    """422, exit 2 and InvalidValue, with the name of the option."""
    answer = api.post("/jobs", {"handler": "quick", **body})
    assert answer.status_code == 422, answer.text
    assert "expires" in answer.json()["detail"]
    words = [word for name, value in body.items() for word in (f"--{name.replace('_', '-')}={value}",)]
    assert api.daemon.cli("enqueue", "quick", *words, check=False).returncode == 2
    with Client(api.daemon.path) as client, pytest.raises(InvalidValue, match="expires"):
        client.enqueue("quick", **body)
