"""Ill-behaved handlers: each has its outcome, and the next job finds a clean worker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pool.harness import PoolHarness, make_pool
from workerd.job import Status
from workerd.outcome import Reason

HANDLERS = (
    "prints", "prints_text", "closes_fds", "forks", "threads", "chdir", "signals", "raises", "unencodable",
    "noop", "echo", "pid",
)  # fmt: skip


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[PoolHarness]:
    with PoolHarness(tmp_path, make_pool(*HANDLERS)) as harness:
        harness.up()
        yield harness


def output(harness: PoolHarness) -> list[dict[str, Any]]:
    return [event for event in harness.log_events() if event["event"] == "output"]


def test_a_flood_of_output_is_truncated_and_counted(harness: PoolHarness) -> None:
    """At most 64 KiB are logged; one event counts the rest."""
    claim = harness.claim("prints", size=100_000_000)
    harness.give(claim)
    assert harness.outcome(claim).reason is Reason.OK
    logged = sum(len(event["line"]) for event in output(harness))
    assert 32 * 1024 < logged <= 64 * 1024
    (cut,) = [event for event in harness.log_events() if event["event"] == "output.truncated"]
    assert logged + cut["dropped_bytes"] >= 99_000_000
    assert (cut["handler"], cut["attempt"]) == ("prints", 1)


def test_output_is_logged_with_job_and_attempt(harness: PoolHarness) -> None:
    """Line by line, an unfinished line too."""
    for text in ("one\ntwo\n", "three"):
        harness.run("prints_text", text=text)
    events = harness.until(lambda: len(output(harness)) == 3 and output(harness))
    assert [event["line"] for event in events] == ["one", "two", "three"]
    assert events[0]["job"] == events[1]["job"] != events[2]["job"]


def test_closing_low_descriptors_harms_nothing(harness: PoolHarness) -> None:
    """Neither the attempt nor the output of the next one."""
    assert harness.run("closes_fds").reason is Reason.OK
    assert harness.run("prints_text", text="still here\n").reason is Reason.OK
    harness.until(lambda: [e for e in output(harness) if e["line"] == "still here"])


def test_a_forked_copy_of_the_worker_sends_no_result(harness: PoolHarness) -> None:
    """One outcome for one attempt."""
    outcome = harness.run("forks")
    assert outcome.reason is Reason.OK
    assert outcome.payload != b"-1"
    assert harness.run("noop").reason is Reason.OK
    assert len(harness.ingester.outcomes) == 2


def test_a_leaked_thread_does_not_delay_the_pools_exit(harness: PoolHarness) -> None:
    """Nor the worker's next job."""
    assert harness.run("threads").reason is Reason.OK
    assert harness.run("noop").reason is Reason.OK
    harness.drain(5.0)
    harness.until(lambda: harness.status is not None)
    assert harness.status == 0


def test_working_directory_and_signals_are_reset_between_jobs(harness: PoolHarness) -> None:
    """The next job does not see what the last one changed."""
    assert harness.run("chdir").payload == harness.run("chdir").payload
    assert [harness.run("signals").payload for _ in range(2)] == [b"true"] * 2


@pytest.mark.parametrize(
    ("kind", "status", "reason"),
    [
        ("exit", Status.FAILURE, Reason.ERROR),
        ("interrupt", Status.FAILURE, Reason.ERROR),
        ("value", Status.RETRY, Reason.ERROR),
        ("str", Status.RETRY, Reason.ERROR),
        ("failure", Status.FAILURE, Reason.FAILURE),
        ("retry", Status.RETRY, Reason.RETRY),
        ("snooze", Status.RETRY, Reason.RETRY),
    ],
)
def test_the_exception_decides_the_outcome(
    harness: PoolHarness, kind: str, status: Status, reason: Reason
) -> None:
    """No exception ends the worker."""
    before = harness.run("pid").payload
    outcome = harness.run("raises", kind=kind)
    assert (outcome.status, outcome.reason) == (status, reason)
    assert outcome.error
    assert harness.run("pid").payload == before


def test_a_value_that_cannot_be_encoded_is_a_failed_attempt(harness: PoolHarness) -> None:
    """The error names the type."""
    outcome = harness.run("unencodable")
    assert outcome.success is False
    assert "object" in (outcome.error or "")


def test_a_payload_over_the_ingesters_limit_fails_only_its_job(harness: PoolHarness) -> None:
    """The next job runs."""
    outcome = harness.run("echo", value="x" * (harness.ingester.max_payload + 1))
    assert (outcome.success, outcome.payload) == (False, None)
    assert harness.run("noop").reason is Reason.OK


def test_terminal_signals_end_neither_pool_nor_worker(harness: PoolHarness) -> None:
    """Only the supervisor ends them."""
    import signal

    assert harness.child is not None
    worker = harness.run("pid").pid
    assert worker is not None
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(harness.child.pid, signum)
        os.kill(worker, signum)
    assert harness.run("pid").pid == worker


def test_process_titles_name_pool_and_worker(harness: PoolHarness) -> None:
    """As `ps` shows them."""
    assert harness.child is not None
    worker = harness.run("pid").pid
    assert Path(f"/proc/{harness.child.pid}/cmdline").read_text().startswith("workerd: pool test")
    assert Path(f"/proc/{worker}/cmdline").read_text().startswith("workerd: worker test/0")
