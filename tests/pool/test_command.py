"""Programs in a pool: deadlines, cancels, crashes, memory, output and progress, as of any handler."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pool.harness import POLICY, PoolHarness, alive
from workerd.config.handler_config import CommandConfig, HandlerConfig, PoolConfig
from workerd.job import Status
from workerd.outcome import Reason
from workerd.runtime.child import CANNOT_LOAD_EXIT_STATUS

SCRIPTS = {
    "quick": "echo out; echo err >&2",
    # Ends at SIGTERM, and with it its child, which is of the same group.
    "obeys": 'sleep 1000 & echo $! >"$0/child"; echo $$ >"$0/program"; touch "$0/began"; wait',
    "cleans_up": "trap 'echo cleaned; exit 0' TERM; touch \"$0/began\"; while :; do sleep 0.02; done",
    "fails_at_term": 'trap "exit 7" TERM; touch "$0/began"; while :; do sleep 0.02; done',
    # Its child is in another session, and both ignore SIGTERM.
    "stubborn": """trap "" TERM; setsid sh -c 'echo $$ >"$0/child"; while :; do sleep 1; done' "$0" &
        echo $$ >"$0/program"; while [ ! -s "$0/child" ]; do sleep 0.01; done; touch "$0/began"
        while :; do sleep 1; done""",
    "crashes": "kill -ABRT $$",
    "hoards": f"exec {sys.executable} -c 'import time; x = b\"x\" * (90 << 20); time.sleep(60)'",
    "reports": """echo '{"progress": 0.5, "note": "half"}' >&3; touch "$0/began"
        while [ ! -e "$0/go" ]; do sleep 0.02; done""",
    "floods": "head -c 100000000 /dev/zero | tr '\\000' x >&2; echo done",
}
TERM_SLACK_S = 15.0
"""How long a busy machine may take for what needs a moment."""


def pool_of(marks: Path, *names: str, policy: Any = None, **keys: Any) -> PoolConfig:
    """A pool of these SCRIPTS; `$0` is the folder of marks."""
    handlers = tuple(
        HandlerConfig(
            name=name,
            call="",
            pool="test",
            policy_own={**POLICY, **(policy or {})},
            command=CommandConfig(
                command=("/bin/sh", "-c", SCRIPTS[name].replace("{", "{{").replace("}", "}}"), str(marks))
            ),
        )
        for name in names
    )
    return PoolConfig(name="test", handlers=handlers, **keys)


@pytest.fixture
def make_harness(tmp_path: Path, marks: Path) -> Iterator[Callable[..., PoolHarness]]:
    made: list[PoolHarness] = []

    def make(*names: str, **keys: Any) -> PoolHarness:
        made.append(PoolHarness(tmp_path / str(len(made)), pool_of(marks, *names, **keys)).__enter__())
        made[-1].up()
        return made[-1]

    yield make
    for harness in made:
        harness.__exit__(None, None, None)


def pid_in(marks: Path, name: str) -> int:
    return int((marks / name).read_text())


def all_gone(harness: PoolHarness, marks: Path) -> None:
    for name in ("program", "child"):
        pid = pid_in(marks, name)
        harness.until(lambda pid=pid: not alive(pid), within=TERM_SLACK_S)


def test_output_is_payload_and_log(make_harness: Callable[..., PoolHarness]) -> None:
    """Standard error is logged with its job, like what a function prints; usage counts the program."""
    harness = make_harness("quick", "floods")
    outcome = harness.run("quick")
    assert (outcome.status, outcome.payload, outcome.payload_type) == (Status.COMPLETED, b"out\n", "bytes")
    assert outcome.usage.cpu_us
    assert outcome.usage.max_rss_kib
    lines = [event for event in harness.log_events() if event.get("line") == "err" or "err" in event.values()]
    assert lines, harness.log_events()
    assert harness.run("floods").payload == b"done\n"
    assert harness.run("quick").payload == b"out\n"


def test_the_soft_deadline_is_sigterm_to_the_group(
    make_harness: Callable[..., PoolHarness], marks: Path
) -> None:
    """Its children get it too; the worker lives on."""
    harness = make_harness("obeys", policy={"deadline": 1.0, "grace": 60.0})
    outcome = harness.run("obeys")
    assert (outcome.status, outcome.reason, outcome.exit_signal) == (Status.RETRY, Reason.DEADLINE, None)
    assert "deadline of 1 s has passed" in (outcome.error or "")
    all_gone(harness, marks)


@pytest.mark.parametrize(
    ("name", "reason", "payload"),
    [("cleans_up", Reason.OK, b"cleaned\n"), ("fails_at_term", Reason.DEADLINE, None)],
)
def test_what_a_program_makes_of_sigterm_counts(
    make_harness: Callable[..., PoolHarness], name: str, reason: Reason, payload: bytes | None
) -> None:
    """Exit status 0 is success even then, as of a function that catches DeadlineExceeded."""
    outcome = make_harness(name, policy={"deadline": 1.5, "grace": 60.0}).run(name)
    assert (outcome.reason, outcome.payload) == (reason, payload)


def test_the_hard_deadline_ends_grandchildren_in_other_sessions(
    make_harness: Callable[..., PoolHarness], marks: Path
) -> None:
    """All of them ignore SIGTERM."""
    harness = make_harness("stubborn", "quick", policy={"deadline": 1.5, "grace": 0.2})
    outcome = harness.run("stubborn")
    assert (outcome.status, outcome.reason) == (Status.RETRY, Reason.DEADLINE)
    assert "Killed 0.2 s after its deadline" in (outcome.error or "")
    all_gone(harness, marks)
    assert harness.run("quick").reason is Reason.OK


def test_a_cancel_is_sigterm_too(make_harness: Callable[..., PoolHarness], marks: Path) -> None:
    """And ends as cancelled."""
    harness = make_harness("obeys", policy={"grace": 60.0})
    claim = harness.claim("obeys")
    harness.give(claim)
    harness.until((marks / "began").exists)
    harness.cancel(claim)
    assert harness.outcome(claim).status is Status.CANCELLED
    all_gone(harness, marks)


def test_a_crash_of_the_program_is_blamed_on_its_job(make_harness: Callable[..., PoolHarness]) -> None:
    """It counts as a crash; the worker goes on with the next job."""
    harness = make_harness("crashes", "quick")
    outcome = harness.run("crashes")
    assert (outcome.status, outcome.reason, outcome.exit_signal) == (
        Status.RETRY, Reason.CRASHED, signal.SIGABRT,
    )  # fmt: skip
    assert outcome.next is not None
    assert (outcome.next.crashes, outcome.next.failures) == (1, 0)
    assert outcome.pid == harness.run("quick").pid


@pytest.mark.parametrize("victim", ["worker", "pool"])
def test_a_program_dies_with_its_worker(
    make_harness: Callable[..., PoolHarness], marks: Path, victim: str
) -> None:
    """Though it is in a group of its own: no run goes on that nobody watches."""
    harness = make_harness("stubborn")
    harness.give(harness.claim("stubborn"))
    harness.until((marks / "began").exists)
    assert harness.child is not None
    program = pid_in(marks, "program")
    worker = int(Path(f"/proc/{program}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(worker if victim == "worker" else harness.child.pid, signal.SIGKILL)
    harness.until(lambda: not alive(program), within=TERM_SLACK_S)
    if victim == "worker":
        all_gone(harness, marks)
    else:
        os.kill(pid_in(marks, "child"), signal.SIGKILL)  # the supervisor's to kill, and there is none here


def test_memory_of_the_program_counts(make_harness: Callable[..., PoolHarness]) -> None:
    """Not only that of its worker."""
    outcome = make_harness("hoards", memory_max=80 << 20).run("hoards")
    assert (outcome.status, outcome.reason) == (Status.RETRY, Reason.OOM)
    assert "81920 KiB" in (outcome.error or "")


def test_progress_of_a_running_program_is_sent(make_harness: Callable[..., PoolHarness], marks: Path) -> None:
    """While it runs."""
    harness = make_harness("reports")
    claim = harness.claim("reports")
    harness.give(claim)
    harness.until(lambda: harness.ingester.progress)
    assert (harness.ingester.progress[0].progress, harness.ingester.progress[0].note) == (0.5, "half")
    (marks / "go").touch()
    assert harness.outcome(claim).reason is Reason.OK


def test_a_missing_program_ends_the_pool_with_that_sentence(tmp_path: Path) -> None:
    """As a handler that cannot be imported does."""
    command = CommandConfig(command=("/nowhere/php", "artisan"))
    handler = HandlerConfig(name="report", call="", pool="test", command=command)
    with PoolHarness(tmp_path, PoolConfig(name="test", handlers=(handler,))) as harness:
        harness.until(lambda: harness.status is not None)
        assert harness.status == CANNOT_LOAD_EXIT_STATUS
        assert "program /nowhere/php not found" in harness.log.read_text()
