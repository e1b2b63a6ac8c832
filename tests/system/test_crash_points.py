"""Processes killed at the worst points, such as between COMMIT and acknowledgement: claims are settled."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows, assert_settled

CONFIG = f"""
[dispatcher]
lease = "60s"
[defaults]
path = ["{ROOT}"]
[handlers.record]
call = "tests.support.handlers:record"
workers = 2
max_attempts = 1
[handlers.waits]
call = "tests.support.handlers:until_stopping"
max_attempts = 1
"""


class HaltHarness:
    """A daemon in which the first process to reach `point` kills itself, once."""

    def __init__(self, folder: Path, url: str, point: str = "", when: str = "") -> None:
        self.folder = folder
        self.rows = Rows(url)
        self.mark = folder / "halted"
        self.runs = folder / "runs"
        self.runs.touch()
        entry = ("tests.support.halting", point, when, str(self.mark)) if point else ("workerd",)
        self.daemon = Daemon(folder / "node", url, CONFIG, entry=entry)

    def enqueue(self, count: int, wait: float = 0.0) -> list[bytes]:
        return self.rows.insert_many("record", [{"path": str(self.runs), "wait": wait}] * count)

    def was_killed(self) -> bool:
        return self.mark.exists()

    def wait_until_ended(self, jobs: list[bytes]) -> None:
        eventually(lambda: self.rows.ended(*jobs), state=self.daemon.tail)

    def run_counts(self) -> Counter[str]:
        """How often each job ran, counted from the handler's own file."""
        return Counter(line.split()[0] for line in self.runs.read_text().splitlines())

    def reasons(self, jobs: list[bytes]) -> Counter[str]:
        return Counter(row["reason"] for row in self.rows.of(jobs))

    def end(self) -> None:
        assert self.daemon.stop() == 0
        assert_settled(self.rows)
        assert self.rows.sql("SELECT * FROM workerd_nodes") == []


MakeHarness = Callable[[str, str], HaltHarness]


@pytest.fixture
def make_harness(tmp_path: Path, store_url: str, store: Any) -> Any:
    harnesses: list[HaltHarness] = []

    def make_halting(point: str, when: str) -> HaltHarness:
        harnesses.append(HaltHarness(tmp_path, store_url, point, when))
        return harnesses[-1]

    yield make_halting
    for harness in harnesses:
        harness.daemon.end()


def test_dispatcher_killed_between_commit_and_hand_over(make_harness: MakeHarness) -> None:
    """Claims that no pool received are released: each job runs once, as its first attempt."""
    harness = make_harness("workerd.dispatcher.claimer:Claimer._hand_over", "before")
    jobs = harness.enqueue(30)
    harness.daemon.start()
    harness.wait_until_ended(jobs)
    eventually(harness.was_killed)
    assert "was killed by SIGKILL" in harness.daemon.logged()
    assert set(harness.run_counts().values()) == {1}
    assert harness.reasons(jobs) == {"ok": 30}
    harness.end()


@pytest.mark.slow
def test_dispatcher_killed_right_after_hand_over(make_harness: MakeHarness) -> None:
    """Whether the frames were sent or not: no job is lost and no finished job runs again."""
    harness = make_harness("workerd.dispatcher.claimer:Claimer._hand_over", "after")
    jobs = harness.enqueue(30)
    harness.daemon.start()
    harness.wait_until_ended(jobs)
    eventually(harness.was_killed)
    assert set(harness.run_counts().values()) == {1}
    assert harness.reasons(jobs) == {"ok": 30}
    harness.end()


def test_ingester_killed_between_commit_and_acknowledgement(make_harness: MakeHarness) -> None:
    """The resent outcomes change nothing, and no finished job runs again."""
    harness = make_harness("workerd.ingester.pending:PendingOutcomes.acknowledge", "before")
    jobs = harness.enqueue(30)
    harness.daemon.start()
    harness.wait_until_ended(jobs)
    eventually(harness.was_killed)
    assert set(harness.run_counts().values()) == {1}
    assert harness.reasons(jobs) == {"ok": 30}
    harness.end()


@pytest.mark.slow
def test_ingester_killed_before_its_commit(make_harness: MakeHarness) -> None:
    """The pool resends the outcomes that were not committed."""
    harness = make_harness("workerd.ingester.writer:Writer._close", "before")
    jobs = harness.enqueue(30)
    harness.daemon.start()
    harness.wait_until_ended(jobs)
    eventually(harness.was_killed)
    assert set(harness.run_counts().values()) == {1}
    assert harness.reasons(jobs) == {"ok": 30}
    harness.end()


@pytest.mark.slow
def test_ingester_killed_with_a_pending_barrier(make_harness: MakeHarness) -> None:
    """The dispatcher requests the barrier again, and the settlement that waits for it finishes."""
    harness = make_harness("workerd.ingester.ingester:Ingester._on_barrier", "before")
    running = harness.rows.insert("waits", {"path": str(harness.folder / "stopping")})
    harness.daemon.start()
    eventually(harness.was_killed)
    eventually(
        lambda: harness.daemon.status()["roles"]["dispatcher"]["settlements"], state=harness.daemon.tail
    )
    assert harness.rows.last(running)["attempt"] == 1
    jobs = harness.enqueue(10)
    harness.wait_until_ended(jobs)
    assert set(harness.run_counts().values()) == {1}
    harness.end()


@pytest.mark.slow
def test_dispatcher_killed_during_a_settlement(make_harness: MakeHarness) -> None:
    """The restarted dispatcher starts the settlement over and closes the same claims."""
    harness = make_harness("workerd.dispatcher.settlement:Settlement.settle", "before")
    jobs = harness.enqueue(30)
    harness.daemon.start()
    harness.wait_until_ended(jobs)
    eventually(harness.was_killed)
    assert set(harness.run_counts().values()) == {1}
    harness.end()


@pytest.mark.slow
def test_pool_killed_with_running_waiting_and_unacknowledged_jobs(
    tmp_path: Path, store_url: str, store: Any
) -> None:
    """Running jobs get a next attempt, finished ones are recorded, waiting ones are not lost."""
    harness = HaltHarness(tmp_path, store_url)
    daemon = harness.daemon
    with daemon:
        warm = harness.enqueue(200)  # teaches the pool its run time, so that it prefetches
        harness.wait_until_ended(warm)
        before = len(harness.runs.read_text().splitlines())
        daemon.kill("ingester", signal.SIGSTOP)  # no acknowledgement from now on
        jobs = harness.enqueue(300) + harness.enqueue(2, wait=30.0)
        eventually(lambda: pool_status(daemon)["unacknowledged"] >= 50, state=daemon.tail)
        eventually(lambda: len(harness.runs.read_text().splitlines()) >= before + 300, state=daemon.tail)
        daemon.kill("pool:record")
        harness.rows.sql(
            "UPDATE workerd_jobs SET vars = %s WHERE handler = 'record' AND status <> 'completed'",
            f'{{"path": "{harness.runs}"}}',
        )
        daemon.kill("ingester", signal.SIGCONT)
        harness.wait_until_ended(jobs)
        ran = harness.run_counts()
        attempts = Counter(row["id"] for row in harness.rows.of(jobs))
        assert [job for job in jobs if ran[uuid_text(job)] > attempts[job]] == []
        reasons = harness.reasons(jobs)
        assert reasons.keys() <= {"ok", "lost"}
        assert reasons["ok"] == len(jobs)
        assert daemon.stop() == 0
    assert_settled(harness.rows)


def pool_status(daemon: Daemon) -> dict[str, Any]:
    return dict(daemon.status()["pools"]["record"])


def uuid_text(value: bytes) -> str:
    text = value.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
