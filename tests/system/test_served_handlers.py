"""What the nodes of a store say that they serve: when they are ready, after a loss, and no more."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.storing import sql
from workerd.store import handlers
from workerd.store.base import Store

NOOP = f"""
[dispatcher]
lease = "6s"
[defaults]
path = ["{ROOT}"]
[handlers.noop]
call = "tests.support.handlers:noop"
"""
BOTH = f"""{NOOP}
[handlers.add]
call = "tests.support.handlers:add"
"""


def listed(daemon: Daemon) -> dict[str, dict[str, Any]]:
    found = json.loads(daemon.cli("handlers", "--json").stdout)["handlers"]
    return {handler["name"]: handler for handler in found}


def test_a_handler_is_known_when_the_node_is_ready(start_daemon: Callable[..., Daemon], store: Store) -> None:
    """With its signature, so that nobody who enqueues just then is refused or taken wrong."""
    daemon = start_daemon(BOTH)
    known = store.read(handlers.known)
    assert known.keys() == {"noop", "add"}, daemon.tail()
    assert known["add"] is not None
    assert daemon.stop() == 0


@pytest.mark.slow
def test_handlers_are_announced_again_when_the_node_is_registered_anew(
    start_daemon: Callable[..., Daemon], store: Store
) -> None:
    """As after a failover to a server that never had the rows of its start."""
    daemon = start_daemon(BOTH)
    before = store.read(handlers.known)
    for table in ("workerd_handlers", "workerd_nodes"):
        sql(store, f"DELETE FROM {table}")
    eventually(lambda: store.read(handlers.known) == before, state=daemon.tail)
    eventually(lambda: listed(daemon)["add"]["nodes"] == ["one"], state=daemon.tail)
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_handler_taken_out_of_the_configuration_is_unknown(
    start_daemon: Callable[..., Daemon], store: Store
) -> None:
    """After a reload, and after a restart: as if it never was. What other nodes serve is untouched."""
    daemon = start_daemon(BOTH)
    other = start_daemon(NOOP, "two")
    daemon.write(NOOP)
    assert daemon.cli("reload").returncode == 0
    assert store.read(handlers.known).keys() == {"noop"}
    assert listed(daemon)["noop"]["nodes"] == ["one", "two"]
    refused = daemon.cli("enqueue", "add", "a=1", "b=2", check=False)
    assert refused.returncode == 2
    assert "add" in refused.stderr
    assert daemon.stop() == 0
    daemon.write(BOTH)
    daemon.start()
    waiting = daemon.cli("enqueue", "add", "a=1", "b=2", "--delay", "1h").stdout.strip()
    assert daemon.stop() == 0
    daemon.write(NOOP)
    daemon.start()
    assert store.read(handlers.known).keys() == {"noop"}
    assert listed(daemon)["add"]["nodes"] == []
    daemon.cli("job", "retry", waiting)
    assert "No live node has the handler add" in daemon.cli("why", waiting).stdout
    assert daemon.stop() == 0
    assert other.stop() == 0


def test_a_class_with_cooler_that_does_not_recur_is_logged(start_daemon: Callable[..., Daemon]) -> None:
    """Once for each handler, not for each worker; a handler with the key is not named."""
    table = 'call = "tests.support.workflow_handlers:ActiveEverySecondTime"\nworkers = 2\npreload = false\n'
    daemon = start_daemon(f'{NOOP}[handlers.once]\n{table}[handlers.again]\n{table}cooler = "1h"\n')
    events = [json.loads(line) for line in daemon.logged().splitlines() if "handler.not_recurring" in line]
    assert [event["handler"] for event in events] == ["once"]
    assert daemon.stop() == 0
