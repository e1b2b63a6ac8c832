"""`enqueue` and `job`, on both engines."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from pathlib import Path

from tests.cli.conftest import CommandLine
from tests.support.daemon import ROOT
from tests.support.eventually import eventually
from tests.support.rows import Rows
from tests.support.terminal import Terminal, on_terminal
from workerd import clock


def test_enqueue_prints_only_the_id_and_with_wait_only_the_payload(cli: CommandLine) -> None:
    """A script can use the output as it is."""
    job_id = cli.node.cli("enqueue", "add", "a=1", "b=2").stdout
    assert str(uuid.UUID(job_id.strip())) + "\n" == job_id
    assert cli("enqueue", "add", "a=20", "--vars", '{"b": 22}', "--wait", "20s").stdout == "42\n"
    assert cli("enqueue", "echo", "text=x=y", "n=1", "--wait").stdout == '{"text":"x=y","n":1}\n'


def test_bytes_are_not_written_to_a_terminal(cli: CommandLine) -> None:
    """They could be any command to it; a pipe gets them as they are."""
    words = ("enqueue", "behave", "kind=payload", "--wait", "-c", str(cli.node.path))
    status, output = on_terminal(*words)
    assert status == 0
    assert "bytes, which are not written to a terminal" in output


def test_a_failed_job_is_status_1_with_the_reason_on_standard_error(cli: CommandLine) -> None:
    """Standard output stays empty."""
    done = cli("enqueue", "behave", "kind=failure", "--wait", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "ended as failure" in done.stderr
    assert ".." not in done.stderr
    assert "workerd why" in done.stderr


def test_a_wait_that_times_out_is_status_1_and_the_job_continues(cli: CommandLine, tmp_path: Path) -> None:
    """Only the command ends."""
    mark = tmp_path / "go"
    done = cli("enqueue", "waits", f"path={mark}", "--wait", "300ms", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    jobs = ("job", "list", "--handler", "waits", "--status", "inprogress")
    (job,) = eventually(lambda: cli.json(*jobs)["jobs"])
    mark.touch()
    eventually(lambda: cli.status(job["id"]) == "completed")


def test_all_options_of_enqueue_reach_the_row(cli: CommandLine) -> None:
    """They mean the same as over HTTP."""
    first = cli.id(
        "enqueue", "echo", "--run-at", "2030-01-31T12:00:00+01:00", "--priority", "-5", "--unique", "k'\"",
        "--deadline", "1.5s", "--max-attempts", "7", "--meta", '{"tenant": "é"}', "a=[1, null]", "b=ü",
    )  # fmt: skip
    (row,) = Rows(cli.url).attempts(uuid.UUID(first).bytes)
    assert row["status"] == "scheduled"
    assert str(row["run_at"]).startswith("2030-01-31 11:00:00")
    assert (row["priority"], row["unique_key"], row["deadline_ms"], row["max_attempts"]) == (
        -5,
        "k'\"",
        1500,
        7,
    )
    job = cli.json("job", "show", first)
    assert job["meta"] == {"tenant": "é"}
    assert job["vars"] == {"a": [1, None], "b": "ü"}
    again = cli("enqueue", "echo", "--unique", "k'\"", "--delay", "1h")
    assert again.stdout.strip() == first


def test_enqueue_says_as_json_whether_it_created_or_replaced_a_job(cli: CommandLine) -> None:
    """As HTTP does."""
    words = ("enqueue", "echo", "--unique", "said", "--on-conflict", "replace", "--delay", "1h")
    first, second = cli.json(*words), cli.json(*words, "n=2")
    assert (first["created"], first["replaced"]) == (True, False)
    assert (second["id"], second["created"], second["replaced"]) == (first["id"], False, True)
    assert second["vars"] == {"n": 2}
    waited = cli.json("enqueue", "add", "a=1", "b=2", "--unique", "waited", "--wait")
    assert (waited["payload"], waited["created"], waited["replaced"]) == (3, True, False)


def test_text_stays_text_where_the_signature_wants_text(cli: CommandLine) -> None:
    """`path=1` for a `str` is the text "1"; for an int it is the number."""
    eventually(lambda: "path: str" in cli("handlers").stdout)
    job_id = cli.id("enqueue", "waits", "path=1", "limit=0")
    assert cli.json("job", "show", job_id)["vars"] == {"path": "1", "limit": 0}


def test_vars_that_do_not_fit_a_known_signature_are_refused(cli: CommandLine) -> None:
    """As over HTTP: nothing is inserted, and the argument is named."""
    eventually(lambda: "a: int" in cli("handlers").stdout)
    before = cli.json("job", "list", "--handler", "add")["jobs"]
    for words in (["a=x", "b=1"], ["b=1"], ["a=1", "b=2", "c=3"]):
        done = cli("enqueue", "add", *words, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert "add: vars." in done.stderr
    assert cli.json("job", "list", "--handler", "add")["jobs"] == before


def test_an_unknown_handler_is_status_2_with_the_known_names(cli: CommandLine) -> None:
    """Nothing is inserted."""
    done = cli("enqueue", "ad", "a=1", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert 'Handler "ad" not found; known are: add, behave, echo' in done.stderr
    assert cli.json("job", "list", "--handler", "ad")["jobs"] == []


def test_a_handler_with_max_waiting_jobs_refuses_more(cli: CommandLine) -> None:
    """Above max_waiting the command fails and names the key."""
    cli("pause", "few")
    cli("enqueue", "few")
    cli("enqueue", "few", "--delay", "1h")
    done = cli("enqueue", "few", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "max_waiting" in done.stderr


def test_jobs_are_listed_cancelled_and_retried_by_filters(cli: CommandLine) -> None:
    """Cancel and retry take the filters of list and print a result for each id."""
    cli("pause", "held", "--reason", "for the test")
    ids = [cli.id("enqueue", "held", f"n={n}") for n in range(3)]
    listed = cli.json("job", "list", "--handler", "held", "--status", "new", "--since", "1h")
    assert [job["id"] for job in listed["jobs"]] == ids[::-1]
    page = cli.json("job", "list", "--limit", "2")
    assert len(page["jobs"]) == 2
    assert page["next"] is not None
    assert cli.json("job", "cancel", "--handler", "held", "--yes") == {"matched": 3, "done": 3}
    assert {cli.status(job_id) for job_id in ids} == {"cancelled"}
    again = cli("job", "cancel", ids[0], check=False)
    assert again.returncode == 1
    assert "already ended" in again.stdout
    cli("job", "retry", ids[0], ids[1])
    cli("resume", "held")
    eventually(lambda: cli.status(ids[0]) == cli.status(ids[1]) == "completed")
    assert [a["status"] for a in cli.json("job", "show", ids[0])["attempts"]] == [
        "retry",
        "completed",
    ]
    assert cli.status(ids[2]) == "cancelled"


def test_jobs_by_filter_are_counted_and_confirmed(cli: CommandLine) -> None:
    """Nothing is done before a yes; without a terminal --yes is needed."""
    cli("pause", "held", "--reason", "for the test")
    ids = [cli.id("enqueue", "held", f"n={n}") for n in range(3)]
    words = ("job", "cancel", "--handler", "held")
    refused = cli(*words, check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "3 jobs match; nothing was done" in refused.stderr
    assert "--yes" in refused.stderr
    shown = cli(*words, "--dry-run")
    assert all(job_id in shown.stdout for job_id in ids)
    assert "3 jobs match; nothing was done." in shown.stderr
    asked = cli.json(*words, "--limit", "1", "--dry-run")
    assert asked == {"matched": 3, "done": 0}
    status, output = on_terminal(*words, "-c", str(cli.node.path), answer="n\n")
    assert status == 1
    assert "3 jobs match. Cancel them? [y/N]" in output
    assert {cli.status(job_id) for job_id in ids} == {"new"}
    status, output = on_terminal(*words, "-c", str(cli.node.path), answer="y\n")
    assert status == 0
    assert {cli.status(job_id) for job_id in ids} == {"cancelled"}
    assert cli.json(*words, "--yes") == {"matched": 0, "done": 0}
    cli("resume", "held")


def test_ctrl_c_ends_an_act_on_many_jobs_between_two_slices(cli: CommandLine) -> None:
    """It says how far it went, with status 130; what is done is recorded, and again does the rest."""
    rows = Rows(cli.url)
    cli("pause", "held", "--reason", "for the test")
    rows.insert_many("held", [{} for _ in range(20_000)])
    words = ("job", "cancel", "--handler", "held", "-c", str(cli.node.path))
    terminal = Terminal(words)
    terminal.read_until("20,000 jobs match. Cancel them? [y/N]")
    terminal.write("y\n")
    terminal.read_until(" of 20,000 cancelled")
    terminal.write("\x03")
    assert terminal.finish() == 130
    said = re.search(r"Interrupted: ([0-9,]+) of 20,000 were cancelled", terminal.output)
    assert said is not None, terminal.output
    done = int(said[1].replace(",", ""))
    assert 0 < done < 20_000
    counts = rows.sql(
        "SELECT COUNT(*) AS n FROM workerd_jobs WHERE handler = 'held' AND status = 'cancelled'"
        " AND cancel_requested_at IS NOT NULL AND created_at > '2026-01-01'"
    )
    before = 20_000 - cli.json("job", "cancel", "--handler", "held", "--dry-run")["matched"]
    assert before == done <= counts[0]["n"]
    again = cli("job", "cancel", "--handler", "held", "--yes")
    assert f"{20_000 - done:,} of {20_000 - done:,} were cancelled." in again.stderr
    acts = cli.json("audit", "--target", "held", "--limit", "100")["audit"]
    named = [one for act in acts for one in (act["detail"] or {}).get("ids", [])]
    assert len(named) == len(set(named)) >= 20_000
    cli("resume", "held")


def test_jobs_are_found_by_group_and_meta(cli: CommandLine) -> None:
    """List and cancel take the same filters; what cannot be meant is a usage error."""
    ids = [
        cli.id("enqueue", "held", "--delay", "30d", "--group", "g7", "--meta", f'{{"to": "t{n}", "n": 7}}')
        for n in range(3)
    ]
    listed = cli.json("job", "list", "--group", "g7", "--meta", "n=7")
    assert [job["id"] for job in listed["jobs"]] == ids[::-1]
    done = cli.json("job", "cancel", "--group", "g7", "--meta", "to=t1", "--meta", "n=7", "--yes")
    assert done == {"matched": 1, "done": 1}
    assert [cli.status(job) for job in ids] == ["scheduled", "cancelled", "scheduled"]
    found = cli.json("job", "list", "--group", "g7", "--reason", "cancelled")["jobs"]
    assert [job["id"] for job in found] == [ids[1]]
    for words, expected in (
        (("--meta", "=1"), "KEY=VALUE"),
        (("--error", "12"), "16 hex digits"),
        (("--reason", "bad"), "expected one of ok"),
        (("--request", "1"), "ID"),
    ):
        refused = cli("job", "list", *words, check=False)
        assert refused.returncode == 2, words
        assert expected.lower() in refused.stderr.lower(), refused.stderr
    cli("job", "cancel", "--group", "g7", "--yes")


def test_since_spares_a_job_that_was_made_before(cli: CommandLine) -> None:
    """A job for next month that was made yesterday is not one of the last hour."""
    old = cli.id("enqueue", "held", "--delay", "30d")
    new = cli.id("enqueue", "held", "--delay", "30d")
    yesterday = clock.to_text(clock.now_us() - 86_400 * clock.SECOND)
    Rows(cli.url).sql(
        "UPDATE workerd_jobs SET created_at = %s WHERE id = %s", yesterday, uuid.UUID(old).bytes
    )
    done = cli.json("job", "cancel", "--handler", "held", "--since", "1h", "--yes")
    assert done == {"matched": 1, "done": 1}
    assert (cli.status(old), cli.status(new)) == ("scheduled", "cancelled")
    assert [j["id"] for j in cli.json("job", "list", "--handler", "held", "--until", "1h")["jobs"]] == [old]
    cli("job", "cancel", old)


def test_a_running_job_is_cancelled_from_the_shell(cli: CommandLine, tmp_path: Path) -> None:
    """The command returns at once; the job ends as cancelled."""
    job_id = cli.id("enqueue", "waits", f"path={tmp_path}/never")
    eventually(lambda: cli.status(job_id) == "inprogress")
    assert "asked to stop" in cli("job", "cancel", job_id).stdout
    eventually(lambda: cli.status(job_id) == "cancelled")


def test_terminal_escapes_in_data_are_escaped(cli: CommandLine) -> None:
    """Vars, errors, keys and notes are untrusted."""
    evil = "\x1b]0;owned\x07\x1b[31m"
    job_id = cli.id("enqueue", "behave", f"kind={evil}", "--unique", evil, "--meta", json.dumps(evil))
    eventually(lambda: cli.json("job", "show", job_id)["complete"])
    for words in (["job", "show", job_id], ["job", "list"], ["why", job_id]):
        assert "\x1b" not in cli(*words).stdout
    assert cli.json("job", "show", job_id)["unique_key"] == evil


def started(cli: CommandLine, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "workerd", *words, "-c", str(cli.node.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_ctrl_c_and_a_closed_pipe_are_quiet(cli: CommandLine, tmp_path: Path) -> None:
    """No traceback on Ctrl-C, or when `head` closes the pipe."""
    waiting = started(cli, "enqueue", "waits", f"path={tmp_path}/never", "--wait")
    running = ("job", "list", "--handler", "waits", "--status", "inprogress")
    own = f"{tmp_path}/never"
    (job,) = eventually(lambda: [j for j in cli.json(*running)["jobs"] if j["vars"]["path"] == own])
    waiting.send_signal(signal.SIGINT)
    out, err = waiting.communicate(timeout=20)
    assert (waiting.returncode, out) == (130, ""), err
    assert "continues" in err
    assert "Traceback" not in err
    cli("job", "cancel", job["id"])
    with started(cli, "job", "list") as listing:
        assert listing.stdout is not None
        assert listing.stderr is not None
        listing.stdout.close()
        assert listing.stderr.read() == ""
        assert listing.wait(20) == 1
