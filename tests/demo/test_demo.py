"""`workerd demo` as a process: its output and its cleanup."""

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
from workerd.demo.handlers import BROKEN, demo_tasks, standard_library
from workerd.outcome import Reason


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The demo, without a terminal, with its own folder for temporary files."""
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


def running_processes(demo: subprocess.Popen[str]) -> list[psutil.Process]:
    """All processes that the demo started, once roles, pools and workers run."""
    return eventually(lambda: found if len(found := descendants(demo)) > 20 else [])


def have_exited(processes: list[psutil.Process]) -> bool:
    """Whether all have exited; a zombie has."""
    for process in psutil.wait_procs(processes, timeout=0)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                return False
    return True


@pytest.mark.slow
def test_the_demo_parses_the_standard_library_and_proves_that_every_job_ended(
    demo: subprocess.Popen[str], tmp_path: Path
) -> None:
    """A row for each outcome, counts that add up, exit status 0, nothing left behind."""
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
        ("tarries", "cancelled", "expired"): 1,
        ("grows", "failure", "oom"): 1,
        ("rejected", "failure", "refused"): 1,
        ("falls", "completed", "ok"): 1,
        ("outlasts", "completed", "ok"): 1,
    }
    for reason in Reason:
        assert re.search(rf"^{reason} +[1-9]", out, re.MULTILINE), reason
    assert "Its slowest job: " in out
    assert "exactly one end" in out
    assert "\x1b" not in out + err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminate"])
def test_a_demo_that_is_interrupted_leaves_nothing(
    demo: subprocess.Popen[str], tmp_path: Path, signum: signal.Signals
) -> None:
    """No process, no folder, no traceback."""
    started = running_processes(demo)
    demo.send_signal(signum)
    out, err = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert "Traceback" not in out + err
    assert "Interrupted" in err
    assert list(tmp_path.iterdir()) == []
    assert have_exited(started)


def test_a_demo_that_is_killed_ends_its_daemon(demo: subprocess.Popen[str]) -> None:
    """The kernel kills the daemon; only the folder is left."""
    started = running_processes(demo)
    demo.kill()
    eventually(lambda: have_exited(started))


def test_the_broken_files_are_broken_and_the_library_is_there(tmp_path: Path) -> None:
    """The parser rejects each of them."""
    for content in BROKEN.values():
        with pytest.raises((SyntaxError, ValueError)):
            compile(content, "broken", "exec")
    assert len(standard_library()) > 500
    assert len({task.handler for task in demo_tasks(tmp_path)}) == 17
