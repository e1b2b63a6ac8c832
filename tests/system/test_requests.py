"""Requests of steps with the real daemon: made by a foreign program, run, failed, cancelled and mended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.request_rows import RequestRows, uuid_text
from tests.support.rows import Rows, assert_settled
from tests.support.services import UserService
from workerd.config.model import StoreConfig
from workerd.store.engines import open_store

CONFIG = """
[defaults]
path = ["{root}"]
backoff = {{ first = "10ms", factor = 1.0, max = "10ms", jitter = 0.0 }}

[dispatcher]
poll = "100ms"

[pools.services]
workers = 3
env = {{ SERVICE1 = "{services[0]}", SERVICE2 = "{services[1]}", SERVICE3 = "{services[2]}" }}

[pools.acts]
workers = 4

[workflows.delete_user]
steps = [
  {{ name = "retrieve", jobs = ["service1_get_user"] }},
  {{ name = "delete", jobs = ["service1_delete_user", "service2_delete_user", "service3_delete_user"] }},
]

[workflows.three]
steps = [
  {{ name = "one", jobs = ["a"] }},
  {{ name = "two", jobs = ["b", "c", "d"] }},
  {{ name = "three", jobs = ["e"] }},
]
"""
SERVICE_HANDLERS = (
    "service1_get_user",
    "service1_delete_user",
    "service2_delete_user",
    "service3_delete_user",
)


def handler(name: str, function: str, pool: str) -> str:
    return f'\n[handlers.{name}]\ncall = "tests.support.workflow_handlers:{function}"\npool = "{pool}"\n'


class RequestHarness:
    """A daemon of this module, its store, and the three services."""

    def __init__(self, folder: Path, url: str) -> None:
        store = open_store(StoreConfig(url=url))
        store.migrate()
        store.close()
        self.folder = folder
        self.services = [UserService() for _ in range(3)]
        self.rows = Rows(url)
        self.requests = RequestRows(self.rows)
        config = CONFIG.format(root=ROOT, services=[service.url for service in self.services])
        config += "".join(handler(name, name, "services") for name in SERVICE_HANDLERS)
        config += "".join(handler(name, "act", "acts") for name in "abcde")
        self.daemon = Daemon(folder / "node", url, config)

    def until_over(self, request_id: bytes) -> dict[str, Any]:
        """The request's row when it has ended."""
        eventually(lambda: self.requests.ended(request_id), within=20, state=self.daemon.tail)
        return self.requests.row(request_id)

    def until_states(self, request_id: bytes, **states: str) -> None:
        """Wait until its jobs stand so."""
        eventually(lambda: self.requests.job_statuses(request_id) == states, within=20,
                   state=lambda: self.requests.job_statuses(request_id))  # fmt: skip

    def delete_user(self, number: int) -> tuple[dict[str, Any], list[list[str]]]:
        """The request's row at its end, and the calls that each service got."""
        before = [len(service.calls) for service in self.services]
        request_id = self.requests.insert("delete_user", {"id": number})
        row = self.until_over(request_id)
        return row, [s.calls[n:] for s, n in zip(self.services, before, strict=True)]


@pytest.fixture(scope="module", params=["mysql", "sqlite"])
def harness(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RequestHarness]:
    folder = tmp_path_factory.mktemp("requests")
    if request.param == "sqlite":
        url = f"sqlite:///{folder}/store.db"
    else:
        server = request.getfixturevalue("mysql_server")
        url = server.url(server.new_database())
    harness = RequestHarness(folder, url)
    try:
        with harness.daemon:
            yield harness
            assert harness.daemon.stop() == 0
            assert_settled(harness.rows)
    finally:
        for service in harness.services:
            service.close()


# -- "delete user" -----------------------------------------------------------------------------


def test_all_services_are_well(harness: RequestHarness) -> None:
    """The first step hands the address on, the second runs with it, and the request is completed."""
    row, calls = harness.delete_user(7)
    assert (row["status"], row["error"], row["step"]) == ("completed", None, 1)
    assert '"email":"ada@example.org"' in row["extras"]
    assert calls == [
        ["GET /users/7", "DELETE /users/7"], ["DELETE /users/7"], ["DELETE /users/ada@example.org"],
    ]  # fmt: skip
    jobs = harness.requests.jobs(row["id"])
    assert {name: (job["status"], job["step"], job["attempt"]) for name, job in jobs.items()} == {
        "service1_get_user": ("completed", 0, 1),
        "service1_delete_user": ("completed", 1, 1),
        "service2_delete_user": ("completed", 1, 1),
        "service3_delete_user": ("completed", 1, 1),
    }
    first = jobs.pop("service1_get_user")
    assert first["ingested_at"] <= min(job["created_at"] for job in jobs.values())


def test_one_service_fails_for_good(harness: RequestHarness) -> None:
    """The request fails by that job's error; the jobs beside it have gone on to their end."""
    harness.services[1].for_good = 500
    try:
        row, calls = harness.delete_user(8)
    finally:
        harness.services[1].for_good = None
    assert row["status"] == "failed"
    assert row["error"] == '"service2_delete_user" failed: SERVICE2 answered 500'
    assert harness.requests.job_statuses(row["id"]) == {
        "service1_get_user": "completed", "service1_delete_user": "completed",
        "service2_delete_user": "failure", "service3_delete_user": "completed",
    }  # fmt: skip
    assert calls[2] == ["DELETE /users/ada@example.org"]


def test_a_service_is_busy_twice(harness: RequestHarness) -> None:
    """503 twice and then well: two rows `retry` with their error, the request waits for the third."""
    harness.services[0].answers.extend([503, 503])
    row, calls = harness.delete_user(9)
    assert row["status"] == "completed"
    assert calls[0] == ["GET /users/9"] * 3 + ["DELETE /users/9"]
    attempts = harness.rows.attempts(harness.requests.jobs(row["id"])["service1_get_user"]["id"])
    assert [(a["status"], a["reason"], a["error"]) for a in attempts] == [
        ("retry", "retry", "SERVICE1 is busy"), ("retry", "retry", "SERVICE1 is busy"),
        ("completed", "ok", None),
    ]  # fmt: skip


# -- failing, cancelling, mending --------------------------------------------------------------


def paused(harness: RequestHarness, name: str) -> Any:
    """The handler is claimed by nobody within the block."""

    class Pause:
        def __enter__(self) -> None:
            harness.rows.sql(
                "UPDATE workerd_handlers SET paused_at = '2026-01-01 00:00:00' WHERE name = %s", name
            )

        def __exit__(self, *exc: object) -> None:
            harness.rows.sql("UPDATE workerd_handlers SET paused_at = NULL WHERE name = %s", name)

    return Pause()


def test_a_failure_ends_what_waits_and_lets_go_on_what_runs(harness: RequestHarness, tmp_path: Path) -> None:
    """The request stays `inprogress` until the last running job has ended; no further step begins."""
    with paused(harness, "c"):
        asked = harness.requests.insert("three", {"b": {"fail": "no"}, "d": {"wait": f"{tmp_path}/d"}})
        harness.until_states(asked, a="completed", b="failure", c="cancelled", d="inprogress")
        assert harness.requests.status(asked) == "inprogress"
        (tmp_path / "d").touch()
        row = harness.until_over(asked)
    assert (row["status"], row["error"]) == ("failed", '"b" failed: no')
    states = harness.requests.job_statuses(asked)
    assert states == {"a": "completed", "b": "failure", "c": "cancelled", "d": "completed"}


def test_a_retry_by_hand_reopens_the_request(harness: RequestHarness, tmp_path: Path) -> None:
    """What was cancelled with the failure comes back too, and the request goes on to its end."""
    with paused(harness, "c"):
        asked = harness.requests.insert("three", {"b": {"fail_unless_exists": f"{tmp_path}/b"}})
        assert harness.until_over(asked)["status"] == "failed"
    (tmp_path / "b").touch()
    failed = harness.requests.jobs(asked)["b"]
    harness.daemon.cli("job", "retry", uuid_text(failed["id"]))
    eventually(lambda: harness.requests.status(asked) == "completed", within=20, state=harness.daemon.tail)
    assert harness.requests.job_statuses(asked) == dict.fromkeys("abcde", "completed")
    row = harness.requests.row(asked)
    assert (row["error"], row["completed_at"] is not None) == (None, True)
    assert [(a["status"], a["reason"]) for a in harness.rows.attempts(failed["id"])] == [
        ("retry", "failure"), ("completed", "ok"),
    ]  # fmt: skip


def test_a_request_is_cancelled(harness: RequestHarness, tmp_path: Path) -> None:
    """What waits ends at once, what runs is made to end, nothing further begins; once only."""
    with paused(harness, "c"):
        asked = harness.requests.insert("three", {"b": {"wait": "/nowhere"}, "d": {"wait": "/nowhere"}})
        harness.until_states(asked, a="completed", b="inprogress", c="new", d="inprogress")
        harness.daemon.cli("request", "cancel", uuid_text(asked))
        row = harness.until_over(asked)
    assert row["status"] == "cancelled"
    assert harness.requests.job_statuses(asked) == {"a": "completed", **dict.fromkeys("bcd", "cancelled")}
    again = harness.daemon.cli("request", "cancel", uuid_text(asked), check=False)
    assert again.returncode == 1
    assert "already ended" in again.stderr


def test_a_job_of_a_request_is_cancelled(harness: RequestHarness, tmp_path: Path) -> None:
    """Its request ends as `cancelled` when the jobs beside it have ended."""
    asked = harness.requests.insert("three", {"b": {"wait": "/nowhere"}, "d": {"wait": f"{tmp_path}/d"}})
    harness.until_states(asked, a="completed", b="inprogress", c="completed", d="inprogress")
    harness.daemon.cli("job", "cancel", uuid_text(harness.requests.jobs(asked)["b"]["id"]))
    harness.until_states(asked, a="completed", b="cancelled", c="completed", d="inprogress")
    assert harness.requests.status(asked) == "inprogress"
    (tmp_path / "d").touch()
    row = harness.until_over(asked)
    assert (row["status"], row["error"]) == ("cancelled", 'cancelled with its job "b"')
    assert harness.requests.job_statuses(asked)["d"] == "completed"


def test_params_that_are_no_object_fail_the_request(harness: RequestHarness) -> None:
    """A foreign program's mistake is told in the row, and holds up nobody."""
    asked = harness.requests.insert("three")
    wrong = harness.requests.insert("three", [1, 2])
    row = harness.until_over(wrong)
    assert row["status"] == "failed"
    assert "object" in row["error"]
    assert harness.until_over(asked)["status"] == "completed"


# -- the command line --------------------------------------------------------------------------


def test_submit_wait_show_and_list(harness: RequestHarness, tmp_path: Path) -> None:
    """`submit` prints the id alone, `--wait` says by its exit status how it ended, `list` has it."""
    done = harness.daemon.cli("request", "submit", "three", 'b={"return": 5}')
    asked = done.stdout.strip()
    assert len(asked) == 36
    well = harness.daemon.cli("request", "submit", "three", "--wait", "20s")
    assert "completed" in well.stdout
    bad = harness.daemon.cli("request", "submit", "three", 'b={"fail": "no"}', "--wait", "20s", check=False)
    assert bad.returncode == 1
    assert "failed" in bad.stdout
    late = harness.daemon.cli(
        "request", "submit", "three", f'a={{"wait": "{tmp_path}/gate"}}', "--wait", "0.1s", check=False
    )
    assert late.returncode == 1
    assert "request show" in late.stderr
    (tmp_path / "gate").touch()
    unknown = harness.daemon.cli("request", "submit", "tree", check=False)
    assert unknown.returncode == 2
    assert "three" in unknown.stderr
    listed = harness.daemon.cli("request", "list", "--workflow", "three", "--limit", "50").stdout
    assert asked in listed


def test_show_draws_the_graph(harness: RequestHarness) -> None:
    """Step by step, every job with state, time and error, in 80 columns."""
    asked = harness.requests.insert("three", {"b": {"fail": "the third shelf is " + "very " * 40 + "full"}})
    harness.until_over(asked)
    lines = harness.daemon.cli("request", "show", uuid_text(asked)).stdout.splitlines()
    graph = lines[lines.index("step 0: one") :]
    named = [line for line in graph if line.startswith("  ") and line[4] != " "]
    assert [line[4] for line in named] == ["a", "b", "c", "d", "e"]
    failed = next(line for line in named if line.startswith("  ✗ b failure "))
    assert " ms" in failed
    assert graph[graph.index(failed) + 1].startswith("      the third shelf is very very")
    assert "not started" in graph[-1]


def test_show_says_why_a_request_does_not_begin(harness: RequestHarness) -> None:
    """Nobody on this node knows its workflow; it can still be cancelled."""
    asked = uuid_text(harness.requests.insert("nobodys"))
    assert "Workflow nobodys is not configured here" in harness.daemon.cli("request", "show", asked).stderr
    harness.daemon.cli("request", "cancel", asked)
