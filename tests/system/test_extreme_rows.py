"""A row that nobody meant ends alone: every extreme of every column, beside healthy jobs (law 7)."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import HANDLERS
from tests.support.eventually import eventually
from tests.support.extreme_rows import extremes, write
from tests.support.gateway import Api
from workerd.job import new_id
from workerd.store.base import Store

NAMED = "{name}"
"""Replaced by a name of its own for each row."""
MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""No list and no page is longer."""
CONFIG = f"""
[defaults]
max_attempts = 1
[dispatcher]
lease = "5s"
[pools.work]
workers = 2
[handlers.noop]
call = "{HANDLERS}:noop"
pool = "work"
[handlers.tick]
call = "{HANDLERS}:noop"
pool = "work"
cron = "* * * * * *"
[workflows.pair]
jobs = [{{ name = "first", handler = "noop" }}, {{ name = "second", handler = "noop", needs = ["first"] }}]
"""
JOB = {"handler": "noop"}
DEAD = {"status": "inprogress", "node_id": b"d" * 16, "claimed_at": "2024-01-01 00:00:00"}
REQUEST = {"workflow": "pair", "params": "{}"}
BASES: dict[str, list[dict[str, Any]]] = {
    "workerd_jobs": [JOB, {**JOB, "status": "scheduled"}, {**JOB, "status": "completed"}, {**JOB, **DEAD}],
    "workerd_requests": [REQUEST, {**REQUEST, "status": "inprogress", "steps": "[]", "version": 1}],
    "workerd_schedules": [
        {"name": NAMED, "kind": "cron", "expression": "* * * * *"},
        {"name": NAMED, "kind": "cooler"},
    ],
    "workerd_nodes": [{"name": NAMED, "lease_until": "2024-01-01 00:00:00"}],
    "workerd_handlers": [{"name": NAMED}],
}
PATHS = (
    "/jobs", "/jobs?limit=40", "/jobs?status=failure", "/requests", "/handlers", "/nodes", "/schedules",
    "/ready", "/heartbeat", "/metrics", "/schema", "/", "/ui/jobs", "/ui/requests", "/ui/handlers",
    "/ui/schedules",
)  # fmt: skip
COMMANDS = (
    ("status",), ("job", "list"), ("request", "list"), ("handlers",), ("nodes",), ("schedules",),
    ("job", "list", "--status", "failure"), ("top", "--once"),
)  # fmt: skip


@pytest.fixture
def api(tmp_path: Path, store_url: str, store: Store) -> Iterator[Api]:
    """A node with every role on an empty store."""
    with Api(tmp_path / "node", store_url, CONFIG) as api:
        yield api


@pytest.mark.slow
@pytest.mark.parametrize("table", list(BASES))
def test_no_value_of_a_row_stops_others(api: Api, store: Store, table: str) -> None:
    """Jobs, requests and schedules of others run on; every page and command answers; no process dies."""
    before = pids(api)
    healthy = [api.enqueue("noop") for _ in range(3)]
    written = [write(store, named(base), extreme) for extreme in extremes(table) for base in BASES[table]]
    rows = [row for row in written if row is not None]
    assert len(rows) > 20
    healthy += [api.enqueue("noop") for _ in range(3)]
    request = api.post("/requests", {"workflow": "pair"}).json()["id"]
    # SQLite writes rows of 15 MB anew at each change, which takes a minute on a machine with other work.
    eventually(lambda: unsettled(store) == 0, within=180, every=0.2, state=lambda: str(unsettled(store)))
    for job in healthy:
        assert api.ended(job)["status"] == "completed"
    eventually(lambda: api.get(f"/requests/{request}").json()["status"] == "completed")
    ticked = ticks(store)
    eventually(lambda: ticks(store) > ticked)
    for path in PATHS:
        answer = api.get(path)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text[:300]}"
        assert len(answer.content) <= MAX_ANSWER_BYTES, path
    for path in [path for row in rows for path in paths_of(table, row)]:
        assert api.get(path).status_code in (200, 404), path
    for words in COMMANDS:
        done = api.daemon.cli(*words, check=False)
        assert "Traceback" not in done.stderr + done.stdout, f"{words}: {done.stderr[-2000:]}"
        assert done.returncode in (0, 1), f"{words}: {done.stderr[-2000:]}"
    assert pids(api) == before, api.daemon.tail()


def named(base: dict[str, Any]) -> dict[str, Any]:
    """The base with a name of its own where it has one."""
    return {key: new_id().hex() if value == NAMED else value for key, value in base.items()}


def paths_of(table: str, row: dict[str, Any]) -> list[str]:
    """The document and the page of a row that has them."""
    kind = {"workerd_jobs": "jobs", "workerd_requests": "requests"}.get(table)
    if kind is None or not isinstance(row["id"], bytes):
        return []
    ident = uuid.UUID(bytes=row["id"])
    return [f"/{kind}/{ident}", f"/ui/{kind}/{ident}"]


def pids(api: Api) -> dict[str, Any]:
    """The processes of the node: they change when one is restarted."""
    status = api.daemon.status()
    found = {name: role["pid"] for name, role in status["roles"].items()}
    return found | {name: pool["pid"] for name, pool in status["pools"].items()}


def ticks(store: Store) -> int:
    """Jobs that the healthy schedule has had."""
    return count(store, "handler = 'tick' AND status = 'completed'")


def unsettled(store: Store) -> int:
    """Rows that a worker or a claim should have ended by now."""
    # One that is to begin later has not begun.
    due = "(begins_at IS NULL OR begins_at < '2100-01-01')"
    open_requests = f"workflow = 'pair' AND status IN ('queuing', 'inprogress') AND {due}"
    return count(store, "handler = 'noop' AND status IN ('new', 'inprogress')") + count(
        store, open_requests, "workerd_requests"
    )


def count(store: Store, where: str, table: str = "workerd_jobs") -> int:
    row = store.read(lambda tx: tx.one(f"SELECT COUNT(*) FROM {table} WHERE {where}"))
    assert row is not None
    return int(row[0])
