"""Save and resume: what was acknowledged survives the worker, the pool and, committed, the node."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows, assert_settled

KILL_INTERVAL_S = 0.05
HANDLERS = ("rows", "hangs_after_saving", "steps", "async_steps", "fails_with_state", "resumable")
CONFIG = f"""
[dispatcher]
lease = "6s"
[shutdown]
drain = "20s"
[defaults]
path = ["{ROOT}"]
max_attempts = 1000
max_crashes = 100000
backoff = {{ first = "10ms", factor = 1.0, max = "10ms" }}
restart = {{ intensity = 100000, period = "1s" }}
[handlers]
""" + "\n".join(
    f'{name} = {{ call = "tests.support.resume_handlers:{name}", pool = "resume" }}' for name in HANDLERS
)


class Resume:
    """A daemon whose handlers save, and the file in which they write what they do."""

    def __init__(self, daemon: Daemon, url: str, folder: Path) -> None:
        self.daemon = daemon
        self.rows = Rows(url)
        self.path = folder / "lines"
        self.path.touch()

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines()

    def kill_worker(self) -> None:
        for worker in self.daemon.status().get("pools", {}).get("resume", {}).get("workers", ()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker["pid"], signal.SIGKILL)

    def ended(self, job: bytes) -> bool:
        return self.rows.ended(job)

    def check_rows(self) -> None:
        """Nothing below the last acknowledged save is done twice, and nothing is left out."""
        acknowledged, done = 0, set()
        for line in self.lines():
            what, number = line.split()
            if what == "saved":
                acknowledged = int(number)
            else:
                assert int(number) >= acknowledged, line
                done.add(int(number))
        assert done == set(range(len(done)))


@pytest.fixture
def resume(start_daemon: Callable[..., Daemon], store_url: str, tmp_path: Path) -> Iterator[Resume]:
    harness = Resume(start_daemon(CONFIG), store_url, tmp_path)
    yield harness
    assert_settled(harness.rows)


def test_no_row_below_an_acknowledged_save_is_done_twice(resume: Resume) -> None:
    """Its worker is killed every 50 ms, at whatever it is doing, as long as it gets anywhere between."""
    job = resume.rows.insert("rows", {"path": str(resume.path), "count": 200, "pause": 0.002})
    seen = 0
    while not resume.ended(job):
        time.sleep(KILL_INTERVAL_S)
        if len(resume.lines()) > seen:
            resume.kill_worker()
            seen = len(resume.lines())
    last = resume.rows.last(job)
    assert (last["status"], last["state"]) == ("completed", None)
    assert last["attempt"] > 1
    resume.check_rows()


@pytest.mark.slow
def test_what_was_acknowledged_survives_the_pool(resume: Resume) -> None:
    """The pool dies with its workers; what it had sent to the ingester is in the row before it is settled."""
    job = resume.rows.insert("rows", {"path": str(resume.path), "count": 300, "pause": 0.005})
    for _ in range(2):
        before = len(resume.lines())
        eventually(lambda n=before: len(resume.lines()) > n + 20)
        resume.daemon.kill("pool:resume")
    eventually(lambda: resume.ended(job), within=40)
    assert resume.rows.last(job)["status"] == "completed"
    assert [row["reason"] for row in resume.rows.attempts(job)] == ["lost", "lost", "ok"]
    resume.check_rows()


@pytest.mark.slow
def test_what_was_committed_survives_the_node(start_daemon: Callable[..., Daemon], resume: Resume) -> None:
    """With `wait`, no save is acknowledged before its commit."""
    job = resume.rows.insert("rows", {"path": str(resume.path), "count": 60, "pause": 0.02, "wait": True})
    eventually(lambda: len(resume.lines()) > 20)
    resume.daemon.kill_tree()
    eventually(lambda: not resume.daemon.tree()[1:])
    resume.daemon.end()
    resume.daemon = start_daemon(CONFIG, "two")
    eventually(lambda: resume.ended(job), within=40)
    assert [row["reason"] for row in resume.rows.attempts(job)] == ["lost", "ok"]
    resume.check_rows()


@pytest.mark.slow
def test_the_hard_deadline_and_a_crash_lose_nothing(resume: Resume) -> None:
    """Steps are not run again, whatever ended the attempt; an async one neither."""
    hanging = resume.rows.insert("hangs_after_saving")
    sync = resume.rows.insert("steps", {"path": str(resume.path)})
    asynchronous = resume.rows.insert("async_steps", {"path": str(resume.path)})
    eventually(lambda: all(map(resume.ended, (hanging, sync, asynchronous))), within=30)
    assert bytes(resume.rows.last(hanging)["payload"]) == b'"place"'
    assert bytes(resume.rows.last(sync)["payload"]) == b'[[1,"receipt"],null]'
    assert bytes(resume.rows.last(asynchronous)["payload"]) == b'"receipt"'
    assert sorted(resume.lines()) == ["charged", "charged", "mailed"]


def test_a_retry_by_hand_keeps_the_state_unless_it_is_fresh(resume: Resume, tmp_path: Path) -> None:
    """By the command line; the job's document shows what was saved."""
    until = tmp_path / "now"
    vars = {"until": str(until)}
    kept, dropped = (resume.rows.insert("fails_with_state", vars, max_attempts=1) for _ in range(2))
    eventually(lambda: resume.ended(kept) and resume.ended(dropped))
    shown = resume.daemon.cli("job", "show", kept.hex(), "--json").stdout
    assert '"saved":{"before":null}' in shown.replace(" ", "").replace("\n", "")
    until.touch()
    resume.daemon.cli("job", "retry", kept.hex())
    resume.daemon.cli("job", "retry", dropped.hex(), "--fresh")
    eventually(lambda: resume.ended(kept) and resume.ended(dropped))
    assert bytes(resume.rows.last(kept)["payload"]) == b'{"before":null}'
    assert bytes(resume.rows.last(dropped)["payload"]) == b"null"


def test_a_resumable_job_goes_on_after_the_reload_that_interrupted_it(resume: Resume, tmp_path: Path) -> None:
    """At once, in the next attempt, with what it saved when it was interrupted."""
    until = tmp_path / "now"
    job = resume.rows.insert("resumable", {"path": str(resume.path), "until": str(until)})
    eventually(lambda: resume.lines() == ["began 1 None"])
    resume.daemon.cli("restart", "resume")
    eventually(lambda: resume.lines() == ["began 1 None", "began 2 interrupted"], state=resume.daemon.tail)
    until.touch()
    eventually(lambda: resume.ended(job))
    first, last = resume.rows.attempts(job)
    assert (first["status"], first["reason"], first["success"]) == ("retry", "interrupted", None)
    assert (last["status"], last["failures"], last["state"]) == ("completed", 0, None)
