"""`job run` in processes of its own, on both engines, without a daemon."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import ROOT
from tests.support.eventually import eventually
from workerd.client import Client
from workerd.config.build import load
from workerd.config.model import StoreConfig
from workerd.runtime.child import is_alive
from workerd.store.engines import open_store
from workerd.workflow import encode, graph_of

HANDLERS = "tests.support.replay_handlers"
NAMES = ("see", "save_and_fail", "wrong", "crash", "much", "grow")


def _config(url: str, folder: Path) -> str:
    handlers = "".join(f'[handlers.{name}]\ncall = "{HANDLERS}:{name}"\npool = "p"\n' for name in NAMES)
    return f"""
[store]
url = "{url}"
[node]
state_dir = "{folder}/state"
runtime_dir = "{folder}/run"
[ingester]
max_payload = "64KiB"
[pools.p]
path = ["{ROOT}"]
env = {{ OF_THE_POOL = "yes" }}
init = "{HANDLERS}:initialise"
memory_max = "150MiB"
{handlers}
[handlers.stay]
call = "{HANDLERS}:stay"
path = ["{ROOT}"]
deadline = "1s"
grace = "300ms"
[handlers.missing]
call = "{HANDLERS}:missing"
path = ["{ROOT}"]
[handlers.program]
command = ["/bin/sh", "-c", "echo $WORKERD_REPLAY; exit {{n}}"]
[workflows.two]
jobs = [{{ name = "first", handler = "see" }}, {{ name = "second", handler = "see", needs = ["first"] }}]
"""


class Replays:
    """Runs `workerd job run`, and sees the store."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.path = folder / "workerd.toml"
        self.path.write_text(_config(url, folder))

    def add(self, handler: str, **vars_: Any) -> str:
        with Client(self.path) as client:
            return str(client.enqueue(handler, vars_).id)

    def start(self, *words: str, **more: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "workerd", "job", "run", *words, "-c", str(self.path)]
        pipe = subprocess.PIPE
        options: dict[str, Any] = {
            "stdin": subprocess.DEVNULL, "stdout": pipe, "stderr": pipe, "text": True, "cwd": ROOT,
        }  # fmt: skip
        return subprocess.Popen(command, **{**options, **more})

    def __call__(self, *words: str, status: int = 0) -> tuple[str, str]:
        """What it prints on standard output and standard error."""
        with self.start(*words) as process:
            out, err = process.communicate(timeout=60)
        assert process.returncode == status, (process.returncode, out, err)
        return out, err

    def sql(self, statement: str) -> None:
        with closing(open_store(StoreConfig(url=self.url))) as store:
            store.run(lambda tx: tx.execute(statement))

    def rows(self) -> list[Any]:
        """Everything that a run could have changed."""
        with closing(open_store(StoreConfig(url=self.url))) as store:
            tables = ("workerd_jobs", "workerd_requests", "workerd_audit", "workerd_schedules")
            return [store.read(lambda tx, name=table: tx.query(f"SELECT * FROM {name}")) for table in tables]


@pytest.fixture
def replays(store_url: str, store: Any, tmp_path: Path) -> Iterator[Replays]:
    return Replays(store_url, tmp_path)


@pytest.mark.slow
def test_runs_end_as_in_a_pool_and_nothing_is_stored(replays: Replays) -> None:
    """Path, environment, `init`; outcome, payload, time and memory; redacted."""
    see = replays.add("see", a=7, password="canary-secret")
    jobs = {name: replays.add(name) for name in NAMES if name != "see"} | {
        "program": replays.add("program", n=3),
        "missing": replays.add("missing"),
    }
    before = replays.rows()
    out, err = replays(see, "--yes")
    assert '"a":7' in out
    assert '"attempt":1' in out
    assert '"replay":true' in out
    assert '"env":"yes"' in out
    assert '"initialised":"yes"' in out
    assert re.search(r"^time +\d.* s$", out, re.M)
    assert re.search(r"^memory +\d.* MiB$", out, re.M)
    assert "canary-secret" not in out + err
    assert "printed [redacted]" in err
    assert "its effects are real" in err
    assert '"a":9' in replays(see, "--yes", "a=9")[0]
    assert '"a":1' in replays(see, "--yes", "a=null")[0]
    assert "expected int" in "".join(replays(see, "--yes", "a=many", status=1))
    out, _ = replays(jobs["wrong"], "--yes", status=1)
    assert "ValueError: no 42" in out
    assert "in wrong" in out
    out, _ = replays(jobs["crash"], "--yes", status=1)
    assert "crashed" in out
    assert "SIGSEGV" in out
    assert "in crash" in out
    assert "more than the limit of 65536" in replays(jobs["much"], "--yes", status=1)[0]
    assert "oom" in replays(jobs["grow"], "--yes", "--limits", status=1)[0]
    assert "exit status 3" in replays(jobs["program"], "--yes", status=1)[0]
    assert "completed" in replays(jobs["program"], "--yes", "n=0")[0]
    assert "has no missing" in replays(jobs["missing"], "--yes", status=1)[1]
    assert replays.rows() == before


def test_revealing_is_recorded(replays: Replays) -> None:
    job = replays.add("see", password="canary-secret")
    out, err = replays(job, "--yes", "--reveal")
    assert "canary-secret" in out
    assert "printed canary-secret" in err
    (act,) = replays.rows()[2]
    assert b"reveal" in act or "reveal" in act


def test_an_earlier_attempt_and_what_was_saved(replays: Replays) -> None:
    """Each attempt has its own number and saved state."""
    job = replays.add("see")
    state = b'{"saved":{"place":1},"steps":{}}'.hex()
    replays.sql(
        "INSERT INTO workerd_jobs (id, attempt, status, handler, vars, run_at, created_at, state)"
        " SELECT id, 2, 'failure', handler, '{\"a\": 5}', run_at, created_at, "
        f"x'{state}' FROM workerd_jobs WHERE attempt = 1"
    )
    newest, first = replays(job, "--yes")[0], replays(job, "--yes", "--attempt", "1")[0]
    assert '"attempt":2' in newest
    assert '"a":5' in newest
    assert '"saved":{"place":1}' in newest
    assert '"attempt":1' in first
    assert '"a":1' in first
    assert '"saved":null' in first
    assert "no attempt 3; its newest is 2" in replays(job, "--yes", "--attempt", "3", status=1)[1]


def test_a_job_of_a_request_gets_its_inputs(replays: Replays) -> None:
    """Also when the request has ended."""
    with Client(replays.path) as client:
        client.submit("two", {"p": 1})
    replays.add("see")
    replays.sql("UPDATE workerd_jobs SET name = 'first', request_id = (SELECT id FROM workerd_requests)")
    replays.sql(
        "INSERT INTO workerd_jobs (id, attempt, status, handler, vars, run_at, created_at, request_id, name)"
        " SELECT x'0123456789abcdef0123456789abcdef', 1, 'failure', handler, '{}', run_at, created_at,"
        " request_id, 'second' FROM workerd_jobs WHERE name = 'first'"
    )
    replays.sql(
        "UPDATE workerd_jobs SET status = 'completed', payload = x'7b2276223a317d', payload_type = 'json'"
        " WHERE name = 'first'"
    )
    graph = encode(graph_of(load(replays.path, {}).workflows["two"]))
    replays.sql(f"UPDATE workerd_requests SET status = 'failed', steps = '{graph.decode()}'")
    before = replays.rows()
    out, _ = replays("0123456789abcdef0123456789abcdef", "--yes")
    assert '"needs":{"first":{"v":1}}' in out
    assert '"params":{"p":1}' in out
    assert replays.rows() == before


@pytest.mark.slow
def test_wrong_words_run_nothing(replays: Replays) -> None:
    job, other = replays.add("see"), replays.add("wrong")
    replays.sql("UPDATE workerd_jobs SET handler = 'elsewhere' WHERE handler = 'wrong'")
    assert "expected --yes" in replays(job, status=2)[1]
    assert "needs a terminal" in replays(job, "--yes", "--pdb", status=2)[1]
    assert "known are" in replays(other, "--yes", status=2)[1]
    assert "not found" in replays("0" * 32, "--yes", status=1)[1]
    replays("what", "--yes", status=2)
    replays(job, "--yes", "--attempt", "0", status=2)
    assert "key=value" in replays(job, "--yes", "word", status=2)[1]


def test_limits_and_ctrl_c_leave_nothing_behind(replays: Replays, tmp_path: Path) -> None:
    """A process that the handler put into another session too."""
    seen = tmp_path / "pids"
    job = replays.add("stay", path=str(seen))
    out, _ = replays(job, "--yes", "--limits", status=1)
    assert "Killed 0.3 s after its deadline of 1 s" in out
    assert "in stay" in out
    assert not any(is_alive(int(pid)) for pid in seen.read_text().split())
    seen.unlink()
    with replays.start(job, "--yes") as process:
        eventually(lambda: seen.exists() and len(seen.read_text().split()) == 2)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert not any(is_alive(int(pid)) for pid in seen.read_text().split())


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, replays: Replays, *words: str) -> None:
        self._fd, theirs = pty.openpty()
        ends = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
        self.process = replays.start(*words, **ends, start_new_session=True)
        os.close(theirs)
        self.text = ""

    def expect(self, text: str) -> None:
        """Read until it prints this."""
        while text not in self.text:
            try:
                data = os.read(self._fd, 4096)
            except OSError:
                data = b""
            assert data, self.text
            self.text += data.decode()

    def type(self, text: str) -> None:
        self.text = ""
        os.write(self._fd, text.encode())

    def ends(self, status: int) -> None:
        with self.process:
            assert self.process.wait(30) == status
        os.close(self._fd)


def test_the_question_and_the_debugger_on_a_terminal(replays: Replays) -> None:
    job = replays.add("wrong", number=2)
    asked = Terminal(replays, job)
    asked.expect("Run it? [y/N]")
    asked.type("n\n")
    asked.expect("Nothing was run.")
    asked.ends(1)
    debugged = Terminal(replays, job, "--pdb", "--limits", "--yes")
    debugged.expect("(Pdb)")
    debugged.type("p total\n")
    debugged.expect("43\r\n")
    debugged.type("q\n")
    debugged.expect("ValueError: no 43")
    debugged.expect("memory")
    debugged.ends(1)
    secret = Terminal(replays, replays.add("see", password="canary-secret"), "--pdb", "--yes")
    secret.expect("add --reveal")
    secret.ends(1)


def test_the_outcome_as_one_document(replays: Replays) -> None:
    """On standard output alone; what the run prints goes to standard error."""
    see = replays.add("see", a=7, password="canary-secret")
    out, err = replays(see, "--yes", "--json")
    document = json.loads(out)
    assert (document["id"], document["attempt"], document["status"]) == (see, 1, "completed")
    assert (document["payload"]["a"], document["error"], document["retry_in_s"]) == (7, None, None)
    assert document["run_us"] > 0
    assert "canary" not in out + err
    failed = json.loads(replays(replays.add("wrong", number=1), "--yes", "--json", status=1)[0])
    assert (failed["status"], failed["reason"], failed["error"]) == ("retry", "error", "ValueError: no 42")
    assert failed["error_class"] == "builtins.ValueError"
    assert "in wrong" in failed["stack"]
    assert failed["retry_in_s"] > 0
