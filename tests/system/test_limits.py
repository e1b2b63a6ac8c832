"""Limits over nodes whose processes are killed, and over reloads: never exceeded, nothing leaks."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows, assert_settled
from workerd.client import Client
from workerd.errors import InvalidValue

CONFIG = f"""
[shutdown]
drain = "5s"
[dispatcher]
lease = "2s"
poll = "100ms"
[limits.both]
concurrency = 3
group_concurrency = 1
[defaults]
path = ["{ROOT}"]
max_crashes = 1000
backoff = {{ first = "10ms", factor = 1.0, max = "10ms" }}
restart = {{ intensity = 100000, period = "1s" }}
[handlers.counted]
call = "tests.support.limit_handlers:count_overlaps"
limit = "both"
workers = 4
"""
JOBS = 240
KILLS = 6


def enqueue(rows: Rows, folder: Path) -> list[bytes]:
    """Jobs of seven groups, and of none."""
    marks = folder / "marks"
    marks.mkdir()
    return [
        rows.insert("counted", {"folder": str(marks), "most": 3}, group_key=f"g{n % 8}" if n % 8 else None)
        for n in range(JOBS)
    ]


def victims(daemons: list[Daemon]) -> list[psutil.Process]:
    """Dispatchers, ingesters, pools and workers."""
    found = []
    for daemon in daemons:
        for process in daemon.tree():
            with contextlib.suppress(psutil.Error):  # it has just died
                title = " ".join(process.cmdline())
                if any(word in title for word in ("dispatcher", "ingester", "pool", "worker counted")):
                    found.append(process)
    return found


@pytest.mark.slow
def test_no_more_run_than_the_limit_whatever_is_killed(
    store_url: str, tmp_path: Path, start_daemon: Callable[..., Daemon]
) -> None:
    """Two nodes; at the end every slot is free and every job was run."""
    chance = random.Random(7)
    rows = Rows(store_url)
    nodes = [start_daemon(CONFIG, "one")]
    if not rows.sqlite:
        nodes.append(start_daemon(CONFIG, "two"))
    ids = enqueue(rows, tmp_path)
    for number in range(KILLS):
        wanted = (number + 1) * JOBS // (KILLS + 2)
        eventually(lambda n=wanted: rows.counts().get("completed", 0) >= n, within=60)
        # For a moment there may be none: who has just been forked has no title yet.
        process = chance.choice(eventually(lambda: victims(nodes), within=60))
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
    eventually(lambda: rows.ended(*ids), within=60, state=nodes[0].tail)
    assert set(rows.counts()) - {"retry"} == {"completed"}
    over = tmp_path / "marks" / "over"
    assert not over.exists(), over.read_text()
    eventually(lambda: rows.sql("SELECT * FROM workerd_slots") == [])
    assert_settled(rows)


def reloaded_config(limit: str) -> str:
    """The handler `waits` with this limit, or with none."""
    table = f"[limits.{limit}]\nconcurrency = 1\ngroup_concurrency = 1\n" if limit else ""
    key = f'limit = "{limit}"' if limit else ""
    return f"""
[shutdown]
drain = "20s"
[reload]
overlap = "1h"
{table}
[defaults]
path = ["{ROOT}"]
[handlers.waits]
call = "tests.support.handlers:wait_for_file"
workers = 2
{key}
"""


@pytest.mark.slow
def test_a_limit_is_renamed_and_removed_while_jobs_hold_its_slots(
    store_url: str, tmp_path: Path, start_daemon: Callable[..., Daemon]
) -> None:
    """What runs keeps its slot of the old one until it ends, and counts for what holds now."""
    rows = Rows(store_url)
    daemon = start_daemon(reloaded_config("first"), "one")
    go = tmp_path / "go"
    ids = [rows.insert("waits", {"path": str(go)}, group_key=group) for group in ("x", "x", "x", "y", "y")]

    def running() -> int:
        return rows.counts().get("inprogress", 0)

    def slots() -> set[tuple[str, str]]:
        found = rows.sql("SELECT limit_name, scope FROM workerd_slots")
        return {(row["limit_name"], row["scope"]) for row in found}

    eventually(lambda: running() == 1, state=daemon.tail)
    daemon.write(reloaded_config("second"))
    daemon.cli("reload")
    both = {(name, scope) for name in ("first", "second") for scope in ("limit", "group")}
    eventually(lambda: slots() == both, state=daemon.tail)
    assert running() == 1
    daemon.write(reloaded_config(""))
    daemon.cli("reload")
    eventually(lambda: running() >= 3, state=daemon.tail)
    go.touch()
    eventually(lambda: rows.ended(*ids), state=daemon.tail)
    assert rows.counts() == {"completed": 5}
    eventually(lambda: slots() == set(), within=60)
    assert_settled(rows)


def limited_to(number: int) -> str:
    """The handler `waits` with a limit of so many."""
    return f"""
[limits.shared]
concurrency = {number}
[defaults]
path = ["{ROOT}"]
[handlers.waits]
call = "tests.support.handlers:wait_for_file"
workers = 4
limit = "shared"
"""


def test_of_two_nodes_with_different_limits_the_lower_one_holds(
    store_url: str, tmp_path: Path, start_daemon: Callable[..., Daemon]
) -> None:
    """Also while the other one's jobs hold slots; each log says it once, and `check` says it."""
    rows = Rows(store_url)
    if rows.sqlite:
        pytest.skip("a file has one node")
    go = tmp_path / "go"
    high = start_daemon(limited_to(3), "high")
    ids = [rows.insert("waits", {"path": str(go)}) for _ in range(8)]
    eventually(lambda: rows.counts().get("inprogress") == 3, state=high.tail)
    low = start_daemon(limited_to(2), "low")
    for daemon in (high, low):
        eventually(lambda d=daemon: "limit.differs" in d.logged(), state=daemon.tail)
    found = low.cli("check", "--store", check=False)
    assert "limits.shared: configured differently on high; the lower of each value holds" in (
        found.stdout + found.stderr
    )
    first = rows.sql("SELECT id FROM workerd_jobs WHERE status = 'inprogress'")
    go.touch()
    eventually(lambda: rows.ended(*ids), state=high.tail)
    assert rows.counts() == {"completed": 8}
    spans = rows.sql("SELECT id, claimed_at, ingested_at FROM workerd_jobs ORDER BY claimed_at, id")
    later = [row for row in spans if row["id"] not in {job["id"] for job in first}]
    for row in later:
        beside = [other for other in spans if other["claimed_at"] <= row["claimed_at"] < other["ingested_at"]]
        assert len(beside) <= 2, spans
    for daemon in (high, low):
        assert daemon.logged().count("limit.differs") == 1
    assert rows.sql("SELECT * FROM workerd_slots") == []
    assert_settled(rows)


def of_one_slot(*handlers: str, call: str, counted: str = "concurrency") -> str:
    """These handlers, which share a limit of one slot."""
    tables = [
        f'[handlers.{name}]\ncall = "tests.support.limit_handlers:{call}"\nworkers = 4\nlimit = "one"\n'
        for name in handlers
    ]
    return f"[limits.one]\n{counted} = 1\n[defaults]\npath = ['{ROOT}']\n" + "".join(tables)


def test_a_handler_that_a_reload_removes_keeps_its_limit_to_the_end(
    store_url: str, tmp_path: Path, start_daemon: Callable[..., Daemon]
) -> None:
    """The new dispatcher does not know its limit, and claims nothing for the old pool; what waits stays."""
    rows = Rows(store_url)
    marks = tmp_path / "marks"
    marks.mkdir()
    daemon = start_daemon(of_one_slot("kept", "removed", call="count_overlaps"), "one")
    rows.insert_many("removed", [{"folder": str(marks), "most": 1, "seconds": 0.02}] * 1000)
    eventually(lambda: rows.counts().get("completed", 0) > 10, state=daemon.tail)
    daemon.write(of_one_slot("kept", call="count_overlaps"))
    daemon.cli("reload")
    eventually(lambda: rows.counts().get("inprogress", 0) == 0, state=daemon.tail)
    assert not (marks / "over").exists()
    assert rows.counts()["new"] > 0
    assert rows.sql("SELECT * FROM workerd_slots") == []
    assert_settled(rows)


FLOOD, SINGLE, RUNS_BETWEEN = 3_000, 10, 20


@pytest.mark.slow
@pytest.mark.parametrize("counted", ["concurrency", "group_concurrency"])
def test_a_flood_of_one_node_leaves_another_its_turn(
    store_url: str, start_daemon: Callable[..., Daemon], counted: str
) -> None:
    """Of a limit that they share by different handlers, a single job waits for few runs, not hundreds."""
    rows = Rows(store_url)
    if rows.sqlite:
        pytest.skip("a file has one node")
    flooding, other = (
        start_daemon(of_one_slot(handler, call="work_or_hold", counted=counted), node)
        for handler, node in (("flood", "one"), ("single", "two"))
    )
    for daemon in (flooding, other):
        eventually(lambda d=daemon: d.cli("limits").stdout.count("flood, single") == 1, state=daemon.tail)
    rows.insert_many("flood", [{"seconds": 0.005}] * FLOOD)
    eventually(lambda: rows.counts().get("completed", 0) > 100, state=flooding.tail)

    def run_single() -> int:
        """How many jobs of the flood start until it does."""
        job = uuid.UUID(other.cli("enqueue", "single").stdout.split()[0]).bytes
        eventually(lambda: rows.ended(job), state=other.tail)
        row = rows.last(job)
        sql = (
            "SELECT COUNT(*) AS n FROM workerd_jobs WHERE handler = 'flood' AND claimed_at BETWEEN %s AND %s"
        )
        return int(rows.sql(sql, row["created_at"], row["claimed_at"])[0]["n"])

    run_single()  # meanwhile each learns of the other
    between = [run_single() for _ in range(SINGLE)]
    assert rows.counts().get("new", 0) > 0, between
    assert sum(between) < SINGLE * RUNS_BETWEEN, between
    flooding.cli("job", "cancel", "--handler", "flood", "--status", "new", "--yes")
    eventually(lambda: rows.sql("SELECT * FROM workerd_slots") == [])
    assert_settled(rows)


ODD_GROUPS = ["\U0001f4b6 'x' \"y\" \\ %s {z} -- ;", "é" * 191, "''", "a\nb\tc", "\u202e0"]


def test_groups_of_any_text_run_by_every_way_in(store_url: str, start_daemon: Callable[..., Daemon]) -> None:
    """With a limit of each group, in turns, and filled from vars."""
    config = f"""
[limits.each]
group_concurrency = 1
[groups]
"''" = 2
[defaults]
path = ["{ROOT}"]
[handlers.echo]
call = "tests.support.handlers:echo"
limit = "each"
fair = true
group = "{{tenant}}"
workers = 3
"""
    rows = Rows(store_url)
    daemon = start_daemon(config)
    ids: dict[bytes, str] = {}
    with Client(daemon.path) as client:
        for group in ODD_GROUPS:
            ids[rows.insert("echo", {"tenant": group})] = group
            ids[rows.insert("echo", {"tenant": "x"}, group_key=group)] = group
            ids[uuid.UUID(client.enqueue("echo", {"tenant": group}).id).bytes] = group
            ids[uuid.UUID(client.enqueue("echo", {"tenant": "x"}, group=group).id).bytes] = group
        daemon.cli("enqueue", "echo", "tenant=x", "--group", ODD_GROUPS[0], "--wait")
        for wrong in ("", "é" * 192, " "):
            with pytest.raises(InvalidValue, match="group"):
                client.enqueue("echo", {"tenant": "x"}, group=wrong)
    eventually(lambda: rows.counts().keys() == {"completed"}, state=daemon.tail)
    assert {row["id"]: row["group_key"] for row in rows.of(list(ids), "id, group_key")} == ids
    eventually(lambda: rows.sql("SELECT * FROM workerd_slots") == [])
    assert_settled(rows)


HELD_S, POLL_S = 2.0, 0.2
HOLDS = f"""
[dispatcher]
poll = "{POLL_S}s"
[limits.shared]
concurrency = 6
[defaults]
path = ["{ROOT}"]
[handlers.calls]
call = "tests.support.limit_handlers:work_or_hold"
limit = "shared"
workers = 3
"""


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["limit", "group"])
def test_a_hold_stops_every_node_within_one_poll(
    store_url: str, start_daemon: Callable[..., Daemon], scope: str
) -> None:
    """Three nodes on a server, one on a file: nothing is claimed of what is held, until the hold is over."""
    rows = Rows(store_url)
    nodes = [start_daemon(HOLDS, name) for name in (("one",) if rows.sqlite else ("one", "two", "three"))]
    nodes[0].cli("pause", "calls")
    # Ahead of all others, of which some are claimed beside it.
    holding = rows.insert("calls", {"hold": scope, "seconds": HELD_S}, group_key="a", priority=-1)
    for number in range(60):
        rows.insert("calls", group_key="ab"[number % 2])
    nodes[0].cli("resume", "calls")
    eventually(lambda: rows.counts().keys() == {"completed", "retry"}, within=60, state=nodes[0].tail)
    began = _moment(rows.attempts(holding)[0]["ingested_at"])
    end = began + timedelta(seconds=HELD_S)
    of_scope = "" if scope == "limit" else " WHERE group_key = 'a'"
    found = rows.sql(f"SELECT claimed_at FROM workerd_jobs{of_scope}")
    claims = [_moment(row["claimed_at"]) for row in found]
    assert [at for at in claims if began + timedelta(seconds=POLL_S) < at < end] == []
    assert any(at >= end for at in claims)
    assert_settled(rows)


@pytest.mark.parametrize("scope", ["limit", "group"])
def test_a_hold_is_ended_by_hand(store_url: str, start_daemon: Callable[..., Daemon], scope: str) -> None:
    """`why` tells how; what waits starts long before the hold would end."""
    rows = Rows(store_url)
    daemon = start_daemon(HOLDS, "one")
    rows.insert("calls", {"hold": scope, "seconds": 3600}, group_key="a")
    eventually(lambda: rows.counts() == {"retry": 1, "scheduled": 1}, state=daemon.tail)
    waiting = rows.insert("calls", group_key="a")
    words = ["limits", "unhold", "shared", *(["--group", "a"] if scope == "group" else [])]
    assert f"`workerd {' '.join(words)}` ends it." in daemon.cli("why", str(uuid.UUID(bytes=waiting))).stdout
    assert "is no longer held" in daemon.cli(*words).stderr
    eventually(lambda: rows.ended(waiting), state=daemon.tail)
    assert rows.counts() == {"retry": 1, "scheduled": 1, "completed": 1}
    assert_settled(rows)


def _moment(value: Any) -> datetime:
    """A time of either engine."""
    return datetime.fromisoformat(value) if isinstance(value, str) else value


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mariadb", "sqlite"])
def test_limits_hold_under_chaos(kind: str) -> None:
    """Three nodes on a server, one on a file; pools, workers, nodes and the server are killed."""
    words = ["--jobs", "400", "--rate", "50", "--store", kind, "--store-every", "4", "--seed", "3"]
    # A process of its own: the driver leaks the sockets of connections that a dead server refuses.
    trial = [sys.executable, "-m", "benchmarks.chaos_limits", *words]
    done = subprocess.run(trial, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
