"""What an administrator asks of a host and its store."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.daemon import Daemon
from tests.support.rows import Rows
from tests.support.servers import DatabaseServer, free_port
from workerd.cli import handover
from workerd.cli.errors import CommandFailed, UsageError
from workerd.cli.handover import HandOver
from workerd.cli.main import main
from workerd.config.model import Config


def test_check_asks_each_server_of_the_store(tmp_path: Path, mysql_server: DatabaseServer) -> None:
    """Only with --store; version and role of each host, in a table too."""
    if not mysql_server.private:
        pytest.skip("the address of another's server is not known here")
    own, down = f"127.0.0.1:{mysql_server.port}", f"127.0.0.1:{free_port()}"
    name = mysql_server.new_database()
    url = mysql_server.url(name, tcp=True).replace(own, f"{down},{own}")
    node = Daemon(tmp_path / "node", url, "")
    node.cli("migrate")
    assert "store" not in json.loads(node.cli("check", "--json").stdout)
    away, writable = json.loads(node.cli("check", "--store", "--json").stdout)["store"]
    assert (away["host"], away["role"]) == (down, "away")
    assert (writable["host"], writable["role"]) == (own, "writable")
    assert writable["version"]
    shown = node.cli("check", "--store").stdout
    assert any(row.split()[:1] == [own] and "writable" in row.split() for row in shown.splitlines())
    mysql_server.drop_database(name)


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


@pytest.mark.slow
def test_check_fails_for_a_store_that_is_to_be_migrated(tmp_path: Path, mysql_url: str) -> None:
    """One without tables, which no daemon makes but in a file of its own, and one of the version before."""
    node = Daemon(tmp_path / "node", mysql_url, "")
    done = node.cli("check", "--store", check=False)
    assert done.returncode == 1
    assert "The store has no tables yet; run `workerd migrate`." in done.stdout
    report = json.loads(node.cli("check", "--store", "--json", check=False).stdout)
    assert report["store_faults"] == [report["schema"]]
    embedded = Daemon(tmp_path / "other", f"sqlite:///{tmp_path}/store.db", "")
    for older in (node, embedded):
        older.cli("migrate")
        assert older.cli("check", "--store").returncode == 0
        Rows(older.url).sql("DELETE FROM workerd_migrations WHERE version > 1")
        done = older.cli("check", "--store", check=False)
        assert (done.returncode, "schema 1, this one needs" in done.stdout) == (1, True)
        assert "run `workerd migrate`" in done.stdout


def test_check_says_what_it_did_not_look_at(tmp_path: Path) -> None:
    """Alone it does not ask the store; folders that are not there are named."""
    text = f'[pools.p]\npath = ["{tmp_path}/gone"]\n[handlers.h]\ncall = "os.path:getsize"\npool = "p"\n'
    node = Daemon(tmp_path / "node", f"sqlite:///{tmp_path}/store.db", text)
    shown = node.cli("check").stdout
    assert "Not checked:" in shown
    assert "check --store" in shown
    assert f"pools.p.path: {tmp_path}/gone does not exist" in shown
    asked = node.cli("check", "--store").stdout
    assert "Not checked" not in asked
    assert "workerd migrate" in asked


def test_check_names_privileges_that_are_missing(tmp_path: Path, mysql_server: DatabaseServer) -> None:
    """With the schema that was found; what a user may do is tried on no row."""
    if not mysql_server.private:
        pytest.skip("tests create no user on another's server")
    name = mysql_server.new_database()
    node = Daemon(tmp_path / "node", mysql_server.url(name), "")
    node.cli("migrate")
    whole = json.loads(node.cli("check", "--store", "--json").stdout)
    assert (whole["schema"], whole["store_faults"]) == ("Its schema is that of this version.", [])
    mysql_server.sql("CREATE USER reader@'%' IDENTIFIED BY 'x'")
    try:
        mysql_server.sql(f"GRANT SELECT, INSERT ON {name}.* TO reader@'%'")
        parts = urlsplit(mysql_server.url(name))
        url = parts._replace(netloc=f"reader:x@{parts.hostname}:{parts.port}").geturl()
        reading = Daemon(tmp_path / "reader", url, "")
        done = reading.cli("check", "--store", check=False)
        assert done.returncode == 1
        assert "This user lacks UPDATE, DELETE on workerd_jobs; grant it." in done.stdout
        assert "This user lacks DELETE on workerd_audit; grant it." in done.stdout
        mysql_server.sql(f"GRANT UPDATE, DELETE ON {name}.* TO reader@'%'")
        assert reading.cli("check", "--store").returncode == 0
    finally:
        mysql_server.sql("DROP USER reader@'%'")
        mysql_server.drop_database(name)


def test_migrate_makes_the_folder_of_an_embedded_store(tmp_path: Path) -> None:
    """And --sql prints what it would run, and changes nothing."""
    node = Daemon(tmp_path / "node", f"sqlite:///{tmp_path}/a/b/store.db", "")
    sql = node.cli("migrate", "--sql").stdout
    assert not (tmp_path / "a").exists()
    with closing(sqlite3.connect(tmp_path / "by_hand.db", isolation_level=None)) as connection:
        connection.executescript(sql)
    node.cli("migrate")
    assert (tmp_path / "a/b/store.db").exists()
    assert node.cli("migrate", "--sql").stdout == ""
    by_hand = Daemon(tmp_path / "other", f"sqlite:///{tmp_path}/by_hand.db", "")
    assert by_hand.cli("migrate").stdout == ""


def test_the_printed_migration_makes_the_tables(tmp_path: Path, mysql_server: DatabaseServer) -> None:
    """Run by an administrator, on a server that the user of workerd may not change."""
    name = mysql_server.new_database()
    node = Daemon(tmp_path / "node", mysql_server.url(name), "")
    for statement in node.cli("migrate", "--sql").stdout.split(";\n"):
        if statement.strip():
            mysql_server.sql(statement, database=name)
    assert "schema already" in node.cli("migrate").stderr
    mysql_server.drop_database(name)


def test_a_hand_over_needs_systemd_and_a_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else it changes nothing, and says what to do instead."""
    target = tmp_path / "root"
    assert main(["install", "--handover", "--prefix", str(target)]) == 2
    assert not target.exists()
    assert "--prefix" in capsys.readouterr().err
    monkeypatch.setattr(handover, "MANAGER", tmp_path / "none")
    assert main(["install", "--handover"]) == 2
    assert "needs systemd" in capsys.readouterr().err


def test_a_hand_over_from_an_earlier_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not be told to end; and without any daemon there is nothing to take over from."""
    monkeypatch.setattr(handover, "MANAGER", tmp_path)
    monkeypatch.setattr(handover.shutil, "which", lambda name: name)
    monkeypatch.setattr(handover.os, "geteuid", lambda: 0)
    monkeypatch.setattr(handover, "load_config", lambda path: Config())
    listed = "workerd.service loaded active running workerd\nworkerd@2.service loaded failed failed workerd\n"
    monkeypatch.setattr(handover, "_systemctl", lambda *_: subprocess.CompletedProcess((), 0, listed, ""))
    for status, message in (({}, "no daemon to take over from"), ({"version": "0.0.1"}, "systemctl restart")):
        monkeypatch.setattr(handover, "ask_status", lambda node, status=status: status)
        with pytest.raises(UsageError, match=message):
            HandOver(Path("/"))
    monkeypatch.setattr(handover, "ask_status", lambda node: {"generation": 1})
    assert HandOver(Path("/"))._generation == 2


def test_a_unit_that_does_not_start_in_time_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the hand-over fails with a message."""
    program = tmp_path / "systemctl"
    program.write_text(
        f'#!/bin/sh\necho "$1" >> {tmp_path}/calls\n'
        'case "$1" in\n'
        'list-units) echo "workerd.service loaded active running workerd" ;;\n'
        "start) exec sleep 300 ;;\n"
        "esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(handover, "MANAGER", tmp_path)
    monkeypatch.setattr(handover, "DROP_INS", tmp_path)
    monkeypatch.setattr(handover.os, "geteuid", lambda: 0)
    monkeypatch.setattr(handover, "load_config", lambda path: Config())
    monkeypatch.setattr(handover, "ask_status", lambda node: {"generation": 1})
    new = HandOver(Path("/"))
    monkeypatch.setattr(handover, "START_TIMEOUT_S", 1.0)
    with pytest.raises(CommandFailed, match="did not become ready"):
        new.run()
    assert (tmp_path / "calls").read_text().split()[-2:] == ["start", "stop"]


def test_drop_ins_of_the_first_unit_hold_for_later_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By links of their files, which follow what is there at the next hand-over; own ones are left."""
    monkeypatch.setattr(handover, "DROP_INS", tmp_path)
    first, later = tmp_path / "workerd.service.d", tmp_path / "workerd@.service.d"
    handover._share_drop_ins()
    assert not later.exists()
    first.mkdir()
    (first / "limits.conf").write_text("[Service]\n")
    (first / "old.conf").write_text("[Service]\n")
    handover._share_drop_ins()
    assert {path.name for path in later.iterdir()} == {"limits.conf", "old.conf"}
    (first / "old.conf").unlink()
    (later / "own.conf").write_text("")
    handover._share_drop_ins()
    assert {path.name for path in later.iterdir()} == {"limits.conf", "own.conf"}
    assert (later / "limits.conf").read_text() == "[Service]\n"
    handover.forget_drop_ins()
    assert {path.name for path in later.iterdir()} == {"own.conf"}
