"""Cron schedules in a running daemon: each tick fires once; missed and overlapping ticks."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows

StartDaemon = Callable[..., Daemon]
EVERY_SECOND = "* * * * * *"
SECOND = timedelta(seconds=1)

HEAD = f"""
[dispatcher]
poll = "50ms"
lease = "2s"

[shutdown]
drain = "500ms"

[defaults]
path = ["{ROOT}"]
"""


def handler(name: str, function: str = "wrapped", **keys: Any) -> str:
    lines = [f'\n[handlers.{name}]\ncall = "tests.support.workflow_handlers:{function}"']
    return "\n".join([*lines, *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]) + "\n"


def moment(value: Any) -> datetime:
    """Parse a time of a row; SQLite stores it as text."""
    return value if isinstance(value, datetime) else datetime.fromisoformat(str(value))


def ticks(rows: Rows, name: str) -> list[datetime]:
    """Return the due times of a schedule's jobs, in order."""
    found = rows.sql("SELECT run_at FROM workerd_jobs WHERE handler = %s AND attempt = 1", name)
    return sorted(moment(row["run_at"]) for row in found)


def assert_every_second(found: list[datetime]) -> None:
    """No tick is missing and none fired twice."""
    assert {after - before for before, after in pairwise(found)} == {SECOND}, found
    assert all(tick.microsecond == 0 for tick in found)


# -- ticks -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("store_url", ["mysql"], indirect=True)
def test_three_daemons_fire_each_tick_once(start_daemon: StartDaemon, store_url: str) -> None:
    """Ticks of handlers and of workflows; their jobs run."""
    config = handler("beat", cron=EVERY_SECOND) + handler("partial")
    config += f'\n[workflows.flow]\ncron = "{EVERY_SECOND}"\nsteps = [{{ name = "s", jobs = ["partial"] }}]\n'
    for name in ("one", "two", "three"):
        start_daemon(HEAD + config, name)
    rows = Rows(store_url)
    eventually(lambda: len(ticks(rows, "beat")) >= 8, within=20)
    assert_every_second(ticks(rows, "beat"))
    eventually(lambda: len(rows.sql("SELECT id FROM workerd_requests")) >= 7, within=20)
    fired = rows.sql("SELECT tick FROM workerd_ticks WHERE name LIKE '%%flow' ORDER BY tick")
    assert_every_second([moment(row["tick"]) for row in fired])
    (counts,) = rows.sql(
        "SELECT (SELECT COUNT(*) FROM workerd_requests) AS requests,"
        " (SELECT COUNT(*) FROM workerd_ticks WHERE name LIKE '%%flow') AS ticks"
    )
    assert counts["requests"] == counts["ticks"]
    eventually(lambda: rows.counts().get("completed", 0) >= 12, within=10)


def test_misfire_policies(start_daemon: StartDaemon, store_url: str) -> None:
    """After five missed days, `skip` fires none, `once` the newest and `all` each tick."""
    rows = Rows(store_url)
    today = datetime.now(UTC).replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0)
    last = today - timedelta(days=5)
    for name in ("skip", "once", "all"):
        rows.sql(
            "INSERT INTO workerd_schedules (name, kind, expression, timezone, last_tick)"
            " VALUES (%s, 'cron', '0 0 * * *', 'UTC', %s)",
            name, last.strftime("%Y-%m-%d %H:%M:%S"),
        )  # fmt: skip
    start_daemon(
        HEAD + "".join(handler(name, cron="0 0 * * *", misfire=name) for name in ("skip", "once", "all"))
    )
    eventually(lambda: rows.counts().get("completed") == 6, within=15)
    assert ticks(rows, "skip") == []
    assert ticks(rows, "once") == [today]
    assert ticks(rows, "all") == [last + timedelta(days=n) for n in range(1, 6)]


@pytest.mark.slow
@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_overlap_policies(start_daemon: StartDaemon, tmp_path: Path, store_url: str) -> None:
    """While the last run is active, `allow` fires, `skip` drops the tick and `queue` defers it."""
    gate = f'env = {{ GATE = "{tmp_path}/gate" }}\n'
    names = ("allow", "skip", "queue")
    daemon = start_daemon(
        HEAD + "".join(handler(n, "gated", cron=EVERY_SECOND, overlap=n) + gate for n in names)
    )
    rows = Rows(store_url)
    eventually(lambda: len(ticks(rows, "allow")) >= 4, within=15, state=daemon.tail)
    assert (len(ticks(rows, "skip")), len(ticks(rows, "queue"))) == (1, 1)
    (tmp_path / "gate").touch()
    eventually(lambda: len(ticks(rows, "queue")) >= 6, within=15, state=daemon.tail)
    assert_every_second(ticks(rows, "allow"))
    assert_every_second(ticks(rows, "queue"))
    skipped = ticks(rows, "skip")
    assert skipped[1] - skipped[0] > 2 * SECOND


# -- manual runs, pause and resume -------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("store_url", ["mysql"], indirect=True)
def test_a_cron_is_listed_paused_resumed_and_run(start_daemon: StartDaemon, store_url: str) -> None:
    """Ticks during a pause are not fired later; a manual run is not a tick."""
    daemon = start_daemon(
        HEAD
        + handler("beat", cron=EVERY_SECOND)
        + handler("rare", cron="30 8 * * 1", timezone="Europe/Berlin")
    )
    rows = Rows(store_url)
    eventually(lambda: len(ticks(rows, "beat")) >= 2, within=10, state=daemon.tail)
    daemon.cli("schedules", "pause", "beat")
    before = ticks(rows, "beat")
    listed = {s["name"]: s for s in json.loads(daemon.cli("schedules", "--json").stdout)["schedules"]}
    assert (listed["beat"]["next_at"], listed["rare"]["last_job"]) == (None, None)
    assert listed["beat"]["last_status"] in ("new", "completed")
    manual = daemon.cli("schedules", "run", "rare").stdout.strip()
    eventually(lambda: rows.counts().get("completed", 0) == len(before) + 1, within=10, state=daemon.tail)
    assert manual in daemon.cli("job", "list", "--handler", "rare").stdout
    eventually(lambda: datetime.now(UTC).replace(tzinfo=None) > before[-1] + 2 * SECOND)  # there was a tick
    assert ticks(rows, "beat") == before
    daemon.cli("schedules", "resume", "beat")
    eventually(lambda: len(ticks(rows, "beat")) >= len(before) + 2, within=10, state=daemon.tail)
    after = ticks(rows, "beat")[len(before) :]
    assert after[0] - before[-1] > SECOND
    assert_every_second(after)


def test_next_times_follow_the_timezone(tmp_path: Path) -> None:
    """`--next N NAME` prints 08:30 in Berlin as UTC, in summer and in winter."""
    zone = ZoneInfo("Europe/Berlin")
    daemon = Daemon(tmp_path / "node", f"sqlite:///{tmp_path}/s.db",
                    HEAD + handler("mail", cron="30 8 * * *", timezone="Europe/Berlin")
                    + handler("blink", cron="*/20 * * * * *"))  # fmt: skip
    daemon.cli("migrate")
    shown = daemon.cli("schedules", "--next", "300", "mail", "--json").stdout
    (document,) = json.loads(shown)["schedules"] if "schedules" in json.loads(shown) else [json.loads(shown)]
    times = [datetime.fromisoformat(text) for text in document["next"]]
    assert len(times) == 300
    assert {(t.astimezone(zone).hour, t.astimezone(zone).minute) for t in times} == {(8, 30)}
    assert {t.hour for t in times} == {6, 7}  # 300 days include both
    days = [t.astimezone(zone).date() for t in times]
    assert all(after - before == timedelta(days=1) for before, after in pairwise(days))
    lines = daemon.cli("schedules", "blink", "--next", "10").stdout.split()
    assert len(lines) == 10
    assert {line[-3:] for line in lines} == {"00Z", "20Z", "40Z"}
    wrong = handler("mail", cron="61 * * * *", timezone="Mars/Olympus")
    daemon.write(HEAD + wrong)
    checked = daemon.cli("check", check=False)
    assert checked.returncode == 2
    assert "cron expression" in checked.stderr
    assert "timezone" in checked.stderr
