"""What handlers, which run as the daemon's user, can read of the daemon's other processes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows, assert_settled

CONFIG = f"""
[gateway]
listen = "unix:{{folder}}/http"
[defaults]
path = ["{ROOT}"]
[handlers.inspect]
call = "tests.support.intruding_handlers:inspect"
"""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[tuple[Daemon, Rows]]:
    """A daemon without root's privilege to inspect every process."""
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("needs setpriv")
        prefix = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all")
    url = f"sqlite:///{tmp_path}/store.db"
    daemon = Daemon(tmp_path / "node", url, CONFIG.format(folder=tmp_path), prefix=prefix).start()
    rows = Rows(url)
    yield daemon, rows
    assert daemon.stop() == 0
    daemon.end()
    assert_settled(rows)


def test_handlers_can_inspect_no_process_that_has_the_stores_password(node: tuple[Daemon, Rows]) -> None:
    """Neither memory, environment, nor descriptors; of the pool they can. The metrics know all of them."""
    daemon, rows = node
    status = daemon.status()
    pids = {"supervisor": status["pid"]} | {name: role["pid"] for name, role in status["roles"].items()}
    pids["pool"] = status["pools"]["inspect"]["pid"]
    job = rows.insert("inspect", {"pids": pids})
    eventually(lambda: rows.ended(job), state=daemon.tail)
    readable = msgspec.json.decode(rows.last(job)["payload"])
    assert readable.pop("pool") == ["environ", "fd", "maps"]
    assert readable == {"supervisor": [], "ingester": [], "dispatcher": [], "gateway": []}
    document = daemon.status()
    assert all(one["rss_bytes"] > 1 << 20 for one in (document, *document["roles"].values()))
