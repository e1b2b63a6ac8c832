"""Recurring handlers and workflows in a running daemon: chains survive every outcome, one run at a time."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.request_rows import RequestRows, uuid_text
from tests.support.rows import Rows, assert_settled
from tests.support.servers import free_port

StartDaemon = Callable[..., Daemon]
PAUSE = 0.05
mysql_only = pytest.mark.parametrize("store_url", ["mysql"], indirect=True)
sqlite_only = pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)

HEAD = f"""
[dispatcher]
poll = "50ms"
lease = "1s"

[shutdown]
drain = "500ms"

[defaults]
path = ["{ROOT}"]
"""


def moment(value: Any) -> datetime:
    """Parse a time of a row; SQLite stores it as text."""
    return value if isinstance(value, datetime) else datetime.fromisoformat(str(value))


def runs(rows: Rows, name: str) -> list[dict[str, Any]]:
    """Return all ended attempts of a recurring handler, in order."""
    return rows.sql(
        "SELECT * FROM workerd_jobs WHERE handler = %s AND finished_at IS NOT NULL"
        " ORDER BY claimed_at, attempt",
        name,
    )


def assert_apart(found: list[dict[str, Any]], pause: float) -> None:
    """Each run started at least `pause` seconds after the end of the one before it."""
    for before, after in pairwise(found):
        started, ended = moment(after["started_at"]), moment(before["finished_at"])
        assert started - ended >= timedelta(seconds=pause), (before, after)


def recurring(name: str, function: str = "", **keys: Any) -> str:
    lines = [f'\n[handlers.{name}]\ncall = "tests.support.workflow_handlers:{function or name}"']
    return "\n".join([*lines, *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]) + "\n"


# -- chains of handlers ------------------------------------------------------------------------


def test_no_outcome_breaks_a_chain(start_daemon: StartDaemon, tmp_path: Path, store_url: str) -> None:
    """Error, two crashes, deadline, failure, ignored error and Retry: each ends its run in one attempt."""
    beats = f'env = {{ BEATS = "{tmp_path}/beats" }}\n'
    turn = recurring("each_outcome", cooler=f"{PAUSE}s", deadline="1s", grace="200ms",
                     ignore=["tests.support.handlers.Ignored"])  # fmt: skip
    daemon = start_daemon(HEAD + turn + beats)
    rows = Rows(store_url)
    eventually(lambda: len(runs(rows, "each_outcome")) >= 9, within=30, state=daemon.tail)
    assert daemon.stop() == 0
    found = runs(rows, "each_outcome")
    assert [(run["status"], run["reason"]) for run in found[:9]] == [
        ("failure", "error"), ("failure", "crashed"), ("failure", "crashed"), ("failure", "deadline"),
        ("failure", "failure"), ("completed", "ignored"), ("failure", "retry"),
        ("completed", "ok"), ("completed", "ok"),
    ]  # fmt: skip
    assert {run["attempt"] for run in found} == {1}
    assert_apart(found, PAUSE)
    live = rows.sql("SELECT status, unique_key FROM workerd_jobs WHERE status IN ('new','scheduled')")
    assert [row["unique_key"] for row in live] == ["~cooler"]
    assert_settled(rows)


@pytest.mark.slow
@mysql_only
def test_a_killed_pool_and_a_cancel_do_not_break_a_chain(
    start_daemon: StartDaemon, tmp_path: Path, store_url: str
) -> None:
    """A lost run is retried; a run cancelled while running or waiting is not, the next one follows."""
    late = recurring("late", "wrapped", cooler="1h")
    daemon = start_daemon(HEAD + recurring("beat", cooler=f"{PAUSE}s") + slow(tmp_path, 60) + late)
    rows = Rows(store_url)

    def running() -> dict[str, Any] | None:
        found = rows.sql(
            "SELECT * FROM workerd_jobs WHERE handler = 'beat' AND status = 'inprogress'"
            " AND started_at IS NOT NULL AND pid IS NOT NULL"
        )
        return found[0] if found else None

    first = eventually(running, state=daemon.tail)
    assert first is not None
    daemon.kill("pool:beat")
    eventually(lambda: (row := running()) and row["attempt"] == 2, state=daemon.tail)
    assert rows.attempts(first["id"])[0]["reason"] == "lost"
    daemon.cli("job", "cancel", uuid_text(first["id"]))
    eventually(lambda: rows.last(first["id"])["status"] == "cancelled", state=daemon.tail)
    following = eventually(running, state=daemon.tail)
    assert following is not None
    assert following["id"] != first["id"]
    waiting = eventually(lambda: live_row(rows, "late"), state=daemon.tail)
    assert waiting is not None
    daemon.cli("job", "cancel", uuid_text(waiting["id"]))
    eventually(lambda: live_row(rows, "late"), within=15, state=daemon.tail)


def slow(tmp_path: Path, seconds: float) -> str:
    return f'\n[pools.beat]\nenv = {{ BEATS = "{tmp_path}/beats", BEAT_SECONDS = "{seconds}" }}\n'


@pytest.mark.slow
@mysql_only
def test_a_killed_node_does_not_break_a_chain(
    start_daemon: StartDaemon, tmp_path: Path, store_url: str
) -> None:
    """Another node continues after the lease has expired; both runs are attempts of one job."""
    config = recurring("beat", cooler=f"{PAUSE}s")
    first = start_daemon(HEAD + config + slow(tmp_path, 60), "one")
    rows = Rows(store_url)
    eventually(lambda: rows.sql("SELECT 1 FROM workerd_jobs WHERE pid IS NOT NULL"), state=first.tail)
    second = start_daemon(HEAD + config + slow(tmp_path, 0), "two")
    first.kill_tree()
    eventually(lambda: len(runs(rows, "beat")) >= 4, within=20, state=second.tail)
    found = runs(rows, "beat")
    assert [(run["reason"], run["attempt"]) for run in found[:3]] == [("lost", 1), ("ok", 2), ("ok", 1)]
    assert [run["node"] for run in found[:3]] == ["one", "two", "two"]
    assert_apart(found[1:], PAUSE)


@sqlite_only
def test_a_class_controls_its_schedule(start_daemon: StartDaemon, store_url: str) -> None:
    """`active()` false skips a run, of which only the newest row is kept; `cooler()` is the pause."""
    daemon = start_daemon(HEAD + recurring("choosy", "ActiveEverySecondTime", cooler="1h"))
    rows = Rows(store_url)
    eventually(lambda: rows.counts("reason").get("ok", 0) >= 4, within=20, state=daemon.tail)
    assert daemon.stop() == 0
    found = runs(rows, "choosy")
    assert_apart(found, 0.03)
    assert rows.counts("reason")["skipped"] == 1
    counts = [json.loads(run["payload"]) for run in found if run["reason"] == "ok"]
    assert counts == [2 * n for n in range(1, len(counts) + 1)]
    assert {run["success"] for run in found if run["reason"] == "skipped"} == {None}


@sqlite_only
def test_wrapped_callables_are_handlers(start_daemon: StartDaemon, store_url: str) -> None:
    """`functools.wraps`, `partial` and a callable instance run under their configured names."""
    port = free_port()
    names = ("wrapped", "partial", "instance")
    daemon = start_daemon(
        HEAD + "".join(recurring(name, cooler="10ms") for name in names), gateway=f"127.0.0.1:{port}"
    )
    rows = Rows(store_url)
    eventually(lambda: all(len(runs(rows, name)) >= 2 for name in names), within=20, state=daemon.tail)
    for name in names:
        last = runs(rows, name)[-1]
        assert (last["reason"], json.loads(last["payload"] or "null")) == ("ok", name)

    def counted() -> bool:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return all(f'workerd_attempts_total{{handler="{name}",outcome="ok"' in text for name in names)

    eventually(counted, within=20, every=0.2)


# -- manual runs, pause and resume -------------------------------------------------------------


def live_row(rows: Rows, name: str) -> dict[str, Any] | None:
    found = rows.sql(
        "SELECT * FROM workerd_jobs WHERE handler = %s AND status IN ('new','scheduled','inprogress')", name
    )
    assert len(found) <= 1
    return found[0] if found else None


def waiting_after(rows: Rows, name: str, after: int) -> dict[str, Any] | None:
    """Return the chain's waiting row once `after` runs have ended."""
    row = live_row(rows, name)
    return row if row and row["status"] == "scheduled" and len(runs(rows, name)) == after else None


def assert_due_after(rows: Rows, name: str, seconds: float) -> None:
    """The next run is due `seconds` after the end of the last one."""
    row = live_row(rows, name)
    assert row is not None
    gap = moment(row["run_at"]) - moment(runs(rows, name)[-1]["ingested_at"])
    assert abs(gap - timedelta(seconds=seconds)) < timedelta(seconds=1)


SEQUENCE = """
[workflows.tidy]
cooler = "1h"
steps = [ { name = "one", jobs = ["partial"] }, { name = "two", jobs = ["wrapped"] } ]
"""


@sqlite_only
def test_a_chain_is_run_paused_and_resumed_manually(start_daemon: StartDaemon, store_url: str) -> None:
    """A manual run is the chain's next run, at once; a paused chain has none; resumed, it runs now."""
    daemon = start_daemon(HEAD + recurring("instance", cooler="1h"))
    rows = Rows(store_url)
    first = eventually(lambda: waiting_after(rows, "instance", 1), state=daemon.tail)
    assert first is not None
    done = daemon.cli("schedules", "run", "instance")
    assert done.stdout.strip() == uuid_text(first["id"])
    eventually(lambda: waiting_after(rows, "instance", 2), within=5, state=daemon.tail)
    assert_due_after(rows, "instance", 3600)
    daemon.cli("schedules", "pause", "instance")
    assert live_row(rows, "instance") is None
    (listed,) = json.loads(daemon.cli("schedules", "instance", "--json").stdout)["schedules"]
    assert (listed["kind"], listed["next_at"], listed["last_status"]) == ("cooler", None, "completed")
    assert listed["paused_at"]
    daemon.cli("schedules", "run", "instance")
    eventually(lambda: len(runs(rows, "instance")) == 3, within=5, state=daemon.tail)
    assert live_row(rows, "instance") is None
    daemon.cli("schedules", "resume", "instance")
    eventually(lambda: waiting_after(rows, "instance", 4) or waiting_after(rows, "instance", 3), within=10)


def test_a_recurring_workflow_is_submitted_manually(start_daemon: StartDaemon, store_url: str) -> None:
    """It runs at once and restarts the pause; a second request waits for the first."""
    daemon = start_daemon(HEAD + recurring("partial") + recurring("wrapped") + SEQUENCE)
    rows = Rows(store_url)
    requests = RequestRows(rows)
    eventually(lambda: waiting_after(rows, "tidy", 1), state=daemon.tail)
    assert_due_after(rows, "tidy", 3600)
    daemon.cli("request", "submit", "tidy", "n=1", "--wait", "10s")
    assert_due_after(rows, "tidy", 3600)
    for n in (2, 3):
        requests.insert("tidy", {"n": n})
    eventually(lambda: waiting_after(rows, "tidy", 4), within=10, state=daemon.tail)
    stored = rows.sql("SELECT * FROM workerd_requests ORDER BY completed_at")
    assert [json.loads(row["params"]) for row in stored] == [{}, {"n": 1}, {"n": 2}, {"n": 3}]
    assert {row["status"] for row in stored} == {"completed"}
    parts = rows.sql("SELECT * FROM workerd_jobs WHERE request_id IS NOT NULL ORDER BY started_at")
    assert [part["name"] for part in parts] == ["partial", "wrapped"] * 4
    assert_due_after(rows, "tidy", 3600)
    again = daemon.cli("schedules", "run", "tidy").stdout.strip()
    eventually(lambda: waiting_after(rows, "tidy", 5), within=10, state=daemon.tail)
    assert again in daemon.cli("request", "list").stdout


@pytest.mark.slow
@mysql_only
def test_a_schedule_dropped_from_every_configuration_stops(
    start_daemon: StartDaemon, tmp_path: Path, store_url: str
) -> None:
    """Reload removes its schedule and its waiting run; schedules that another node still has stay."""
    kept, gone = recurring("wrapped", cooler="1h"), recurring("instance", cooler="1h")
    ticks = recurring("partial", cron="0 0 1 1 *")
    first = start_daemon(HEAD + kept + gone + ticks, "one")
    second = start_daemon(HEAD + kept, "two")
    rows = Rows(store_url)

    def names() -> set[str]:
        return {row["name"] for row in rows.sql("SELECT name FROM workerd_schedules")}

    eventually(
        lambda: waiting_after(rows, "instance", 1) and waiting_after(rows, "wrapped", 1), state=first.tail
    )
    assert names() == {"wrapped", "instance", "partial"}
    first.write(HEAD + recurring("noop", "wrapped"))
    first.cli("reload")
    eventually(lambda: names() == {"wrapped"}, within=30, every=0.1, state=second.tail)
    assert live_row(rows, "instance") is None
    assert live_row(rows, "wrapped") is not None
