"""`[pickup]` in a running daemon: nodes that take no work, and pickup windows."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.request_rows import RequestRows
from tests.support.rows import Rows
from tests.support.servers import free_port

StartDaemon = Callable[..., Daemon]
NEVER = "0 0 29 2 *"
SOON = "* * * * * *"

CONFIG = f"""
[dispatcher]
poll = "50ms"

[defaults]
path = ["{ROOT}"]

[handlers.act]
call = "tests.support.workflow_handlers:act"

[handlers.show_inputs]
call = "tests.support.workflow_handlers:show_inputs"

[handlers.beat]
call = "tests.support.workflow_handlers:act"
cron = "* * * * * *"

[workflows.two]
steps = [ {{ name = "one", jobs = ["act"] }}, {{ name = "two", jobs = ["show_inputs"] }} ]
"""


def pickup(**keys: Any) -> str:
    return "\n[pickup]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())


def ticks(rows: Rows) -> int:
    return len(rows.sql("SELECT 1 FROM workerd_jobs WHERE handler = 'beat'"))


@pytest.mark.slow
@pytest.mark.parametrize("store_url", ["mysql"], indirect=True)
def test_a_node_with_pickup_disabled_serves_its_api(start_daemon: StartDaemon, store_url: str) -> None:
    """It enqueues but does not claim, fire schedules or start requests; another node does."""
    port = free_port()
    start_daemon(CONFIG + pickup(enabled=False), "closed", gateway=f"127.0.0.1:{port}")
    rows, request = (
        Rows(store_url),
        urllib.request.Request(
            f"http://127.0.0.1:{port}/jobs",
            data=b'{"handler": "show_inputs", "vars": {"n": 1}}',
            headers={"Content-Type": "application/json"},
        ),
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 201
        job = bytes.fromhex(json.load(answer)["id"].replace("-", ""))
    requests = RequestRows(rows)
    request_id = requests.insert("two")
    opened = start_daemon(CONFIG, "open")
    eventually(lambda: rows.ended(job) and requests.ended(request_id) and ticks(rows), state=opened.tail)
    opened.stop()
    later = [rows.insert("act"), rows.insert("show_inputs")]
    request_id, before = requests.insert("two"), ticks(rows)
    again = start_daemon(CONFIG, "again")
    eventually(lambda: rows.ended(*later) and requests.ended(request_id), state=again.tail)
    assert {row["node"] for row in rows.sql("SELECT DISTINCT node FROM workerd_jobs")} <= {
        "open",
        "again",
        None,
    }
    assert ticks(rows) >= before


@pytest.mark.slow
@pytest.mark.parametrize("store_url", ["mysql"], indirect=True)
def test_pickup_windows_of_requests_and_their_steps(start_daemon: StartDaemon, store_url: str) -> None:
    """New requests wait for `requests_new`, further steps for `requests_inprogress`; jobs run at once."""
    rows = Rows(store_url)
    requests = RequestRows(rows)
    daemon = start_daemon(CONFIG)
    done = daemon.cli("request", "submit", "two", "--wait", "10s", "--json")
    assert json.loads(done.stdout)["status"] == "completed"

    daemon.write(CONFIG + pickup(requests_new=NEVER, requests_inprogress=NEVER))
    daemon.cli("reload")
    request_id = requests.insert("two")
    job = rows.insert("act")
    eventually(lambda: rows.ended(job) and ticks(rows) >= 2, state=daemon.tail)
    assert requests.status(request_id) == "queuing"

    daemon.write(CONFIG + pickup(requests_new=SOON, requests_inprogress=NEVER))
    daemon.cli("reload")
    eventually(lambda: requests.job_statuses(request_id) == {"act": "completed"}, state=daemon.tail)
    before = ticks(rows)
    eventually(lambda: ticks(rows) >= before + 2, state=daemon.tail)
    assert requests.job_statuses(request_id) == {"act": "completed"}

    daemon.write(CONFIG + pickup(requests_inprogress=SOON))
    daemon.cli("reload")
    eventually(lambda: requests.status(request_id) == "completed", state=daemon.tail)


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_pickup_window_of_jobs(start_daemon: StartDaemon, store_url: str) -> None:
    """Jobs wait for the window `jobs`, then all waiting jobs are claimed."""
    rows = Rows(store_url)
    daemon = start_daemon(CONFIG + pickup(jobs=NEVER))
    jobs = [rows.insert("act") for _ in range(20)]
    eventually(lambda: ticks(rows) >= 2, state=daemon.tail)
    assert {row["status"] for row in rows.sql("SELECT status FROM workerd_jobs")} == {"new"}
    daemon.write(CONFIG + pickup(jobs=SOON))
    daemon.cli("reload")
    eventually(lambda: rows.ended(*jobs), within=15, state=daemon.tail)
