"""Three daemons share a cron and a cooler for a minute; one is killed halfway."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows, assert_settled

MINUTE = 60
PAUSE = 0.2
CONFIG = """
[defaults]
path = ["{root}"]
env = {{ BEATS = "{beats}", BEAT_SECONDS = "0.05" }}

[dispatcher]
poll = "100ms"
lease = "2s"

[handlers.tick]
call = "tests.support.workflow_handlers:beat"
cron = "* * * * * *"

[handlers.chain]
call = "tests.support.workflow_handlers:beat"
cooler = "200ms"
"""


class Run(NamedTuple):
    """One run as the handler recorded it, in monotonic nanoseconds."""

    begin: int
    end: int
    job: str


def runs(path: Path, killed_at: int) -> list[Run]:
    """Return all runs in order; a killed run ends at `killed_at`."""
    started: dict[str, int] = {}
    found: list[Run] = []
    for line in path.read_text().splitlines():
        what, job, ns = line.split()
        if what == "end":
            found.append(Run(started.pop(job), int(ns), job))
        else:
            if job in started:  # a retry of the killed run
                found.append(Run(started[job], killed_at, job))
            started[job] = int(ns)
    return sorted(found)


@pytest.fixture
def daemons(tmp_path: Path, mysql_url: str, opened: Any) -> Iterator[list[Daemon]]:
    opened(mysql_url).migrate()
    config = CONFIG.format(root=ROOT, beats=tmp_path / "beats")
    made = [Daemon(tmp_path / name, mysql_url, config) for name in ("one", "two", "three")]
    yield made
    for daemon in made:
        daemon.end()


@pytest.mark.slow
def test_schedules_survive_a_killed_node(daemons: list[Daemon], tmp_path: Path, mysql_url: str) -> None:
    """Each tick fires once and its job completes; runs of the chain never overlap, and it continues."""
    rows = Rows(mysql_url)
    for daemon in daemons:
        daemon.start()

    def ticks() -> int:
        return int(
            rows.sql("SELECT COUNT(DISTINCT run_at) AS n FROM workerd_jobs WHERE handler = 'tick'")[0]["n"]
        )

    def runner() -> str | None:
        found = rows.sql(
            "SELECT node FROM workerd_jobs WHERE handler = 'chain' AND status = 'inprogress'"
            " AND node IS NOT NULL"
        )
        return found[0]["node"] if found else None

    eventually(lambda: ticks() >= MINUTE // 2, within=MINUTE, every=0.2)
    name = eventually(runner)
    victim = next(daemon for daemon in daemons if daemon.name == name)
    victim.kill_tree()
    killed_at = time.monotonic_ns()
    eventually(lambda: ticks() >= MINUTE, within=MINUTE, every=0.2)
    for daemon in daemons:
        if daemon is not victim:
            assert daemon.stop() == 0

    fired = rows.sql("SELECT DISTINCT run_at, id FROM workerd_jobs WHERE handler = 'tick' ORDER BY run_at")
    gaps = {after["run_at"] - before["run_at"] for before, after in pairwise(fired)}
    assert gaps == {timedelta(seconds=1)}
    chain = runs(tmp_path / "beats.chain", killed_at)
    assert len(chain) >= 2 * MINUTE
    for before, after in pairwise(chain):
        pause = PAUSE if before.end != killed_at else 0
        assert after.begin - before.end >= pause * 1e9, (before, after)
    ended = rows.sql("SELECT status, reason, COUNT(*) AS n FROM workerd_jobs GROUP BY status, reason")
    assert {(row["status"], row["reason"]) for row in ended} <= {
        ("completed", "ok"), ("retry", "lost"), ("new", None), ("scheduled", None),
    }  # fmt: skip
    assert_settled(rows)
