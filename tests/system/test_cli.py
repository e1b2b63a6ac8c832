"""The command line against a real daemon, on both engines: data, exit statuses, sentences."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows

CONFIG = f"""
[defaults]
path = ["{ROOT}"]
max_attempts = 1

[handlers.add]
call = "tests.support.handlers:add"

[handlers.echo]
call = "tests.support.handlers:echo"

[handlers.size]
call = "os.path:getsize"

[handlers.faces]
call = "tests.support.handlers:faces"

[handlers.waits]
call = "tests.support.handlers:wait_for_file"
grace = "200ms"

[handlers.few]
call = "tests.support.handlers:noop"
max_waiting = 2

[handlers.nightly]
call = "tests.support.handlers:noop"
cron = "0 3 * * *"
timezone = "Europe/Berlin"

[workflows.two]
steps = [
  {{ name = "first", jobs = ["faces"] }},
  {{ name = "second", jobs = ["echo"] }},
]
"""


@pytest.fixture
def daemon(tmp_path: Path, store_url: str, store: Any) -> Iterator[Daemon]:
    with Daemon(tmp_path / "node", store_url, CONFIG) as daemon:
        yield daemon


def document(daemon: Daemon, *words: str, check: bool = True) -> Any:
    return json.loads(daemon.cli(*words, "--json", check=check).stdout)


def status_of(daemon: Daemon, job_id: str) -> str:
    return str(document(daemon, "job", "show", job_id)["status"])


def test_enqueue_prints_the_id_alone_and_with_wait_the_payload_alone(daemon: Daemon) -> None:
    """A script needs to cut nothing off."""
    job_id = daemon.cli("enqueue", "add", "a=1", "b=2").stdout
    assert str(uuid.UUID(job_id.strip())) + "\n" == job_id
    assert daemon.cli("enqueue", "add", "a=20", "--vars", '{"b": 22}', "--wait", "20s").stdout == "42\n"
    assert daemon.cli("enqueue", "echo", "text=x=y", "n=1", "--wait").stdout == '{"n":1,"text":"x=y"}\n'


def test_a_failed_job_is_status_1_with_the_reason_on_standard_error(daemon: Daemon) -> None:
    """Nothing stands on standard output."""
    done = daemon.cli("enqueue", "faces", "face=failure", "--wait", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "ended as failure" in done.stderr
    assert "workerd why" in done.stderr


def test_waiting_in_vain_is_status_1_and_the_job_goes_on(daemon: Daemon, tmp_path: Path) -> None:
    """Only the command gives up."""
    mark = tmp_path / "go"
    done = daemon.cli("enqueue", "waits", f"path={mark}", "--wait", "300ms", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    (job,) = document(daemon, "job", "list", "--handler", "waits")["jobs"]
    assert not job["complete"]
    mark.touch()
    eventually(lambda: status_of(daemon, job["id"]) == "completed")


def test_all_options_of_enqueue_reach_the_row(daemon: Daemon, store_url: str) -> None:
    """They mean what the same words mean by HTTP."""
    first = daemon.cli(
        "enqueue", "echo", "--run-at", "2030-01-31T12:00:00+01:00", "--priority", "-5", "--unique", "k'\"",
        "--deadline", "1.5s", "--max-attempts", "7", "--meta", '{"tenant": "é"}', "a=[1, null]", "b=ü",
    ).stdout.strip()  # fmt: skip
    (row,) = Rows(store_url).attempts(uuid.UUID(first).bytes)
    assert row["status"] == "scheduled"
    assert str(row["run_at"]).startswith("2030-01-31 11:00:00")
    assert (row["priority"], row["unique_key"], row["deadline_ms"], row["max_attempts"]) == (
        -5,
        "k'\"",
        1500,
        7,
    )
    job = document(daemon, "job", "show", first)
    assert job["meta"] == {"tenant": "é"}
    assert job["vars"] == {"a": [1, None], "b": "ü"}
    again = daemon.cli("enqueue", "echo", "--unique", "k'\"", "--delay", "1h")
    assert again.stdout.strip() == first


def test_text_stays_text_where_the_signature_says_so(daemon: Daemon) -> None:
    """`path=1` for a `str` is the text "1"; for an int it is the number."""
    eventually(lambda: "path: str" in daemon.cli("handlers").stdout)
    job_id = daemon.cli("enqueue", "waits", "path=1", "limit=0").stdout.strip()
    assert document(daemon, "job", "show", job_id)["vars"] == {"path": "1", "limit": 0}


def test_an_unknown_handler_is_status_2_with_the_known_names(daemon: Daemon) -> None:
    """Nothing is inserted."""
    done = daemon.cli("enqueue", "ad", "a=1", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert 'There is no handler "ad"; known are: add, echo, faces' in done.stderr
    assert document(daemon, "job", "list")["jobs"] == []


@pytest.mark.parametrize(
    "words",
    [
        ["enqueue", "add", "a"], ["enqueue", "add", "--vars", "[1]"], ["enqueue", "add", "--delay", "soon"],
        ["enqueue", "add", "--delay", "1s", "--run-at", "2030-01-01T00:00:00Z"],
        ["enqueue", "add", "--run-at", "2030-01-01T00:00:00"], ["enqueue", "add", "--max-attempts", "0"],
        ["enqueue", "add", "--unique", "~cooler"], ["job", "show", "42"], ["job", "cancel"],
        ["job", "list", "--status", "done"], ["request", "submit", "none"], ["schedules", "--next", "3"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_words_are_status_2_and_change_nothing(tmp_path: Path, words: list[str]) -> None:
    """One sentence says what was expected; there is no traceback."""
    daemon = Daemon(tmp_path / "node", f"sqlite:///{tmp_path}/store.db", CONFIG)
    daemon.cli("migrate")
    done = daemon.cli(*words, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip()
    assert "Traceback" not in done.stderr
    assert document(daemon, "job", "list")["jobs"] == []


def test_a_full_handler_refuses(daemon: Daemon) -> None:
    """Above max_waiting the command fails and says what may be done."""
    daemon.cli("pause", "few")
    daemon.cli("enqueue", "few")
    daemon.cli("enqueue", "few", "--delay", "1h")
    done = daemon.cli("enqueue", "few", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "max_waiting" in done.stderr


def test_jobs_are_listed_cancelled_and_retried_by_filters(daemon: Daemon) -> None:
    """Cancel and retry take the filters of list; what was done is told by id."""
    daemon.cli("pause", "echo", "--reason", "for the test")
    ids = [daemon.cli("enqueue", "echo", f"n={n}").stdout.strip() for n in range(3)]
    listed = document(daemon, "job", "list", "--handler", "echo", "--status", "new", "--since", "1h")
    assert [job["id"] for job in listed["jobs"]] == ids[::-1]
    page = document(daemon, "job", "list", "--limit", "2")
    assert len(page["jobs"]) == 2
    assert page["next"] is not None
    cancelled = document(daemon, "job", "cancel", "--handler", "echo")
    assert sorted(job["id"] for job in cancelled["jobs"]) == sorted(ids)
    assert {status_of(daemon, job_id) for job_id in ids} == {"cancelled"}
    again = daemon.cli("job", "cancel", ids[0], check=False)
    assert again.returncode == 1
    assert "ended already" in again.stdout
    daemon.cli("job", "retry", ids[0], ids[1])
    daemon.cli("resume", "echo")
    eventually(lambda: status_of(daemon, ids[0]) == status_of(daemon, ids[1]) == "completed")
    assert [a["status"] for a in document(daemon, "job", "show", ids[0])["attempts"]] == [
        "retry",
        "completed",
    ]
    assert status_of(daemon, ids[2]) == "cancelled"


def test_a_running_job_is_cancelled_from_the_shell(daemon: Daemon, tmp_path: Path) -> None:
    """The command asks; the job ends as cancelled."""
    job_id = daemon.cli("enqueue", "waits", f"path={tmp_path}/never").stdout.strip()
    eventually(lambda: status_of(daemon, job_id) == "inprogress")
    assert "asked to end" in daemon.cli("job", "cancel", job_id).stdout
    eventually(lambda: status_of(daemon, job_id) == "cancelled")


def test_a_terminal_escape_in_data_is_shown_and_does_nothing(daemon: Daemon) -> None:
    """Vars, errors, keys and notes come from anybody."""
    evil = "\x1b]0;owned\x07\x1b[31m"
    job_id = daemon.cli(
        "enqueue", "faces", f"face={evil}", "--unique", evil, "--meta", json.dumps(evil)
    ).stdout.strip()
    eventually(lambda: document(daemon, "job", "show", job_id)["complete"])
    for words in (["job", "show", job_id], ["job", "list"], ["why", job_id]):
        assert "\x1b" not in daemon.cli(*words).stdout
    assert document(daemon, "job", "show", job_id)["unique_key"] == evil


def test_why_says_what_a_job_waits_for_and_how_it_died(
    daemon: Daemon, store_url: str, tmp_path: Path
) -> None:
    """Paused, due later, behind others, without a handler, crashed: each in a sentence."""

    def why(job_id: str) -> str:
        return daemon.cli("why", job_id).stdout

    later = daemon.cli("enqueue", "add", "a=1", "--delay", "1h").stdout.strip()
    assert "is due at" in why(later)
    daemon.cli("pause", "add", "--reason", "the other side is down")
    paused = daemon.cli("enqueue", "add", "a=1").stdout.strip()
    assert "is paused" in why(paused)
    assert "the other side is down" in why(paused)
    nobody = uuid.UUID(bytes=Rows(store_url).insert("nobody_has_it", {}))
    assert "No live node has the handler nobody_has_it" in why(str(nobody))
    running = daemon.cli("enqueue", "waits", f"path={tmp_path}/never").stdout.strip()
    eventually(lambda: status_of(daemon, running) == "inprogress")
    assert "The job runs on node" in why(running)
    behind = daemon.cli("enqueue", "waits", "path=/").stdout.strip()
    assert "busy" in eventually(lambda: (text := why(behind)) and "busy" in text and text)
    crashed = daemon.cli("enqueue", "faces", "face=kill_self").stdout.strip()
    eventually(lambda: document(daemon, "job", "show", crashed)["complete"])
    assert "SIGKILL" in why(crashed)
    assert document(daemon, "why", crashed)["why"]


def test_handlers_and_nodes_are_listed(daemon: Daemon, store_url: str) -> None:
    """A handler that only a job's row names is shown as having no node."""
    Rows(store_url).insert("orphan", {})
    listed = {handler["name"]: handler for handler in document(daemon, "handlers")["handlers"]}
    assert listed["add"]["nodes"] == ["node"]
    assert listed["orphan"]["nodes"] == []
    assert "No node has: orphan" in daemon.cli("handlers").stderr
    (node,) = document(daemon, "nodes")["nodes"]
    assert (node["name"], node["state"]) == ("node", "up")
    assert "node" in daemon.cli("nodes").stdout


def test_status_and_top_say_what_runs(daemon: Daemon, tmp_path: Path) -> None:
    """One frame, without a terminal, and the same as JSON."""
    job_id = daemon.cli("enqueue", "waits", f"path={tmp_path}/never").stdout.strip()
    eventually(lambda: status_of(daemon, job_id) == "inprogress")
    assert document(daemon, "status")["ready"] is True
    assert job_id in daemon.cli("status").stdout
    frame = daemon.cli("top", "--once").stdout
    assert job_id in frame
    assert "\x1b" not in frame
    pools = {pool["name"]: pool for pool in document(daemon, "top")["pools"]}
    (worker,) = [w for w in pools["waits"]["workers"] if w["job"]]
    assert worker["memory"] > 0
    (depth,) = [row for row in document(daemon, "top")["depth"] if row["handler"] == "waits"]
    assert depth["inprogress"] == 1


def test_requests_are_submitted_waited_for_shown_and_cancelled(daemon: Daemon) -> None:
    """The graph shows each job's state."""
    shown = daemon.cli("request", "submit", "two", "user=7", "--wait", "20s", check=False)
    assert shown.returncode == 1  # `faces` misses its argument
    assert "step 0: first" in shown.stdout
    assert "✗ faces" in shown.stdout
    request_id = daemon.cli("request", "submit", "two", "user=7").stdout.strip()
    eventually(lambda: document(daemon, "request", "show", request_id)["status"] == "failed")
    request = document(daemon, "request", "show", request_id)
    assert request["params"] == {"user": 7}
    assert [job["handler"] for job in request["jobs"]] == ["faces"]
    listed = document(daemon, "request", "list")["requests"]
    assert [r["id"] for r in listed][0] == request_id
    daemon.cli("pause", "faces")
    waiting = daemon.cli("request", "submit", "two").stdout.strip()
    daemon.cli("request", "cancel", waiting)
    eventually(lambda: document(daemon, "request", "show", waiting)["status"] == "cancelled")
    assert daemon.cli("request", "cancel", waiting, check=False).returncode == 1


def test_schedules_are_listed_paused_resumed_and_run(daemon: Daemon) -> None:
    """The next ticks follow the schedule's own timezone."""

    def listed() -> dict[str, Any]:
        return {s["name"]: s for s in document(daemon, "schedules")["schedules"]}

    eventually(lambda: listed()["nightly"]["last_tick"])
    times = daemon.cli("schedules", "nightly", "--next", "3").stdout.split()
    assert len(times) == 3
    assert all(time.endswith((":00:00Z",)) and time[11:13] in ("01", "02") for time in times)
    daemon.cli("schedules", "pause", "nightly")
    assert listed()["nightly"]["paused_by"]
    daemon.cli("schedules", "resume", "nightly")
    assert listed()["nightly"]["paused_at"] is None
    job_id = daemon.cli("schedules", "run", "nightly").stdout.strip()
    eventually(lambda: status_of(daemon, job_id) == "completed")
    assert daemon.cli("schedules", "run", "none", check=False).returncode == 1


def test_a_store_that_is_away_is_status_1_without_its_password(tmp_path: Path) -> None:
    """The sentence says what to do; nothing secret is in it."""
    daemon = Daemon(tmp_path / "node", "mysql://me:s3cret@127.0.0.1:1/x", CONFIG)
    for words in (["enqueue", "add"], ["job", "list"], ["migrate"], ["handlers"]):
        done = daemon.cli(*words, check=False)
        assert done.returncode == 1
        assert "does not answer" in done.stderr
        assert "s3cret" not in done.stderr + done.stdout


def test_a_store_without_tables_says_migrate(tmp_path: Path) -> None:
    """Status 1, and the command that helps."""
    daemon = Daemon(tmp_path / "node", f"sqlite:///{tmp_path}/store.db", CONFIG)
    done = daemon.cli("job", "list", check=False)
    assert done.returncode == 1
    assert "workerd migrate" in done.stderr
    assert daemon.cli("migrate").stdout
    assert daemon.cli("migrate").stdout == ""


def started(daemon: Daemon, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "workerd", *words, "-c", str(daemon.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_ctrl_c_and_a_closed_pipe_are_quiet(daemon: Daemon, tmp_path: Path) -> None:
    """No traceback when a person gives up, or when `head` has seen enough."""
    waiting = started(daemon, "enqueue", "waits", f"path={tmp_path}/never", "--wait")
    eventually(lambda: document(daemon, "job", "list", "--handler", "waits")["jobs"])
    eventually(lambda: status_of(daemon, document(daemon, "job", "list")["jobs"][0]["id"]) == "inprogress")
    waiting.send_signal(signal.SIGINT)
    out, err = waiting.communicate(timeout=20)
    assert (waiting.returncode, out) == (130, "")
    assert "goes on" in err
    assert "Traceback" not in err
    listing = started(daemon, "job", "list")
    assert listing.stdout is not None
    listing.stdout.close()
    assert listing.stderr is not None
    assert listing.stderr.read() == ""
    assert listing.wait(20) == 1
