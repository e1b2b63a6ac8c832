"""Three daemons, each on its own node of a Galera cluster, through deaths of servers and daemons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.galera import Galera
from tests.support.rows import Rows, assert_settled

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

CONFIG = f"""
[shutdown]
drain = "10s"
[dispatcher]
lease = "5s"
[defaults]
path = ["{ROOT}"]
max_crashes = 100
backoff = {{ first = "10ms", factor = 1.0, max = "10ms" }}
[handlers.record]
call = "tests.support.handlers:record"
workers = 2
[handlers.fails_once]
call = "tests.support.handlers:behave"
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Galera]:
    cluster = Galera(3)
    try:
        yield cluster.start()
    finally:
        cluster.remove()


@pytest.fixture
def daemons(cluster: Galera, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[list[Daemon]]:
    urls = cluster.urls(f"w{abs(hash(request.node.name)) % 10**8}")
    made = [Daemon(tmp_path / f"n{n}", url, CONFIG, name=f"n{n}") for n, url in enumerate(urls, 1)]
    made[0].cli("migrate")
    try:
        for daemon in made:
            daemon.start(within=60)
        yield made
    finally:
        for daemon in made:
            daemon.end()


def assert_nothing_lost(rows: Rows, jobs: list[bytes]) -> None:
    found = rows.of(jobs)
    final_rows = Counter(row["id"] for row in found if row["status"] == "completed")
    assert set(final_rows) == set(jobs)
    assert set(final_rows.values()) == {1}
    assert_settled(rows)


def no_job_left(rows: Rows) -> bool:
    return rows.counts().keys() <= {"completed", "retry"}


def test_a_cluster_node_is_killed_and_restarted(
    cluster: Galera, daemons: list[Daemon], tmp_path: Path
) -> None:
    """Its daemon waits while the others keep working; no job is lost and none ends twice."""
    rows = Rows(daemons[0].url)
    runs = tmp_path / "runs"
    jobs: list[bytes] = []
    for _ in range(5):
        jobs += rows.insert_many("record", [{"path": str(runs)}] * 200)
        jobs += rows.insert_many("fails_once", [{"kind": "retry_then_ok"}] * 40)
    eventually(lambda: rows.counts().get("completed", 0) > 100)
    cluster.kill9(1)
    jobs += rows.insert_many("record", [{"path": str(runs)}] * 500)
    eventually(lambda: daemons[1].status()["store"]["state"] == "away", state=daemons[1].tail)
    # The waiting daemon keeps its claims as long as it lives; all other jobs end.
    cluster.restart_killed()
    jobs += rows.insert_many("record", [{"path": str(runs)}] * 500)
    eventually(lambda: daemons[1].status()["store"]["state"] == "up", within=60, state=daemons[1].tail)
    eventually(lambda: no_job_left(rows), within=120, every=0.2, state=lambda: rows.counts())
    assert_nothing_lost(rows, jobs)
    ran = {line.split()[0] for line in runs.read_text().splitlines()}
    assert len(ran) == 2000
    for daemon in daemons:
        assert daemon.stop() == 0
    assert rows.sql("SELECT name FROM workerd_nodes") == []


def test_two_daemons_are_killed_at_once(cluster: Galera, daemons: list[Daemon], tmp_path: Path) -> None:
    """The third rescues each of their jobs once, through any cluster node."""
    rows = Rows(daemons[0].url)
    runs = tmp_path / "runs"
    jobs = rows.insert_many("record", [{"path": str(runs), "wait": 0.02}] * 600)
    eventually(lambda: rows.counts().get("completed", 0) > 60)
    for daemon in daemons[1:]:
        daemon.kill("supervisor")
    eventually(lambda: no_job_left(rows), within=120, every=0.2, state=daemons[0].tail)
    assert_nothing_lost(rows, jobs)
    assert {row["reason"] for row in rows.of(jobs)} <= {"ok", "lost"}
    eventually(lambda: len(rows.sql("SELECT id FROM workerd_nodes")) == 1, within=60)
