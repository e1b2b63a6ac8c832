"""A line to the database of 40 KB/s: large rows and many schedules get through, no role is killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows, assert_settled
from tests.support.servers import DatabaseServer
from tests.support.slow_line import slow_line

BYTES_S = 40_000
WATCHDOG_S = 3
SCHEDULES = 400
CONFIG = f"""
[supervisor]
watchdog = "{WATCHDOG_S}s"
[dispatcher]
lease = "15s"
[defaults]
path = ["{ROOT}"]
[handlers.noop]
call = "tests.support.handlers:noop"
workers = 4
[pools.crons]
""" + "".join(
    f'[handlers.cron{n:04}]\ncall = "tests.support.handlers:noop"\npool = "crons"\ncron = "0 0 1 1 *"\n'
    for n in range(SCHEDULES)
)


@pytest.fixture
def tcp_url(mysql_server: DatabaseServer) -> Iterator[str]:
    if not mysql_server.private:
        pytest.skip("another's server need not listen here")
    name = mysql_server.new_database()
    yield mysql_server.url(name, tcp=True)
    mysql_server.drop_database(name)


@pytest.mark.slow
def test_large_rows_and_many_schedules_get_through(tmp_path: Path, tcp_url: str) -> None:
    """Each row of 150 KB takes longer than the watchdog, and all schedules do."""
    rows = Rows(tcp_url)
    with slow_line(tcp_url, BYTES_S) as line:
        daemon = Daemon(tmp_path / "one", line.url(tcp_url), CONFIG)
        Daemon(tmp_path / "two", tcp_url, CONFIG).cli("migrate")
        jobs = [rows.insert("noop", vars={"text": "x" * 150_000}) for _ in range(4)]
        try:
            daemon.start(within=120)
            eventually(lambda: all(rows.ended(job) for job in jobs), within=120, state=daemon.tail)
            count = "SELECT COUNT(*) AS n FROM workerd_schedules"
            eventually(lambda: rows.sql(count)[0]["n"] == SCHEDULES, within=120, state=daemon.tail)
            assert "child.exited" not in daemon.logged(), daemon.tail()
            assert "lease.expired" not in daemon.logged(), daemon.tail()
            assert daemon.stop() == 0
        finally:
            daemon.end()
        assert_settled(rows)
