"""The command line against a real daemon, on both engines: data, exit statuses, sentences."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows
from tests.support.servers import DatabaseServer
from workerd.cli.main import main
from workerd.config.model import StoreConfig
from workerd.store.engines import open_store

CONFIG = f"""
[defaults]
path = ["{ROOT}"]
max_attempts = 1

[handlers.add]
call = "tests.support.handlers:add"

[handlers.echo]
call = "tests.support.handlers:echo"

[handlers.held]
call = "tests.support.handlers:echo"

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


@pytest.fixture(scope="module", params=["mysql", "sqlite"])
def daemon(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon on each engine for the whole module; each test has handlers or jobs of its own."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "sqlite":
        url, forget = f"sqlite:///{folder}/store.db", lambda: None
    else:
        server: DatabaseServer = request.getfixturevalue("mysql_server")
        name = server.new_database()
        url, forget = server.url(name), lambda: server.drop_database(name)
    store = open_store(StoreConfig(url=url))
    store.migrate()
    store.close()
    with Daemon(folder / "node", url, CONFIG) as daemon:
        yield daemon
    forget()


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


def cli(daemon: Daemon, *words: str, check: bool = True) -> Done:
    """Run a command in this process, which takes milliseconds; what it prints goes to no terminal."""
    out, err = io.BytesIO(), io.BytesIO()
    with (
        redirect_stdout(io.TextIOWrapper(out, "utf-8", write_through=True)),
        redirect_stderr(io.TextIOWrapper(err, "utf-8", write_through=True)),
    ):
        status = main([*words, "-c", str(daemon.path)])
        sys.stdout.flush()
        done = Done(status, out.getvalue().decode(), err.getvalue().decode())
    assert not check or status == 0, done
    return done


def document(daemon: Daemon, *words: str) -> Any:
    return json.loads(cli(daemon, *words, "--json").stdout)


def status_of(daemon: Daemon, job_id: str) -> str:
    return str(document(daemon, "job", "show", job_id)["status"])


def test_enqueue_prints_the_id_alone_and_with_wait_the_payload_alone(daemon: Daemon) -> None:
    """A script needs to cut nothing off."""
    job_id = daemon.cli("enqueue", "add", "a=1", "b=2").stdout
    assert str(uuid.UUID(job_id.strip())) + "\n" == job_id
    assert cli(daemon, "enqueue", "add", "a=20", "--vars", '{"b": 22}', "--wait", "20s").stdout == "42\n"
    assert cli(daemon, "enqueue", "echo", "text=x=y", "n=1", "--wait").stdout == '{"text":"x=y","n":1}\n'


def test_a_failed_job_is_status_1_with_the_reason_on_standard_error(daemon: Daemon) -> None:
    """Nothing stands on standard output."""
    done = cli(daemon, "enqueue", "faces", "face=failure", "--wait", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "ended as failure" in done.stderr
    assert "workerd why" in done.stderr


def test_waiting_in_vain_is_status_1_and_the_job_goes_on(daemon: Daemon, tmp_path: Path) -> None:
    """Only the command gives up."""
    mark = tmp_path / "go"
    done = cli(daemon, "enqueue", "waits", f"path={mark}", "--wait", "300ms", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    (job,) = document(daemon, "job", "list", "--handler", "waits", "--status", "inprogress")["jobs"]
    mark.touch()
    eventually(lambda: status_of(daemon, job["id"]) == "completed")


def test_all_options_of_enqueue_reach_the_row(daemon: Daemon) -> None:
    """They mean what the same words mean by HTTP."""
    first = cli(daemon,
        "enqueue", "echo", "--run-at", "2030-01-31T12:00:00+01:00", "--priority", "-5", "--unique", "k'\"",
        "--deadline", "1.5s", "--max-attempts", "7", "--meta", '{"tenant": "é"}', "a=[1, null]", "b=ü",
    ).stdout.strip()  # fmt: skip
    (row,) = Rows(daemon.url).attempts(uuid.UUID(first).bytes)
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
    again = cli(daemon, "enqueue", "echo", "--unique", "k'\"", "--delay", "1h")
    assert again.stdout.strip() == first


def test_text_stays_text_where_the_signature_says_so(daemon: Daemon) -> None:
    """`path=1` for a `str` is the text "1"; for an int it is the number."""
    eventually(lambda: "path: str" in cli(daemon, "handlers").stdout)
    job_id = cli(daemon, "enqueue", "waits", "path=1", "limit=0").stdout.strip()
    assert document(daemon, "job", "show", job_id)["vars"] == {"path": "1", "limit": 0}


def test_an_unknown_handler_is_status_2_with_the_known_names(daemon: Daemon) -> None:
    """Nothing is inserted."""
    done = cli(daemon, "enqueue", "ad", "a=1", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert 'Handler "ad" not found; known are: add, echo, faces' in done.stderr
    assert document(daemon, "job", "list", "--handler", "ad")["jobs"] == []


WRONG = [
    ["enqueue", "add", "a"], ["enqueue", "add", "--vars", "[1]"], ["enqueue", "add", "--delay", "soon"],
    ["enqueue", "add", "--delay", "1s", "--run-at", "2030-01-01T00:00:00Z"],
    ["enqueue", "add", "--run-at", "2030-01-01T00:00:00"], ["enqueue", "add", "--max-attempts", "0"],
    ["enqueue", "add", "--unique", "~cooler"], ["job", "show", "42"], ["job", "cancel"],
    ["job", "list", "--status", "done"], ["request", "submit", "none"], ["schedules", "--next", "3"],
]  # fmt: skip


def test_wrong_words_are_status_2_and_change_nothing(tmp_path: Path) -> None:
    """One sentence says what was expected; nothing is printed as data or inserted."""
    node = Daemon(tmp_path / "node", f"sqlite:///{tmp_path}/store.db", CONFIG)
    cli(node, "migrate")
    for words in WRONG:
        done = cli(node, *words, check=False)
        assert (done.returncode, done.stdout) == (2, ""), words
        assert done.stderr.strip(), words
    assert Rows(node.url).sql("SELECT * FROM workerd_jobs") == []


def test_a_full_handler_refuses(daemon: Daemon) -> None:
    """Above max_waiting the command fails and says what may be done."""
    cli(daemon, "pause", "few")
    cli(daemon, "enqueue", "few")
    cli(daemon, "enqueue", "few", "--delay", "1h")
    done = cli(daemon, "enqueue", "few", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "max_waiting" in done.stderr


def test_jobs_are_listed_cancelled_and_retried_by_filters(daemon: Daemon) -> None:
    """Cancel and retry take the filters of list; what was done is told by id."""
    cli(daemon, "pause", "held", "--reason", "for the test")
    ids = [cli(daemon, "enqueue", "held", f"n={n}").stdout.strip() for n in range(3)]
    listed = document(daemon, "job", "list", "--handler", "held", "--status", "new", "--since", "1h")
    assert [job["id"] for job in listed["jobs"]] == ids[::-1]
    page = document(daemon, "job", "list", "--limit", "2")
    assert len(page["jobs"]) == 2
    assert page["next"] is not None
    cancelled = document(daemon, "job", "cancel", "--handler", "held")
    assert sorted(job["id"] for job in cancelled["jobs"]) == sorted(ids)
    assert {status_of(daemon, job_id) for job_id in ids} == {"cancelled"}
    again = cli(daemon, "job", "cancel", ids[0], check=False)
    assert again.returncode == 1
    assert "ended already" in again.stdout
    cli(daemon, "job", "retry", ids[0], ids[1])
    cli(daemon, "resume", "held")
    eventually(lambda: status_of(daemon, ids[0]) == status_of(daemon, ids[1]) == "completed")
    assert [a["status"] for a in document(daemon, "job", "show", ids[0])["attempts"]] == [
        "retry",
        "completed",
    ]
    assert status_of(daemon, ids[2]) == "cancelled"


def test_a_running_job_is_cancelled_from_the_shell(daemon: Daemon, tmp_path: Path) -> None:
    """The command asks; the job ends as cancelled."""
    job_id = cli(daemon, "enqueue", "waits", f"path={tmp_path}/never").stdout.strip()
    eventually(lambda: status_of(daemon, job_id) == "inprogress")
    assert "asked to stop" in cli(daemon, "job", "cancel", job_id).stdout
    eventually(lambda: status_of(daemon, job_id) == "cancelled")


def test_a_terminal_escape_in_data_is_shown_and_does_nothing(daemon: Daemon) -> None:
    """Vars, errors, keys and notes come from anybody."""
    evil = "\x1b]0;owned\x07\x1b[31m"
    job_id = cli(
        daemon, "enqueue", "faces", f"face={evil}", "--unique", evil, "--meta", json.dumps(evil)
    ).stdout.strip()
    eventually(lambda: document(daemon, "job", "show", job_id)["complete"])
    for words in (["job", "show", job_id], ["job", "list"], ["why", job_id]):
        assert "\x1b" not in cli(daemon, *words).stdout
    assert document(daemon, "job", "show", job_id)["unique_key"] == evil


def test_why_says_what_a_job_waits_for_and_how_it_died(daemon: Daemon, tmp_path: Path) -> None:
    """Paused, due later, behind others, without a handler, crashed: each in a sentence."""

    def why(job_id: str) -> str:
        return cli(daemon, "why", job_id).stdout

    later = cli(daemon, "enqueue", "add", "a=1", "--delay", "1h").stdout.strip()
    assert "is due at" in why(later)
    cli(daemon, "pause", "held", "--reason", "the other side is down")
    paused = cli(daemon, "enqueue", "held").stdout.strip()
    assert "is paused" in why(paused)
    assert "the other side is down" in why(paused)
    cli(daemon, "resume", "held")
    nobody = uuid.UUID(bytes=Rows(daemon.url).insert("nobody_has_it", {}))
    assert "No live node has the handler nobody_has_it" in why(str(nobody))
    running = cli(daemon, "enqueue", "waits", f"path={tmp_path}/never").stdout.strip()
    eventually(lambda: status_of(daemon, running) == "inprogress")
    assert "The job runs on node" in why(running)
    behind = cli(daemon, "enqueue", "waits", "path=/").stdout.strip()
    assert "busy" in why(behind)
    cli(daemon, "job", "cancel", running)
    crashed = cli(daemon, "enqueue", "faces", "face=kill_self").stdout.strip()
    eventually(lambda: document(daemon, "job", "show", crashed)["complete"])
    assert "SIGKILL" in why(crashed)
    assert document(daemon, "why", crashed)["why"]


def test_handlers_and_nodes_are_listed(daemon: Daemon) -> None:
    """A handler that only a job's row names is shown as having no node."""
    Rows(daemon.url).insert("orphan", {})
    listed = {handler["name"]: handler for handler in document(daemon, "handlers")["handlers"]}
    assert listed["add"]["nodes"] == ["node"]
    assert listed["orphan"]["nodes"] == []
    said = cli(daemon, "handlers").stderr
    assert "No node has" in said
    assert "orphan" in said
    (node,) = document(daemon, "nodes")["nodes"]
    assert (node["name"], node["state"]) == ("node", "up")
    assert "node" in cli(daemon, "nodes").stdout


def test_status_and_top_say_what_runs(daemon: Daemon, tmp_path: Path) -> None:
    """One frame, without a terminal, and the same as JSON."""
    job_id = cli(daemon, "enqueue", "waits", f"path={tmp_path}/never").stdout.strip()
    eventually(lambda: status_of(daemon, job_id) == "inprogress")
    assert document(daemon, "status")["ready"] is True
    assert job_id in cli(daemon, "status").stdout
    frame = cli(daemon, "top", "--once").stdout
    assert job_id in frame
    assert "\x1b" not in frame
    pools = {pool["name"]: pool for pool in document(daemon, "top")["pools"]}
    (worker,) = [w for w in pools["waits"]["workers"] if w["job"]]
    assert worker["memory"] > 0
    (depth,) = [row for row in document(daemon, "top")["depth"] if row["handler"] == "waits"]
    assert depth["inprogress"] == 1
    cli(daemon, "job", "cancel", job_id)


def test_requests_are_submitted_waited_for_shown_and_cancelled(daemon: Daemon) -> None:
    """The graph shows each job's state."""
    shown = cli(daemon, "request", "submit", "two", "user=7", "--wait", "20s", check=False)
    assert shown.returncode == 1  # `faces` misses its argument
    assert "step 0: first" in shown.stdout
    assert "✗ faces" in shown.stdout
    request_id = cli(daemon, "request", "submit", "two", "user=7").stdout.strip()
    eventually(lambda: document(daemon, "request", "show", request_id)["status"] == "failed")
    request = document(daemon, "request", "show", request_id)
    assert request["params"] == {"user": 7}
    assert [job["handler"] for job in request["jobs"]] == ["faces"]
    listed = document(daemon, "request", "list")["requests"]
    assert listed[0]["id"] == request_id
    cli(daemon, "pause", "faces")
    waiting = cli(daemon, "request", "submit", "two").stdout.strip()
    cli(daemon, "request", "cancel", waiting)
    eventually(lambda: document(daemon, "request", "show", waiting)["status"] == "cancelled")
    cli(daemon, "resume", "faces")
    assert cli(daemon, "request", "cancel", waiting, check=False).returncode == 1


def test_schedules_are_listed_paused_resumed_and_run(daemon: Daemon) -> None:
    """The next ticks follow the schedule's own timezone."""

    def listed() -> dict[str, Any]:
        return {s["name"]: s for s in document(daemon, "schedules")["schedules"]}

    eventually(lambda: listed()["nightly"]["last_tick"])
    times = cli(daemon, "schedules", "nightly", "--next", "3").stdout.split()
    assert len(times) == 3
    assert all(time.endswith((":00:00Z",)) and time[11:13] in ("01", "02") for time in times)
    cli(daemon, "schedules", "pause", "nightly")
    assert listed()["nightly"]["paused_by"]
    cli(daemon, "schedules", "resume", "nightly")
    assert listed()["nightly"]["paused_at"] is None
    job_id = cli(daemon, "schedules", "run", "nightly").stdout.strip()
    eventually(lambda: status_of(daemon, job_id) == "completed")
    assert cli(daemon, "schedules", "run", "none", check=False).returncode == 1


def test_a_store_that_is_away_is_status_1_without_its_password(tmp_path: Path) -> None:
    """The sentence says what to do; nothing secret is in it."""
    daemon = Daemon(tmp_path / "node", "mysql://me:s3cret@127.0.0.1:1/x", CONFIG)
    for words in (["enqueue", "add"], ["job", "list"], ["migrate"], ["handlers"]):
        done = cli(daemon, *words, check=False)
        assert done.returncode == 1
        assert "does not answer" in done.stderr
        assert "s3cret" not in done.stderr + done.stdout


def test_a_store_without_tables_says_migrate(tmp_path: Path) -> None:
    """Status 1, and the command that helps."""
    daemon = Daemon(tmp_path / "node", f"sqlite:///{tmp_path}/store.db", CONFIG)
    done = cli(daemon, "job", "list", check=False)
    assert done.returncode == 1
    assert "workerd migrate" in done.stderr
    assert cli(daemon, "migrate").stdout
    assert cli(daemon, "migrate").stdout == ""


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
    running = ("job", "list", "--handler", "waits", "--status", "inprogress")
    own = f"{tmp_path}/never"
    (job,) = eventually(lambda: [j for j in document(daemon, *running)["jobs"] if j["vars"]["path"] == own])
    waiting.send_signal(signal.SIGINT)
    out, err = waiting.communicate(timeout=20)
    assert (waiting.returncode, out) == (130, ""), err
    assert "continues" in err
    assert "Traceback" not in err
    cli(daemon, "job", "cancel", job["id"])
    with started(daemon, "job", "list") as listing:
        assert listing.stdout is not None
        assert listing.stderr is not None
        listing.stdout.close()
        assert listing.stderr.read() == ""
        assert listing.wait(20) == 1
