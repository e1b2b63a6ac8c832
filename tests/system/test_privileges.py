"""A user of the database with the privileges that the documentation names, and no more."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest

from tests.docs.blocks import ROOT, blocks
from tests.support.daemon import ROOT as TESTED
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows, assert_settled
from tests.support.servers import PASSWORD, USER, DatabaseServer

CONFIG = f"""
[dispatcher]
poll = "100ms"
[limits.one]
concurrency = 1
rate = "1000/1s"
[defaults]
path = ["{TESTED}"]
[handlers.noop]
call = "tests.support.handlers:noop"
limit = "one"
keep_log = "all"
[handlers.often]
call = "tests.support.handlers:noop"
cron = "* * * * * *"
[handlers.fails]
command = ["/bin/sh", "-c", "echo said >&2; exit 1"]
fail_codes = [1]
[workflows.asks]
jobs = [
  {{ name = "first", handler = "noop" }},
  {{ name = "asked", signal = "yes", needs = ["first"] }},
  {{ name = "last", handler = "noop", needs = ["asked"] }},
]
"""


def _grants(server: DatabaseServer, name: str) -> list[str]:
    """What the page says to grant, for the tables of this database."""
    page = ROOT / "docs/how-to/service.md"
    [asked] = [block.text for block in blocks(page) if block.language == "sql"]
    return [row[0].rstrip(";") for row in server.sql(asked.rstrip().rstrip(";"), name)]


@pytest.mark.slow
def test_a_daemon_does_its_work_with_the_privileges_on_its_own_tables(
    tmp_path: Path, own_server: DatabaseServer
) -> None:
    """Of every kind, with the audit of what a person does; and `migrate` finds nothing to do."""
    name = own_server.new_database()
    admin = own_server.url(name, tcp=True)
    Daemon(tmp_path / "admin", admin, "").cli("migrate")
    own_server.sql("CREATE USER workerd@'%' IDENTIFIED BY 'own'")
    for grant in _grants(own_server, name):
        own_server.sql(grant)
    url = admin.replace(f"{USER}:{quote(PASSWORD, safe='')}@", "workerd:own@")
    assert url != admin
    with Daemon(tmp_path / "node", url, CONFIG) as node:
        assert node.cli("check", "--store").returncode == 0
        assert "nothing was changed" in node.cli("migrate").stderr
        node.cli("enqueue", "noop", "--unique", "k", "--wait", "30s")
        node.cli("enqueue", "fails", "--wait", "30s", check=False)
        request = node.cli("request", "submit", "asks").stdout.strip()
        node.cli("request", "signal", request, "yes", "by=ann")

        def filled(rows: str) -> bool:
            return bool(own_server.sql(f"SELECT COUNT(*) FROM {rows}", name)[0][0])

        eventually(lambda: filled("workerd_requests WHERE status = 'completed'"), state=node.tail)
        eventually(lambda: filled("workerd_ticks"), state=node.tail)
        node.cli("pause", "noop")
        node.cli("schedules", "pause", "often")
        [[group]] = own_server.sql("SELECT LOWER(HEX(fingerprint)) FROM workerd_errors", name)
        node.cli("errors", "resolve", group)
        assert filled("workerd_logs")
        assert not {"1142", "1143"} & node.status()["store"]["errors"].keys()
        assert "command denied" not in node.logged()
    assert_settled(Rows(admin))
