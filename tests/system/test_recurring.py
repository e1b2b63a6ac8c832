"""Recurring handlers and workflows with the real daemon: chains that nothing breaks, one run at a time."""

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
    """A time of a row; SQLite has it as text."""
    return value if isinstance(value, datetime) else datetime.fromisoformat(str(value))


def runs(rows: Rows, name: str) -> list[dict[str, Any]]:
    """All attempts of a recurring handler that have ended, in order."""
    return rows.sql(
        "SELECT * FROM workerd_jobs WHERE handler = %s AND finished_at IS NOT NULL"
        " ORDER BY claimed_at, attempt",
        name,
    )


def assert_apart(found: list[dict[str, Any]], pause: float) -> None:
    """Each run began no sooner than the pause after the end of the one before it."""
    for before, after in pairwise(found):
        begun, ended = moment(after["started_at"]), moment(before["finished_at"])
        assert begun - ended >= timedelta(seconds=pause), (before, after)


def recurring(name: str, function: str = "", **keys: Any) -> str:
    lines = [f'\n[handlers.{name}]\ncall = "tests.support.workflow_handlers:{function or name}"']
    return "\n".join([*lines, *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]) + "\n"


# -- chains of handlers ------------------------------------------------------------------------


def test_no_ending_breaks_a_chain(start_daemon: StartDaemon, tmp_path: Path, store_url: str) -> None:
    """An error, two crashes, a deadline, a failure, an ignored error and a Retry: one attempt each."""
    beats = f'env = {{ BEATS = "{tmp_path}/beats" }}\n'
    turn = recurring("each_outcome", cooler=f"{PAUSE}s", deadline="150ms", grace="50ms",
                     ignore=["tests.support.handlers.Ignored"])  # fmt: skip
    daemon = start_daemon(HEAD + turn + beats)
    rows = Rows(store_url)
    eventually(lambda: len(runs(rows, "each_outcome")) >= 9, within=20, state=daemon.tail)
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


@mysql_only
def test_a_killed_pool_and_a_cancel_do_not_break_a_chain(
    start_daemon: StartDaemon, tmp_path: Path, store_url: str
) -> None:
    """A run that was lost is made up for; one that a person cancelled, running or waiting, is not."""
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
    waiting = eventually(lambda: live(rows, "late"), state=daemon.tail)
    assert waiting is not None
    daemon.cli("job", "cancel", uuid_text(waiting["id"]))
    eventually(lambda: live(rows, "late"), within=15, state=daemon.tail)


def slow(tmp_path: Path, seconds: float) -> str:
    return f'\n[pools.beat]\nenv = {{ BEATS = "{tmp_path}/beats", BEAT_SECONDS = "{seconds}" }}\n'


@mysql_only
def test_a_killed_node_does_not_break_a_chain(
    start_daemon: StartDaemon, tmp_path: Path, store_url: str
) -> None:
    """Another node goes on when the lease is over; the two runs are attempts of one job."""
    config = recurring("beat", cooler=f"{PAUSE}s")
    first = start_daemon(HEAD + config + slow(tmp_path, 60), "one")
    rows = Rows(store_url)
    eventually(lambda: rows.sql("SELECT 1 FROM workerd_jobs WHERE pid IS NOT NULL"), state=first.tail)
    second = start_daemon(HEAD + config + slow(tmp_path, 0), "two")
    for process in first.tree():
        process.kill()
    eventually(lambda: len(runs(rows, "beat")) >= 4, within=20, state=second.tail)
    found = runs(rows, "beat")
    assert [(run["reason"], run["attempt"]) for run in found[:3]] == [("lost", 1), ("ok", 2), ("ok", 1)]
    assert [run["node"] for run in found[:3]] == ["one", "two", "two"]
    assert_apart(found[1:], PAUSE)


@sqlite_only
def test_a_class_decides_whether_and_when(start_daemon: StartDaemon, store_url: str) -> None:
    """`active()` false skips a run, of which the newest row is kept; `cooler()` is the pause."""
    daemon = start_daemon(HEAD + recurring("choosy", "ActiveEverySecondTime", cooler="1h"))
    rows = Rows(store_url)
    eventually(lambda: rows.counts("reason").get("ok", 0) >= 4, within=20, state=daemon.tail)
    assert daemon.stop() == 0
    found = runs(rows, "choosy")
    assert_apart(found, 0.03)
    assert rows.counts("reason")["skipped"] == 1
    well = [json.loads(run["payload"]) for run in found if run["reason"] == "ok"]
    assert well == [2 * n for n in range(1, len(well) + 1)]
    assert {run["success"] for run in found if run["reason"] == "skipped"} == {None}


@sqlite_only
def test_what_wraps_a_handler_is_seen_through(start_daemon: StartDaemon, store_url: str) -> None:
    """`functools.wraps`, `partial` and an instance run, and are called as the configuration calls them."""
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


# -- by hand -----------------------------------------------------------------------------------


def live(rows: Rows, name: str) -> dict[str, Any] | None:
    found = rows.sql(
        "SELECT * FROM workerd_jobs WHERE handler = %s AND status IN ('new','scheduled','inprogress')", name
    )
    assert len(found) <= 1
    return found[0] if found else None


def waits(rows: Rows, name: str, after: int) -> dict[str, Any] | None:
    """The chain's waiting row once `after` runs have ended."""
    row = live(rows, name)
    return row if row and row["status"] == "scheduled" and len(runs(rows, name)) == after else None


def assert_due_after(rows: Rows, name: str, seconds: float) -> None:
    """The pause has started over from the end of the last run."""
    row = live(rows, name)
    assert row is not None
    gap = moment(row["run_at"]) - moment(runs(rows, name)[-1]["ingested_at"])
    assert abs(gap - timedelta(seconds=seconds)) < timedelta(seconds=1)


SEQUENCE = """
[workflows.tidy]
cooler = "1h"
steps = [ { name = "one", jobs = ["partial"] }, { name = "two", jobs = ["wrapped"] } ]
"""


@sqlite_only
def test_a_chain_is_run_paused_and_resumed_by_hand(start_daemon: StartDaemon, store_url: str) -> None:
    """A run by hand is the chain's own, at once; paused there is none; resumed it begins now."""
    daemon = start_daemon(HEAD + recurring("instance", cooler="1h"))
    rows = Rows(store_url)
    first = eventually(lambda: waits(rows, "instance", 1), state=daemon.tail)
    assert first is not None
    done = daemon.cli("schedules", "run", "instance")
    assert done.stdout.strip() == uuid_text(first["id"])
    eventually(lambda: waits(rows, "instance", 2), within=5, state=daemon.tail)
    assert_due_after(rows, "instance", 3600)
    daemon.cli("schedules", "pause", "instance")
    assert live(rows, "instance") is None
    (listed,) = json.loads(daemon.cli("schedules", "instance", "--json").stdout)["schedules"]
    assert (listed["kind"], listed["next_at"], listed["last_status"]) == ("cooler", None, "completed")
    assert listed["paused_at"]
    daemon.cli("schedules", "run", "instance")
    eventually(lambda: len(runs(rows, "instance")) == 3, within=5, state=daemon.tail)
    assert live(rows, "instance") is None
    daemon.cli("schedules", "resume", "instance")
    eventually(lambda: waits(rows, "instance", 4) or waits(rows, "instance", 3), within=10)


def test_a_recurring_workflow_is_submitted_by_hand(start_daemon: StartDaemon, store_url: str) -> None:
    """It runs at once and the pause starts over from its end; a second one waits for the first."""
    daemon = start_daemon(HEAD + recurring("partial") + recurring("wrapped") + SEQUENCE)
    rows = Rows(store_url)
    requests = RequestRows(rows)
    eventually(lambda: waits(rows, "tidy", 1), state=daemon.tail)
    assert_due_after(rows, "tidy", 3600)
    daemon.cli("request", "submit", "tidy", "n=1", "--wait", "10s")
    assert_due_after(rows, "tidy", 3600)
    for n in (2, 3):
        requests.insert("tidy", {"n": n})
    eventually(lambda: waits(rows, "tidy", 4), within=10, state=daemon.tail)
    requests = rows.sql("SELECT * FROM workerd_requests ORDER BY completed_at")
    assert [json.loads(row["params"]) for row in requests] == [{}, {"n": 1}, {"n": 2}, {"n": 3}]
    assert {row["status"] for row in requests} == {"completed"}
    parts = rows.sql("SELECT * FROM workerd_jobs WHERE request_id IS NOT NULL ORDER BY started_at")
    assert [part["name"] for part in parts] == ["partial", "wrapped"] * 4
    assert_due_after(rows, "tidy", 3600)
    again = daemon.cli("schedules", "run", "tidy").stdout.strip()
    eventually(lambda: waits(rows, "tidy", 5), within=10, state=daemon.tail)
    assert again in daemon.cli("request", "list").stdout


@pytest.mark.slow
@mysql_only
def test_what_the_configuration_has_no_more_stops(
    start_daemon: StartDaemon, tmp_path: Path, store_url: str
) -> None:
    """After a reload its schedule goes, and its waiting run; what another node still has stays."""
    kept, gone = recurring("wrapped", cooler="1h"), recurring("instance", cooler="1h")
    ticks = recurring("partial", cron="0 0 1 1 *")
    first = start_daemon(HEAD + kept + gone + ticks, "one")
    second = start_daemon(HEAD + kept, "two")
    rows = Rows(store_url)

    def names() -> set[str]:
        return {row["name"] for row in rows.sql("SELECT name FROM workerd_schedules")}

    eventually(lambda: waits(rows, "instance", 1) and waits(rows, "wrapped", 1), state=first.tail)
    assert names() == {"wrapped", "instance", "partial"}
    first.write(HEAD + recurring("noop", "wrapped"))
    first.cli("reload")
    eventually(lambda: names() == {"wrapped"}, within=30, every=0.1, state=second.tail)
    assert live(rows, "instance") is None
    assert live(rows, "wrapped") is not None
