"""Workflows of any shape with the real daemon: what jobs hand on, fan out and in, and how runs end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.request_rows import RequestRows
from tests.support.rows import Rows, assert_settled
from workerd.config.model import StoreConfig
from workerd.store.engines import open_store

CONFIG = f"""
[defaults]
path = ["{ROOT}"]
backoff = {{ first = "10ms", factor = 1.0, max = "10ms", jitter = 0.0 }}

[dispatcher]
poll = "100ms"

[pools.acts]
workers = 4

[handlers.act]
call = "tests.support.workflow_handlers:act"
pool = "acts"
max_attempts = 3
ignore = ["tests.support.handlers.Ignored"]

[handlers.show_inputs]
call = "tests.support.workflow_handlers:show_inputs"
pool = "acts"

[handlers.inactive]
call = "tests.support.workflow_handlers:Inactive"
pool = "acts"

[workflows.graph]
jobs = [
  {{ name = "last", handler = "show_inputs", needs = ["left", "right"], vars = {{ role = "last", n = 3 }} }},
  {{ name = "left", handler = "act", needs = ["first"], vars = {{ role = "left" }} }},
  {{ name = "right", handler = "act", needs = ["first"], vars = {{ role = "right" }} }},
  {{ name = "first", handler = "act", vars = {{ role = "first" }} }},
  {{ name = "aside", handler = "act", vars = {{ role = "aside" }} }},
]

[workflows.fan]
jobs = [
  {{ name = "out", handler = "act", vars = {{ role = "out" }} }},
  {{ name = "in", handler = "show_inputs", needs = ["out"] }},
]

[workflows.plain]
steps = [
  {{ name = "one", jobs = ["act", "inactive"] }},
  {{ name = "two", jobs = ["show_inputs"] }},
]

[workflows.sequence]
cooler = "1h"
steps = [
  {{ name = "one", jobs = ["act"] }},
  {{ name = "two", jobs = ["inactive"] }},
  {{ name = "three", jobs = ["show_inputs"] }},
]
"""


class WorkflowHarness:
    """A daemon of this module and its store."""

    def __init__(self, folder: Path, url: str) -> None:
        store = open_store(StoreConfig(url=url))
        store.migrate()
        store.close()
        self.rows = Rows(url)
        self.requests = RequestRows(self.rows)
        self.daemon = Daemon(folder / "node", url, CONFIG)

    def run(self, workflow: str, params: object = None) -> dict[str, Any]:
        """Ask for a run; its row at its end."""
        request_id = self.requests.insert(workflow, params)
        eventually(lambda: self.requests.ended(request_id), within=20,
                   state=lambda: (self.requests.job_statuses(request_id), self.daemon.tail()))  # fmt: skip
        return self.requests.row(request_id)


@pytest.fixture(scope="module", params=["mysql", "sqlite"])
def harness(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkflowHarness]:
    folder = tmp_path_factory.mktemp("workflows")
    if request.param == "sqlite":
        url = f"sqlite:///{folder}/store.db"
    else:
        server = request.getfixturevalue("mysql_server")
        url = server.url(server.new_database())
    harness = WorkflowHarness(folder, url)
    with harness.daemon:
        eventually(lambda: harness.rows.sql("SELECT * FROM workerd_requests WHERE completed_at IS NOT NULL"))
        yield harness
        assert harness.daemon.stop() == 0
        assert_settled(harness.rows)


# -- what jobs are given and hand on -----------------------------------------------------------


def test_a_graph_runs_in_the_order_of_its_needs(harness: WorkflowHarness) -> None:
    """A job sees its vars, the request's params and extras, and the payloads of what it needs."""
    params = {
        "first": {"extras": {"found": 1, "by": "first"}},
        "left": {"extras": {"left": [1]}},
        "right": {"bytes": "raw"},
    }
    row = harness.run("graph", params)
    assert row["status"] == "completed"
    jobs = harness.requests.jobs(row["id"])
    assert {name: job["step"] for name, job in jobs.items()} == {
        "first": 0, "aside": 0, "left": 1, "right": 1, "last": 2,
    }  # fmt: skip
    for job, needs in {"left": ["first"], "right": ["first"], "last": ["left", "right"]}.items():
        assert all(jobs[job]["claimed_at"] >= jobs[need]["ingested_at"] for need in needs)
    told = harness.requests.payload(row["id"], "last")
    assert told.pop("request_id").replace("-", "") == row["id"].hex()
    assert told == {
        "vars": {"role": "last", "n": 3},
        "params": params,
        "extras": {"found": 1, "by": "first", "left": [1]},
        "needs": {"left": "passed on", "right": "cmF3"},  # bytes are base64 in JSON
    }


def test_extras_of_two_jobs_of_one_step_both_win(harness: WorkflowHarness) -> None:
    """They are merged key by key, whoever ends last."""
    for n in range(4):
        params = {"left": {"extras": {"left": n}}, "right": {"extras": {"right": n}}}
        row = harness.run("graph", params)
        assert harness.requests.payload(row["id"], "last")["extras"] == {"left": n, "right": n}


def test_what_needs_a_job_waits_for_what_that_spawned(harness: WorkflowHarness) -> None:
    """Also for what the spawned jobs spawn; it sees the payloads of all."""
    deeper = {"spawn": {"jobs": [{"handler": "act", "vars": {"action": {"return": "deep"}}}]}}
    jobs = [
        {"handler": "act", "vars": {"action": {"return": 1}}},
        {"handler": "act", "vars": {"action": {"return": 2}}, "name": "two"},
        {"handler": "act", "vars": {"action": deeper}, "name": "three"},
    ]
    row = harness.run("fan", {"out": {"spawn": {"jobs": jobs, "payload": "out"}}})
    assert row["status"] == "completed"
    assert harness.requests.payload(row["id"], "in")["needs"] == {
        "out": "out", "out/0": 1, "out/two": 2, "out/three": None, "out/three/0": "deep",
    }  # fmt: skip
    there = harness.requests.jobs(row["id"])
    assert there["in"]["claimed_at"] >= max(j["ingested_at"] for n, j in there.items() if n != "in")


def test_a_spawned_job_that_fails_fails_the_request(harness: WorkflowHarness) -> None:
    """What needs its parent does not begin."""
    jobs = [{"handler": "act", "vars": {"action": {"fail": "no"}}, "name": "x"}]
    row = harness.run("fan", {"out": {"spawn": {"jobs": jobs}}})
    assert (row["status"], row["error"]) == ("failed", '"out/x" failed: no')
    assert harness.requests.job_statuses(row["id"]) == {"out": "completed", "out/x": "failure"}


def test_a_spawn_that_cannot_be_is_refused_by_the_worker(harness: WorkflowHarness) -> None:
    """Outside of a request, and without a handler: the attempt fails, and says why."""
    alone = harness.rows.insert("act", {"action": {"spawn": {"jobs": [{"handler": "act"}]}}})
    eventually(lambda: harness.rows.ended(alone), within=20)
    ended = harness.rows.last(alone)
    assert (ended["status"], ended["reason"]) == ("failure", "failure")
    assert "belongs to none" in ended["error"]
    row = harness.run("fan", {"out": {"spawn": {"jobs": [{"name": "x"}]}}})
    assert row["status"] == "failed"
    assert "expected tables" in harness.requests.jobs(row["id"])["out"]["error"]


# -- quiet endings -----------------------------------------------------------------------------


def test_ignored_and_skipped_jobs_let_the_steps_go_on(harness: WorkflowHarness) -> None:
    """An ignored error is a success, a skip is neither; the next step begins after both."""
    row = harness.run("plain", {"act": {"ignored": None}})
    assert (row["status"], row["error"]) == ("completed", None)
    jobs = harness.requests.jobs(row["id"])
    assert {n: (j["status"], j["reason"], j["success"]) for n, j in jobs.items()} == {
        "act": ("completed", "ignored", 1), "inactive": ("completed", "skipped", None),
        "show_inputs": ("completed", "ok", 1),
    }  # fmt: skip


def test_an_error_of_a_plain_workflow_is_tried_again(harness: WorkflowHarness) -> None:
    """By the handler's policy: three attempts, and then the request fails."""
    row = harness.run("plain", {"act": {"error": "no"}})
    assert row["status"] == "failed"
    job = harness.requests.jobs(row["id"])["act"]
    assert [a["reason"] for a in harness.rows.attempts(job["id"])] == ["error"] * 3


def test_a_sequence_runs_to_its_end(harness: WorkflowHarness) -> None:
    """A skipped job of a workflow with `cooler` is passed over."""
    row = harness.run("sequence")
    assert row["status"] == "completed"
    assert [j["reason"] for j in harness.requests.jobs(row["id"]).values()].count("skipped") == 1
    assert harness.requests.job_statuses(row["id"]) == dict.fromkeys(
        ("act", "inactive", "show_inputs"), "completed"
    )


def test_an_ignored_error_ends_a_sequence_quietly(harness: WorkflowHarness) -> None:
    """There the run ends `completed`, and no further step begins."""
    row = harness.run("sequence", {"act": {"ignored": None}})
    assert (row["status"], row["error"]) == ("completed", None)
    assert harness.requests.job_statuses(row["id"]) == {"act": "completed"}


def test_the_first_error_ends_a_sequence(harness: WorkflowHarness) -> None:
    """The handler's own table says three attempts, so it has them; what it does not say is one."""
    row = harness.run("sequence", {"act": {"error": "no"}})
    assert (row["status"], row["error"]) == ("failed", '"act" failed: ValueError: no')
    assert list(harness.requests.job_statuses(row["id"])) == ["act"]
