"""What attempts printed and logged: kept with them, whatever their end; live while they run."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.daemon import ROOT
from tests.support.eventually import eventually
from tests.support.gateway import Api, EventStream
from tests.support.rows import Rows, assert_settled

CONFIG = f"""
[defaults]
path = ["{ROOT}"]
max_attempts = 1
max_crashes = 1
log_limit = "4KiB"
[handlers.failures]
call = "tests.support.log_handlers:talk"
workers = 2
[handlers.all]
call = "tests.support.log_handlers:talk"
keep_log = "all"
workers = 2
[handlers.none]
call = "tests.support.log_handlers:talk"
keep_log = "none"
[handlers.twice]
call = "tests.support.log_handlers:talk"
max_attempts = 2
backoff = {{ first = "10ms", jitter = 0.0 }}
"""


@pytest.fixture(scope="module")
def api(module_store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with Api(tmp_path_factory.mktemp("logs") / "node", module_store_url, CONFIG) as api:
        yield api
        assert_settled(Rows(api.daemon.url))


def ended(api: Api, handler: str, *steps: Any) -> str:
    job = api.enqueue(handler, {"steps": list(steps)})
    api.ended(job)
    return job


def log(api: Api, job: str, query: str = "") -> str:
    answer = api.get(f"/jobs/{job}/log{query}")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    return answer.text


def test_what_is_kept_of_which_ending(api: Api) -> None:
    """Failures by default; all or none if the handler says so."""
    assert "said" in log(api, ended(api, "failures", ["print", "said"], ["raise"]))
    assert api.get(f"/jobs/{ended(api, 'failures', ['print', 'said'])}/log").status_code == 404
    assert log(api, ended(api, "all", ["print", "said"])) == "said\n"
    for steps in ([["print", "said"]], [["print", "said"], ["raise"]]):
        answer = api.get(f"/jobs/{ended(api, 'none', *steps)}/log")
        assert answer.status_code == 404
        assert "keep_log" in answer.json()["detail"]


@pytest.mark.parametrize("end", ["kill", "abort", "exit", "raise"])
def test_a_crash_keeps_the_last_byte(api: Api, end: str) -> None:
    """Also half a line, and what C code or a child wrote past Python's buffers."""
    job = ended(api, "failures", ["print", "before"], ["write", "half a li"], [end])
    assert log(api, job).startswith("before\nhalf a li")


def test_records_and_prints_in_their_order(api: Api) -> None:
    job = ended(api, "all", ["print", "one"], ["log", "two"], ["logging", "three"], ["print", "four"])
    first, second, third, fourth = log(api, job).splitlines()
    assert (first, fourth) == ("one", "four")
    assert second == "info: two  n=1"
    assert third.startswith("warning: three")


def test_over_the_limit(api: Api) -> None:
    """Ten megabytes: the first sixteenth and the newest; the gap is counted, and the row says so too."""
    job = ended(api, "all", ["flood", 10_000_000])
    text = log(api, job)
    assert text.startswith("flood 0\n")
    assert text.endswith("the end\n")
    assert " bytes are left out here …\n" in text
    assert len(text) < 4096 + 100
    dropped = Rows(api.daemon.url).sql("SELECT MAX(dropped) AS n FROM workerd_logs")[0]["n"]
    assert 9_900_000 < dropped < 10_500_000


def test_bytes_that_are_no_text(api: Api) -> None:
    text = log(api, ended(api, "all", ["bytes"]))
    assert text == "\\xff\\xfe \\x00 \\x1b[31m <b>ü\n"


def test_each_attempt_has_its_own(api: Api) -> None:
    """The newest by default; what is not there is said."""
    job = ended(api, "twice", ["attempt"], ["raise"])
    assert log(api, job).startswith("attempt 2\n")
    assert log(api, job, "?attempt=1").startswith("attempt 1\n")
    assert api.get(f"/jobs/{job}/log?attempt=3").status_code == 404
    assert api.get(f"/jobs/{job}/log?attempt=0").status_code == 422
    assert api.get(f"/jobs/{job}/log?attempt=x").status_code == 422
    page = api.get(f"/ui/jobs/{job}").text
    assert "Log of attempt 1" in page
    assert "Log of attempt 2" in page
    assert api.daemon.cli("job", "log", job, "--attempt", "1").stdout.startswith("attempt 1\n")


def test_the_last_lines_are_shown_with_the_job(api: Api) -> None:
    """Ten of them, by `why`, `job show`, HTTP and on the page, where markup stays text."""
    job = ended(api, "failures", *[["print", f"<b>{n}</b>"] for n in range(15)], ["raise"])
    answer = api.get(f"/jobs/{job}/why").json()
    assert answer["log"] == [f"<b>{n}</b>" for n in range(5, 15)]
    assert answer["log_attempt"] == 1
    for words in (("why", job), ("job", "show", job)):
        shown = api.daemon.cli(*words).stdout
        assert "The last lines of the log of attempt 1;" in shown
        assert "<b>14</b>" in shown
        assert "\n<b>4</b>\n" not in shown
    assert api.daemon.cli("job", "log", job).stdout.count("\n") == 15
    page = api.get(f"/ui/jobs/{job}").text
    assert "&lt;b&gt;14&lt;/b&gt;" in page
    assert "<b>14</b>" not in page


def test_a_running_job_live(api: Api, marks: Path) -> None:
    """By HTTP, on its page, and by `job log --follow`, which ends with the job."""
    job = api.enqueue("failures", {"steps": [["print", "begun"], ["wait", f"{marks}/a"], ["print", "done"]]})
    eventually(lambda: api.get(f"/jobs/{job}/log").text == "begun\n")
    command = [sys.executable, "-m", "workerd", "job", "log", job, "--follow", "-c", str(api.daemon.path)]
    follower = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert follower.stdout is not None
    assert follower.stdout.readline() == b"begun\n"
    stream = EventStream(api, f"/ui/jobs/{job}")
    eventually(lambda: "begun" in stream.parts.get("live-log", ""))
    (marks / "a").touch()
    out, err = follower.communicate(timeout=30)
    assert out == b"done\n"
    assert b"completed, ok" in err


def test_a_lost_attempt_says_where_to_look(api: Api, marks: Path) -> None:
    """Its pool had its log in memory."""
    job = api.enqueue("failures", {"steps": [["print", "begun"], ["wait", f"{marks}/b"]]})
    eventually(lambda: api.get(f"/jobs/{job}/log").status_code == 200)
    pid = api.daemon.status()["pools"]["failures"]["pid"]
    psutil.Process(pid).send_signal(signal.SIGKILL)
    (marks / "b").touch()
    assert api.ended(job)["attempt"] == 2
    answer = api.get(f"/jobs/{job}/log?attempt=1")
    assert answer.status_code == 404
    assert "journal" in answer.json()["detail"]


def test_retention_removes_logs(api: Api) -> None:
    """With the job; all that are left belong to a row."""
    rows = Rows(api.daemon.url)
    orphans = "SELECT COUNT(*) AS n FROM workerd_logs AS l WHERE NOT EXISTS (SELECT 1 FROM workerd_jobs AS j"
    assert rows.sql(f"{orphans} WHERE j.id = l.id AND j.attempt = l.attempt)") == [{"n": 0}]
