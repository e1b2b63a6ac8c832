"""Requests in a running daemon: inserted by SQL, run, failed, cancelled and retried."""

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
    """A daemon shared by the module, its store, and three HTTP services."""

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

    def wait_until_ended(self, request_id: bytes) -> dict[str, Any]:
        """Wait until the request has ended; return its row."""
        eventually(lambda: self.requests.ended(request_id), within=20, state=self.daemon.tail)
        return self.requests.row(request_id)

    def wait_for_statuses(self, request_id: bytes, **states: str) -> None:
        """Wait until its jobs have exactly these statuses."""
        eventually(lambda: self.requests.job_statuses(request_id) == states, within=20,
                   state=lambda: self.requests.job_statuses(request_id))  # fmt: skip

    def delete_user(self, number: int) -> tuple[dict[str, Any], list[list[str]]]:
        """Run a request to its end; return its row and the calls to each service."""
        before = [len(service.calls) for service in self.services]
        request_id = self.requests.insert("delete_user", {"id": number})
        row = self.wait_until_ended(request_id)
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


# -- the workflow `delete_user` ----------------------------------------------------------------


def test_all_services_succeed(harness: RequestHarness) -> None:
    """The second step gets the address from the first, and the request completes."""
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


def test_one_service_fails_permanently(harness: RequestHarness) -> None:
    """The request fails with that job's error; the other jobs of the step run to their end."""
    harness.services[1].always = 500
    try:
        row, calls = harness.delete_user(8)
    finally:
        harness.services[1].always = None
    assert row["status"] == "failed"
    assert row["error"] == '"service2_delete_user" failed: SERVICE2 answered 500'
    assert harness.requests.job_statuses(row["id"]) == {
        "service1_get_user": "completed", "service1_delete_user": "completed",
        "service2_delete_user": "failure", "service3_delete_user": "completed",
    }  # fmt: skip
    assert calls[2] == ["DELETE /users/ada@example.org"]


def test_a_service_is_busy_twice(harness: RequestHarness) -> None:
    """Two 503 answers make two rows `retry` with their error; the third attempt completes the step."""
    harness.services[0].answers.extend([503, 503])
    row, calls = harness.delete_user(9)
    assert row["status"] == "completed"
    assert calls[0] == ["GET /users/9"] * 3 + ["DELETE /users/9"]
    attempts = harness.rows.attempts(harness.requests.jobs(row["id"])["service1_get_user"]["id"])
    assert [(a["status"], a["reason"], a["error"]) for a in attempts] == [
        ("retry", "retry", "SERVICE1 is busy"), ("retry", "retry", "SERVICE1 is busy"),
        ("completed", "ok", None),
    ]  # fmt: skip


# -- failures, cancels, retries ----------------------------------------------------------------


def paused(harness: RequestHarness, name: str) -> Any:
    """Pause the handler within the block."""

    class Pause:
        def __enter__(self) -> None:
            harness.rows.sql(
                "UPDATE workerd_handlers SET paused_at = '2026-01-01 00:00:00' WHERE name = %s", name
            )

        def __exit__(self, *exc: object) -> None:
            harness.rows.sql("UPDATE workerd_handlers SET paused_at = NULL WHERE name = %s", name)

    return Pause()


def test_a_failure_cancels_waiting_jobs_and_lets_running_ones_finish(
    harness: RequestHarness, tmp_path: Path
) -> None:
    """The request stays `inprogress` until the last running job has ended; no further step starts."""
    with paused(harness, "c"):
        request_id = harness.requests.insert("three", {"b": {"fail": "no"}, "d": {"wait": f"{tmp_path}/d"}})
        harness.wait_for_statuses(request_id, a="completed", b="failure", c="cancelled", d="inprogress")
        assert harness.requests.status(request_id) == "inprogress"
        (tmp_path / "d").touch()
        row = harness.wait_until_ended(request_id)
    assert (row["status"], row["error"]) == ("failed", '"b" failed: no')
    states = harness.requests.job_statuses(request_id)
    assert states == {"a": "completed", "b": "failure", "c": "cancelled", "d": "completed"}


def test_a_manual_retry_reopens_the_request(harness: RequestHarness, tmp_path: Path) -> None:
    """Jobs cancelled because of the failure run too, and the request completes."""
    with paused(harness, "c"):
        request_id = harness.requests.insert("three", {"b": {"fail_unless_exists": f"{tmp_path}/b"}})
        assert harness.wait_until_ended(request_id)["status"] == "failed"
    (tmp_path / "b").touch()
    failed = harness.requests.jobs(request_id)["b"]
    harness.daemon.cli("job", "retry", uuid_text(failed["id"]))
    eventually(
        lambda: harness.requests.status(request_id) == "completed", within=20, state=harness.daemon.tail
    )
    assert harness.requests.job_statuses(request_id) == dict.fromkeys("abcde", "completed")
    row = harness.requests.row(request_id)
    assert (row["error"], row["completed_at"] is not None) == (None, True)
    assert [(a["status"], a["reason"]) for a in harness.rows.attempts(failed["id"])] == [
        ("retry", "failure"), ("completed", "ok"),
    ]  # fmt: skip


def test_a_request_is_cancelled(harness: RequestHarness, tmp_path: Path) -> None:
    """Waiting jobs end at once, running ones are cancelled, no further step starts; a second cancel fails."""
    with paused(harness, "c"):
        request_id = harness.requests.insert("three", {"b": {"wait": "/nowhere"}, "d": {"wait": "/nowhere"}})
        harness.wait_for_statuses(request_id, a="completed", b="inprogress", c="new", d="inprogress")
        harness.daemon.cli("request", "cancel", uuid_text(request_id))
        row = harness.wait_until_ended(request_id)
    assert row["status"] == "cancelled"
    assert harness.requests.job_statuses(request_id) == {
        "a": "completed",
        **dict.fromkeys("bcd", "cancelled"),
    }
    again = harness.daemon.cli("request", "cancel", uuid_text(request_id), check=False)
    assert again.returncode == 1
    assert "already ended" in again.stderr


def test_a_job_of_a_request_is_cancelled(harness: RequestHarness, tmp_path: Path) -> None:
    """Its request ends as `cancelled` once the other jobs of the step have ended."""
    request_id = harness.requests.insert("three", {"b": {"wait": "/nowhere"}, "d": {"wait": f"{tmp_path}/d"}})
    harness.wait_for_statuses(request_id, a="completed", b="inprogress", c="completed", d="inprogress")
    harness.daemon.cli("job", "cancel", uuid_text(harness.requests.jobs(request_id)["b"]["id"]))
    harness.wait_for_statuses(request_id, a="completed", b="cancelled", c="completed", d="inprogress")
    assert harness.requests.status(request_id) == "inprogress"
    (tmp_path / "d").touch()
    row = harness.wait_until_ended(request_id)
    assert (row["status"], row["error"]) == ("cancelled", 'cancelled with its job "b"')
    assert harness.requests.job_statuses(request_id)["d"] == "completed"


def test_params_that_are_not_an_object_fail_the_request(harness: RequestHarness) -> None:
    """The row names the error; other requests are not delayed."""
    request_id = harness.requests.insert("three")
    wrong = harness.requests.insert("three", [1, 2])
    row = harness.wait_until_ended(wrong)
    assert row["status"] == "failed"
    assert "object" in row["error"]
    assert harness.wait_until_ended(request_id)["status"] == "completed"


# -- the command line --------------------------------------------------------------------------


def test_submit_wait_show_and_list(harness: RequestHarness, tmp_path: Path) -> None:
    """`submit` prints only the id, `--wait` exits with the outcome, `list` shows the request."""
    done = harness.daemon.cli("request", "submit", "three", 'b={"return": 5}')
    request_id = done.stdout.strip()
    assert len(request_id) == 36
    succeeded = harness.daemon.cli("request", "submit", "three", "--wait", "20s")
    assert "completed" in succeeded.stdout
    failed = harness.daemon.cli(
        "request", "submit", "three", 'b={"fail": "no"}', "--wait", "20s", check=False
    )
    assert failed.returncode == 1
    assert "failed" in failed.stdout
    timed_out = harness.daemon.cli(
        "request", "submit", "three", f'a={{"wait": "{tmp_path}/gate"}}', "--wait", "0.1s", check=False
    )
    assert timed_out.returncode == 1
    assert "request show" in timed_out.stderr
    (tmp_path / "gate").touch()
    unknown = harness.daemon.cli("request", "submit", "tree", check=False)
    assert unknown.returncode == 2
    assert "three" in unknown.stderr
    listed = harness.daemon.cli("request", "list", "--workflow", "three", "--limit", "50").stdout
    assert request_id in listed


def test_show_draws_the_graph(harness: RequestHarness) -> None:
    """Every job, step by step, with status, time and error in 80 columns."""
    request_id = harness.requests.insert(
        "three", {"b": {"fail": "the third shelf is " + "very " * 40 + "full"}}
    )
    harness.wait_until_ended(request_id)
    lines = harness.daemon.cli("request", "show", uuid_text(request_id)).stdout.splitlines()
    graph = lines[lines.index("step 0: one") :]
    named = [line for line in graph if line.startswith("  ") and line[4] != " "]
    assert [line[4] for line in named] == ["a", "b", "c", "d", "e"]
    failed = next(line for line in named if line.startswith("  ✗ b failure "))
    assert " ms" in failed
    assert graph[graph.index(failed) + 1].startswith("      the third shelf is very very")
    assert "not started" in graph[-1]


def test_show_explains_why_a_request_does_not_start(harness: RequestHarness) -> None:
    """Its workflow is not configured on this node; it can still be cancelled."""
    request_id = uuid_text(harness.requests.insert("unknown"))
    assert (
        "Workflow unknown is not configured here" in harness.daemon.cli("request", "show", request_id).stderr
    )
    harness.daemon.cli("request", "cancel", request_id)
