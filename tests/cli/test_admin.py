"""What an administrator asks of a host and its store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.servers import DatabaseServer, free_port


def test_check_asks_each_server_of_the_store(tmp_path: Path, mysql_server: DatabaseServer) -> None:
    """Only with --store; version and role of each host, in a table too."""
    if not mysql_server.private:
        pytest.skip("the address of another's server is not known here")
    own, down = f"127.0.0.1:{mysql_server.port}", f"127.0.0.1:{free_port()}"
    url = mysql_server.url("mysql", tcp=True).replace(own, f"{down},{own}")
    node = Daemon(tmp_path / "node", url, "")
    assert "store" not in json.loads(node.cli("check", "--json").stdout)
    away, writable = json.loads(node.cli("check", "--store", "--json").stdout)["store"]
    assert (away["host"], away["role"]) == (down, "away")
    assert (writable["host"], writable["role"]) == (own, "writable")
    assert writable["version"]
    shown = node.cli("check", "--store").stdout
    assert any(row.split()[:1] == [own] and "writable" in row.split() for row in shown.splitlines())


def test_check_fails_without_a_server_that_can_be_written(tmp_path: Path) -> None:
    """And says what to do; the configuration itself is fine."""
    node = Daemon(tmp_path / "node", f"mysql://u:s3cret@127.0.0.1:{free_port()}/d", "")
    assert node.cli("check").returncode == 0
    done = node.cli("check", "--store", check=False)
    assert done.returncode == 1
    assert "No server of the store can be written now" in done.stderr
    assert "s3cret" not in done.stdout + done.stderr


def test_check_makes_no_embedded_store(tmp_path: Path) -> None:
    """One that is not there yet is no fault: the daemon makes it."""
    node = Daemon(tmp_path / "node", f"sqlite:///{tmp_path}/store.db", "")
    (state,) = json.loads(node.cli("check", "--store", "--json").stdout)["store"]
    assert state["role"] == "writable"
    assert "does not exist yet" in state["reason"]
    assert not (tmp_path / "store.db").exists()
