"""`workerd demo`: everything at work on real input, and nothing left of it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.daemon import ROOT
from tests.support.eventually import eventually
from workerd.demo.handlers import BROKEN, standard_library, tasks
from workerd.demo.report import DemoOutcome, Results


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The demo, without a terminal, with a folder for temporary files of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "workerd", "demo"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "WORKERD_NODE__NAME": "other"},
        start_new_session=True,
    )
    with process:
        yield process
        if process.poll() is None:
            process.kill()


def descendants(demo: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(demo.pid).children(recursive=True)


def at_work(demo: subprocess.Popen[str]) -> list[psutil.Process]:
    """All that the demo started, once roles, pools and workers are there."""
    return eventually(lambda: found if len(found := descendants(demo)) > 20 else [])


def ended_all(processes: list[psutil.Process]) -> bool:
    """Whether none of them lives; a zombie has ended, whoever buries it."""
    for process in psutil.wait_procs(processes, timeout=0)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                return False
    return True


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_demo_parses_the_standard_library_and_proves_that_every_job_ended(
    demo: subprocess.Popen[str], tmp_path: Path
) -> None:
    """A row for each way to end, counts that add up, exit status 0, nothing left."""
    out, err = demo.communicate(timeout=280)
    assert demo.returncode == 0, err
    expected = len(standard_library()) + len(BROKEN)
    rows = dict(re.findall(r"^(\w+ +\w+, \w+) +([\d,]+)", out, re.MULTILINE))
    counts = {tuple(re.split(r"[ ,]+", name)): int(count.replace(",", "")) for name, count in rows.items()}
    parsed = {key: count for key, count in counts.items() if key[0] == "parse_source"}
    assert set(parsed) == {("parse_source", "completed", "ok"), ("parse_source", "failure", "error")}
    assert sum(parsed.values()) == expected
    assert parsed["parse_source", "failure", "error"] >= len(BROKEN)
    assert {key: count for key, count in counts.items() if key[0] != "parse_source"} == {
        ("comes_round", "completed", "ok"): 4,
        ("breaks", "failure", "error"): 3,
        ("gives_up", "failure", "failure"): 3,
        ("misfits", "failure", "failure"): 3,
        ("shrugs", "completed", "ignored"): 3,
        ("rests", "completed", "skipped"): 2,
        ("sleeps", "failure", "deadline"): 2,
        ("computes", "failure", "deadline"): 2,
        ("crashes", "failure", "crashed"): 2,
        ("exits", "failure", "crashed"): 2,
        ("waits", "cancelled", "cancelled"): 2,
    }
    assert "Its slowest job: " in out
    assert "exactly one end" in out
    assert "\x1b" not in out + err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminate"])
def test_a_demo_that_is_interrupted_leaves_nothing(
    demo: subprocess.Popen[str], tmp_path: Path, signum: signal.Signals
) -> None:
    """No process, no folder, no traceback."""
    started = at_work(demo)
    demo.send_signal(signum)
    out, err = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert "Traceback" not in out + err
    assert list(tmp_path.iterdir()) == []
    assert ended_all(started)


def test_a_demo_that_is_killed_takes_its_daemon_with_it(demo: subprocess.Popen[str]) -> None:
    """The kernel ends the daemon; the folder is all that stays."""
    started = at_work(demo)
    demo.kill()
    eventually(lambda: ended_all(started))


def test_the_broken_files_are_broken_and_the_library_is_there(tmp_path: Path) -> None:
    """No parser accepts one of them; thousands of others are real."""
    for content in BROKEN.values():
        with pytest.raises((SyntaxError, ValueError)):
            compile(content, "broken", "exec")
    assert len(standard_library()) > 500
    assert len({task.handler for task in tasks(tmp_path)}) == 12


def ended(number: int) -> DemoOutcome:
    return DemoOutcome(bytes([number]) * 16, "h", "completed", "ok", "", "{}", "1", 1, (number,))


def test_a_job_without_an_end_or_with_two_is_found() -> None:
    """Only one end for each, and nothing else, is complete."""
    one, two = ended(1), ended(2)
    both = {one.id, two.id}
    assert Results([one, two], both, 0).complete
    assert not Results([one], both, 0).complete
    assert not Results([one, two, two], both, 0).complete
    assert not Results([one, two], {one.id}, 0).complete
    assert not Results([one, two], both, 1).complete
