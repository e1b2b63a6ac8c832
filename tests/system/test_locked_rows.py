"""Rows that another program's open transaction locks: whose they are waits, all else goes on."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import HANDLERS
from tests.support.eventually import eventually
from tests.support.gateway import Api
from tests.support.rows import Rows
from workerd import transaction

CONFIG = f"""
[pools.work]
workers = 2
[handlers.noop]
call = "{HANDLERS}:noop"
pool = "work"
[handlers.tick]
call = "{HANDLERS}:noop"
pool = "work"
cron = "* * * * * *"
[handlers.file]
call = "{HANDLERS}:wait_for_file"
[workflows.held]
jobs = [{{ name = "wait", handler = "file", vars = {{ path = "FILE" }} }}]
"""
LOCKS = {
    "job": "SELECT * FROM workerd_jobs WHERE id = %s AND attempt = 1 FOR UPDATE",
    "handler": "SELECT * FROM workerd_handlers WHERE name = 'file' FOR UPDATE",
    "request": "SELECT * FROM workerd_requests FOR UPDATE",
    "schedule": "SELECT * FROM workerd_schedules WHERE name = 'tick' FOR UPDATE",
}


@pytest.fixture
def api(tmp_path: Path, mysql_url: str) -> Iterator[Api]:
    """A node with every role on MariaDB."""
    with Api(tmp_path / "node", mysql_url, CONFIG.replace("FILE", str(tmp_path / "go"))) as api:
        yield api


def goes_on(api: Api) -> None:
    """The node is ready and does other work; nothing says that the store is away."""
    for _ in range(5):
        assert api.ended(api.enqueue("noop"), "20s")["status"] == "completed"
        answer = api.get("/ready")
        assert answer.status_code == 200, answer.text
    assert "store.unavailable" not in api.daemon.logged()


@pytest.mark.parametrize(
    "lock", [pytest.param(name, marks=pytest.mark.slow if name == "handler" else ()) for name in LOCKS]
)
def test_a_locked_row_stops_no_other(api: Api, mysql_url: str, tmp_path: Path, lock: str) -> None:
    """The job of the request ends while the row is locked, and is recorded after that."""
    request = api.post("/requests", {"workflow": "held"}).json()["id"]
    (job,) = eventually(lambda: api.get("/jobs?handler=file&status=inprogress").json()["jobs"])
    with Rows(mysql_url).connection() as other, other.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute(LOCKS[lock], (uuid.UUID(job["id"]).bytes,) if lock == "job" else ())
        (tmp_path / "go").touch()
        waiting = api.enqueue("file", {"path": str(tmp_path / "go")})
        goes_on(api)
        other.rollback()
    assert api.ended(waiting)["status"] == "completed"
    eventually(lambda: api.get(f"/requests/{request}").json()["status"] == "completed")
    goes_on(api)


def test_an_enqueue_left_open_under_the_key_of_a_running_job_stops_no_other(
    api: Api, mysql_url: str, tmp_path: Path
) -> None:
    """`workerd.enqueue` locks the holder of the key until its caller's transaction ends."""
    running = api.enqueue("file", {"path": str(tmp_path / "go")}, unique_key="one")
    eventually(lambda: api.get(f"/jobs/{running}").json()["status"] == "inprogress")
    with Rows(mysql_url).connection() as other:
        other.begin()
        assert transaction.enqueue(other, "file", unique_key="one").id == running
        (tmp_path / "go").touch()
        goes_on(api)
        other.rollback()
    assert api.ended(running)["status"] == "completed"
