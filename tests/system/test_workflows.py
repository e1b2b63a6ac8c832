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
call = "tests.support.flows:act"
pool = "acts"
max_attempts = 3
ignore = ["tests.support.handlers.Ignored"]

[handlers.tell]
call = "tests.support.flows:tell"
pool = "acts"

[handlers.inactive]
call = "tests.support.flows:Inactive"
pool = "acts"

[workflows.graph]
jobs = [
  {{ name = "last", handler = "tell", needs = ["left", "right"], vars = {{ role = "last", n = 3 }} }},
  {{ name = "left", handler = "act", needs = ["first"], vars = {{ role = "left" }} }},
  {{ name = "right", handler = "act", needs = ["first"], vars = {{ role = "right" }} }},
  {{ name = "first", handler = "act", vars = {{ role = "first" }} }},
  {{ name = "aside", handler = "act", vars = {{ role = "aside" }} }},
]

[workflows.fan]
jobs = [
  {{ name = "out", handler = "act", vars = {{ role = "out" }} }},
  {{ name = "in", handler = "tell", needs = ["out"] }},
]

[workflows.plain]
steps = [
  {{ name = "one", jobs = ["act", "inactive"] }},
  {{ name = "two", jobs = ["tell"] }},
]

[workflows.sequence]
cooler = "1h"
steps = [
  {{ name = "one", jobs = ["act"] }},
  {{ name = "two", jobs = ["inactive"] }},
  {{ name = "three", jobs = ["tell"] }},
]
"""


class World:
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
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("workflows")
    if request.param == "sqlite":
        url = f"sqlite:///{folder}/store.db"
    else:
        server = request.getfixturevalue("mysql_server")
        url = server.url(server.new_database())
    world = World(folder, url)
    with world.daemon:
        eventually(lambda: world.rows.sql("SELECT * FROM workerd_requests WHERE completed_at IS NOT NULL"))
        yield world
        assert world.daemon.stop() == 0
        assert_settled(world.rows)


# -- what jobs are given and hand on -----------------------------------------------------------


def test_a_graph_runs_in_the_order_of_its_needs(world: World) -> None:
    """A job sees its vars, the request's params and extras, and the payloads of what it needs."""
    params = {
        "first": {"extras": {"found": 1, "by": "first"}},
        "left": {"extras": {"left": [1]}},
        "right": {"bytes": "raw"},
    }
    row = world.run("graph", params)
    assert row["status"] == "completed"
    jobs = world.requests.jobs(row["id"])
    assert {name: job["step"] for name, job in jobs.items()} == {
        "first": 0, "aside": 0, "left": 1, "right": 1, "last": 2,
    }  # fmt: skip
    for job, needs in {"left": ["first"], "right": ["first"], "last": ["left", "right"]}.items():
        assert all(jobs[job]["claimed_at"] >= jobs[need]["ingested_at"] for need in needs)
    told = world.requests.payload(row["id"], "last")
    assert told.pop("request_id").replace("-", "") == row["id"].hex()
    assert told == {
        "vars": {"role": "last", "n": 3},
        "params": params,
        "extras": {"found": 1, "by": "first", "left": [1]},
        "needs": {"left": "handed on", "right": "cmF3"},  # bytes are base64 in JSON
    }


def test_extras_of_two_jobs_of_one_step_both_win(world: World) -> None:
    """They are merged key by key, whoever ends last."""
    for n in range(4):
        params = {"left": {"extras": {"left": n}}, "right": {"extras": {"right": n}}}
        row = world.run("graph", params)
        assert world.requests.payload(row["id"], "last")["extras"] == {"left": n, "right": n}


def test_what_needs_a_job_waits_for_what_that_spawned(world: World) -> None:
    """Also for what the spawned jobs spawn; it sees the payloads of all."""
    deeper = {"spawn": {"jobs": [{"handler": "act", "vars": {"what": {"return": "deep"}}}]}}
    jobs = [
        {"handler": "act", "vars": {"what": {"return": 1}}},
        {"handler": "act", "vars": {"what": {"return": 2}}, "name": "two"},
        {"handler": "act", "vars": {"what": deeper}, "name": "three"},
    ]
    row = world.run("fan", {"out": {"spawn": {"jobs": jobs, "payload": "out"}}})
    assert row["status"] == "completed"
    assert world.requests.payload(row["id"], "in")["needs"] == {
        "out": "out", "out/0": 1, "out/two": 2, "out/three": None, "out/three/0": "deep",
    }  # fmt: skip
    there = world.requests.jobs(row["id"])
    assert there["in"]["claimed_at"] >= max(j["ingested_at"] for n, j in there.items() if n != "in")


def test_a_spawned_job_that_fails_fails_the_request(world: World) -> None:
    """What needs its parent does not begin."""
    jobs = [{"handler": "act", "vars": {"what": {"fail": "no"}}, "name": "x"}]
    row = world.run("fan", {"out": {"spawn": {"jobs": jobs}}})
    assert (row["status"], row["error"]) == ("failed", '"out/x" failed: no')
    assert world.requests.job_statuses(row["id"]) == {"out": "completed", "out/x": "failure"}


def test_a_spawn_that_cannot_be_is_refused_by_the_worker(world: World) -> None:
    """Outside of a request, and without a handler: the attempt fails, and says why."""
    alone = world.rows.insert("act", {"what": {"spawn": {"jobs": [{"handler": "act"}]}}})
    eventually(lambda: world.rows.ended(alone), within=20)
    ended = world.rows.last(alone)
    assert (ended["status"], ended["reason"]) == ("failure", "failure")
    assert "belongs to none" in ended["error"]
    row = world.run("fan", {"out": {"spawn": {"jobs": [{"name": "x"}]}}})
    assert row["status"] == "failed"
    assert "expected tables" in world.requests.jobs(row["id"])["out"]["error"]


# -- quiet endings -----------------------------------------------------------------------------


def test_ignored_and_skipped_jobs_let_the_steps_go_on(world: World) -> None:
    """An ignored error is a success, a skip is neither; the next step begins after both."""
    row = world.run("plain", {"act": {"ignored": None}})
    assert (row["status"], row["error"]) == ("completed", None)
    jobs = world.requests.jobs(row["id"])
    assert {n: (j["status"], j["reason"], j["success"]) for n, j in jobs.items()} == {
        "act": ("completed", "ignored", 1), "inactive": ("completed", "skipped", None),
        "tell": ("completed", "ok", 1),
    }  # fmt: skip


def test_an_error_of_a_plain_workflow_is_tried_again(world: World) -> None:
    """By the handler's policy: three attempts, and then the request fails."""
    row = world.run("plain", {"act": {"error": "no"}})
    assert row["status"] == "failed"
    job = world.requests.jobs(row["id"])["act"]
    assert [a["reason"] for a in world.rows.attempts(job["id"])] == ["error"] * 3


def test_a_sequence_runs_to_its_end(world: World) -> None:
    """A skipped job of a workflow with `cooler` is passed over."""
    row = world.run("sequence")
    assert row["status"] == "completed"
    assert [j["reason"] for j in world.requests.jobs(row["id"]).values()].count("skipped") == 1
    assert world.requests.job_statuses(row["id"]) == dict.fromkeys(("act", "inactive", "tell"), "completed")


def test_an_ignored_error_ends_a_sequence_quietly(world: World) -> None:
    """There the run ends `completed`, and no further step begins."""
    row = world.run("sequence", {"act": {"ignored": None}})
    assert (row["status"], row["error"]) == ("completed", None)
    assert world.requests.job_statuses(row["id"]) == {"act": "completed"}


def test_the_first_error_ends_a_sequence(world: World) -> None:
    """The handler's own table says three attempts, so it has them; what it does not say is one."""
    row = world.run("sequence", {"act": {"error": "no"}})
    assert (row["status"], row["error"]) == ("failed", '"act" failed: ValueError: no')
    assert list(world.requests.job_statuses(row["id"])) == ["act"]
