"""Workflows of every shape in a running daemon: inputs, fan-out and fan-in, and how requests end."""

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
    """A daemon shared by the module, and its store."""

    def __init__(self, folder: Path, url: str) -> None:
        store = open_store(StoreConfig(url=url))
        store.migrate()
        store.close()
        self.rows = Rows(url)
        self.requests = RequestRows(self.rows)
        self.daemon = Daemon(folder / "node", url, CONFIG)

    def run(self, workflow: str, params: object = None) -> dict[str, Any]:
        """Submit a request and wait until it has ended; return its row."""
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


# -- inputs and results of jobs ----------------------------------------------------------------


def test_a_graph_runs_in_the_order_of_its_needs(harness: WorkflowHarness) -> None:
    """A job sees its vars, the request's params and extras, and the payloads of the jobs it needs."""
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
    inputs = harness.requests.payload(row["id"], "last")
    assert inputs.pop("request_id").replace("-", "") == row["id"].hex()
    assert inputs == {
        "vars": {"role": "last", "n": 3},
        "params": params,
        "extras": {"found": 1, "by": "first", "left": [1]},
        "needs": {"left": "passed on", "right": "cmF3"},  # bytes are base64 in JSON
    }


def test_extras_of_jobs_of_one_step_are_merged(harness: WorkflowHarness) -> None:
    """Key by key, whichever job ends last."""
    for n in range(4):
        params = {"left": {"extras": {"left": n}}, "right": {"extras": {"right": n}}}
        row = harness.run("graph", params)
        assert harness.requests.payload(row["id"], "last")["extras"] == {"left": n, "right": n}


def test_a_dependent_job_waits_for_spawned_jobs(harness: WorkflowHarness) -> None:
    """Including jobs spawned by spawned jobs; it sees the payloads of all."""
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
    stored = harness.requests.jobs(row["id"])
    assert stored["in"]["claimed_at"] >= max(j["ingested_at"] for n, j in stored.items() if n != "in")


def test_a_spawned_job_that_fails_fails_the_request(harness: WorkflowHarness) -> None:
    """Jobs that need its parent do not start."""
    jobs = [{"handler": "act", "vars": {"action": {"fail": "no"}}, "name": "x"}]
    row = harness.run("fan", {"out": {"spawn": {"jobs": jobs}}})
    assert (row["status"], row["error"]) == ("failed", '"out/x" failed: no')
    assert harness.requests.job_statuses(row["id"]) == {"out": "completed", "out/x": "failure"}


def test_the_worker_refuses_an_invalid_spawn(harness: WorkflowHarness) -> None:
    """Outside a request, or without a handler: the attempt fails with the reason."""
    alone = harness.rows.insert("act", {"action": {"spawn": {"jobs": [{"handler": "act"}]}}})
    eventually(lambda: harness.rows.ended(alone), within=20)
    row = harness.rows.last(alone)
    assert (row["status"], row["reason"]) == ("failure", "failure")
    assert "belongs to none" in row["error"]
    row = harness.run("fan", {"out": {"spawn": {"jobs": [{"name": "x"}]}}})
    assert row["status"] == "failed"
    assert "expected tables" in harness.requests.jobs(row["id"])["out"]["error"]


# -- ignored errors, skips and retries ---------------------------------------------------------


def test_the_next_step_starts_after_ignored_and_skipped_jobs(harness: WorkflowHarness) -> None:
    """An ignored error counts as success, a skip as neither success nor failure."""
    row = harness.run("plain", {"act": {"ignored": None}})
    assert (row["status"], row["error"]) == ("completed", None)
    jobs = harness.requests.jobs(row["id"])
    assert {n: (j["status"], j["reason"], j["success"]) for n, j in jobs.items()} == {
        "act": ("completed", "ignored", 1), "inactive": ("completed", "skipped", None),
        "show_inputs": ("completed", "ok", 1),
    }  # fmt: skip


def test_an_error_in_a_plain_workflow_is_retried(harness: WorkflowHarness) -> None:
    """By the handler's policy: after three attempts the request fails."""
    row = harness.run("plain", {"act": {"error": "no"}})
    assert row["status"] == "failed"
    job = harness.requests.jobs(row["id"])["act"]
    assert [a["reason"] for a in harness.rows.attempts(job["id"])] == ["error"] * 3


def test_a_sequence_runs_past_a_skipped_job(harness: WorkflowHarness) -> None:
    """In a workflow with `cooler`, a skipped job does not end the run."""
    row = harness.run("sequence")
    assert row["status"] == "completed"
    assert [j["reason"] for j in harness.requests.jobs(row["id"]).values()].count("skipped") == 1
    assert harness.requests.job_statuses(row["id"]) == dict.fromkeys(
        ("act", "inactive", "show_inputs"), "completed"
    )


def test_an_ignored_error_completes_a_sequence_early(harness: WorkflowHarness) -> None:
    """The request ends `completed` and no further step starts."""
    row = harness.run("sequence", {"act": {"ignored": None}})
    assert (row["status"], row["error"]) == ("completed", None)
    assert harness.requests.job_statuses(row["id"]) == {"act": "completed"}


def test_the_first_error_ends_a_sequence(harness: WorkflowHarness) -> None:
    """`max_attempts` of the handler applies; without it, jobs of a sequence have one attempt."""
    row = harness.run("sequence", {"act": {"error": "no"}})
    assert (row["status"], row["error"]) == ("failed", '"act" failed: ValueError: no')
    assert list(harness.requests.job_statuses(row["id"])) == ["act"]
