"""`[pickup]` with the real daemon: a node that takes no work, and work that is taken at set times only."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.request_rows import RequestRows
from tests.support.rows import Rows
from tests.support.servers import free_port

Node = Callable[..., Daemon]
NEVER = "0 0 29 2 *"
SOON = "* * * * * *"

CONFIG = f"""
[dispatcher]
poll = "50ms"

[defaults]
path = ["{ROOT}"]

[handlers.act]
call = "tests.support.flows:act"

[handlers.tell]
call = "tests.support.flows:tell"

[handlers.beat]
call = "tests.support.flows:act"
cron = "* * * * * *"

[workflows.two]
steps = [ {{ name = "one", jobs = ["act"] }}, {{ name = "two", jobs = ["tell"] }} ]
"""


@pytest.fixture
def node(tmp_path: Path, store_url: str, store: Any) -> Iterator[Node]:
    """Starts daemons on one store; all are ended after the test."""
    daemons: list[Daemon] = []

    def starting(pickup: str = "", name: str = "one", **more: Any) -> Daemon:
        daemons.append(Daemon(tmp_path / name, store_url, CONFIG + pickup, **more))
        return daemons[-1].start()

    yield starting
    for daemon in daemons:
        daemon.end()


def pickup(**keys: Any) -> str:
    return "\n[pickup]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())


def ticks(rows: Rows) -> int:
    return len(rows.sql("SELECT 1 FROM workerd_jobs WHERE handler = 'beat'"))


@pytest.mark.parametrize("store_url", ["mysql"], indirect=True)
def test_a_node_that_takes_no_work_keeps_its_api(node: Node, store_url: str) -> None:
    """It answers and enqueues; it claims, fires and begins nothing, which another node does."""
    port = free_port()
    node(pickup(enabled=False), "closed", gateway=f"127.0.0.1:{port}")
    rows, request = (
        Rows(store_url),
        urllib.request.Request(
            f"http://127.0.0.1:{port}/jobs",
            data=b'{"handler": "tell", "vars": {"n": 1}}',
            headers={"Content-Type": "application/json"},
        ),
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 201
        job = bytes.fromhex(json.load(answer)["id"].replace("-", ""))
    requests = RequestRows(rows)
    asked = requests.insert("two")
    opened = node("", "open")
    eventually(lambda: rows.ended(job) and requests.ended(asked) and ticks(rows), state=opened.tail)
    opened.stop()
    later = [rows.insert("act"), rows.insert("tell")]
    asked, before = requests.insert("two"), ticks(rows)
    again = node("", "again")
    eventually(lambda: rows.ended(*later) and requests.ended(asked), state=again.tail)
    assert {row["node"] for row in rows.sql("SELECT DISTINCT node FROM workerd_jobs")} <= {
        "open",
        "again",
        None,
    }
    assert ticks(rows) >= before


@pytest.mark.parametrize("store_url", ["mysql"], indirect=True)
def test_requests_and_their_steps_at_set_times(node: Node, store_url: str) -> None:
    """New requests wait for `requests_new`, further steps for `requests_inprogress`; jobs go on at once."""
    rows = Rows(store_url)
    requests = RequestRows(rows)
    daemon = node()
    done = daemon.cli("request", "submit", "two", "--wait", "10s", "--json")
    assert json.loads(done.stdout)["status"] == "completed"

    daemon.write(CONFIG + pickup(requests_new=NEVER, requests_inprogress=NEVER))
    daemon.cli("reload")
    asked = requests.insert("two")
    job = rows.insert("act")
    eventually(lambda: rows.ended(job) and ticks(rows) >= 2, state=daemon.tail)
    assert requests.status(asked) == "queuing"

    daemon.write(CONFIG + pickup(requests_new=SOON, requests_inprogress=NEVER))
    daemon.cli("reload")
    eventually(lambda: requests.job_statuses(asked) == {"act": "completed"}, state=daemon.tail)
    before = ticks(rows)
    eventually(lambda: ticks(rows) >= before + 2, state=daemon.tail)
    assert requests.job_statuses(asked) == {"act": "completed"}

    daemon.write(CONFIG + pickup(requests_inprogress=SOON))
    daemon.cli("reload")
    eventually(lambda: requests.status(asked) == "completed", state=daemon.tail)


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_jobs_at_set_times(node: Node, store_url: str) -> None:
    """Jobs wait for `jobs`, and then all that wait are taken."""
    rows = Rows(store_url)
    daemon = node(pickup(jobs=NEVER))
    jobs = [rows.insert("act") for _ in range(20)]
    eventually(lambda: ticks(rows) >= 2, state=daemon.tail)
    assert {row["status"] for row in rows.sql("SELECT status FROM workerd_jobs")} == {"new"}
    daemon.write(CONFIG + pickup(jobs=SOON))
    daemon.cli("reload")
    eventually(lambda: rows.ended(*jobs), within=15, state=daemon.tail)
