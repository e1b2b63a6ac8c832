"""The lease: registered, renewed, given up in time; and the node's deregistration."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.dispatching import (
    DispatcherHarness,
    MakeHarness,
    insert_jobs,
    is_registered,
    job_state,
    node_config,
)
from tests.support.servers import DatabaseServer
from workerd import clock
from workerd.job import new_id
from workerd.messages import Drain, Stop
from workerd.store import nodes
from workerd.store.base import Store
from workerd.store.nodes import NodeRecord


def test_the_lease_is_renewed(make_harness: MakeHarness, store: Store) -> None:
    """The node's row shows again and again that it is alive."""
    harness = make_harness(lease=0.6)
    harness.start()
    harness.until(lambda: harness.is_up)
    (first,) = store.read(nodes.list_)
    harness.until(lambda: store.read(nodes.list_)[0].lease_until > first.lease_until + 500_000)
    assert first.id == harness.incarnation
    assert first.name == "test"


def test_a_row_that_was_removed_is_registered_again(make_harness: MakeHarness, store: Store) -> None:
    """A node considered dead recovers by itself."""
    harness = make_harness(lease=0.6)
    harness.start()
    harness.until(lambda: harness.is_up)
    store.run(lambda tx: tx.execute("DELETE FROM workerd_nodes"))
    harness.until(lambda: is_registered(store, harness.incarnation))


@pytest.mark.parametrize(
    "lost",
    [
        "DELETE FROM workerd_nodes",
        "UPDATE workerd_nodes SET lease_until = '2001-01-01 00:00:00.000000'",
    ],
    ids=["removed", "over"],
)
def test_a_lease_that_was_over_by_the_stores_clock_is_given_up_first(
    make_harness: MakeHarness, store: Store, lost: str
) -> None:
    """As in a virtual machine that was suspended, whose own clock stood still: others may have its claims."""
    harness = make_harness(lease=3.0)
    harness.start()
    pool = harness.pool("h").connect()
    harness.until(lambda: harness.is_up and pool.lease_states and pool.lease_states[-1])
    before = len(pool.lease_states)
    store.run(lambda tx: tx.execute(lost))
    harness.until(lambda: pool.lease_states[before : before + 2] == [False, True])
    assert pool.releases


def test_the_name_of_a_live_node_is_refused(make_harness: MakeHarness, store: Store) -> None:
    """A second node of the same name reports it, claims nothing and asks the supervisor to stop."""
    harness = make_harness()
    twin = NodeRecord(id=new_id(), name="test", host="elsewhere", pid=1, boot_id="", version="0")
    store.run(lambda tx: nodes.register(tx, twin, 30.0))
    insert_jobs(store, "h")
    harness.start()
    pool = harness.pool("h").connect()
    pool.demand(1)
    harness.until(lambda: any(beat.fatal == 2 for beat in harness.beats))
    harness.serve(0.2)
    assert harness.beat.state == "failed"
    assert "node.name" in harness.beat.trouble
    assert not pool.claims


def test_a_wrong_schema_is_refused(make_harness: MakeHarness, store: Store) -> None:
    """With another schema version nothing is claimed, and `trouble` names the remedy."""
    store.run(lambda tx: tx.execute("INSERT INTO workerd_migrations (version, name) VALUES (99, 'newer')"))
    harness = make_harness()
    harness.start()
    harness.until(lambda: any(beat.fatal == 2 for beat in harness.beats))
    assert harness.beat.state == "failed"
    assert "99" in harness.beat.trouble


@pytest.mark.slow
def test_a_resumed_dispatcher_releases_before_it_continues(make_harness: MakeHarness, store: Store) -> None:
    """Stopped for longer than its lease, it first gives it up and has what waits released, then renews."""
    harness = make_harness(lease=1.0)
    harness.start()
    pool = harness.pool("h").connect()
    harness.until(lambda: harness.is_up and harness.settled())
    assert harness.dispatcher is not None
    harness.dispatcher.kill(signal.SIGSTOP)
    harness.serve(1.2)
    harness.dispatcher.kill(signal.SIGCONT)
    harness.until(lambda: pool.lease_states[-2:] == [False, True])
    assert pool.releases == [()]


@pytest.mark.slow
def test_an_outage_ends_the_lease_in_time_and_work_resumes(
    tmp_path: Path, own_server: DatabaseServer, opened: Callable[..., Store]
) -> None:
    """Store frozen: the lease is given up while the loop turns on; thawed: claims go on."""
    url = own_server.url(own_server.new_database())
    store = opened(url)
    store.migrate()
    harness = DispatcherHarness(store, node_config(tmp_path, url, lease=2.0))
    with contextlib.closing(harness):
        harness.start()
        pool = harness.pool("h").connect()
        pool.demand(5)
        harness.until(lambda: harness.is_up and harness.settled())
        own_server.freeze()
        harness.until(lambda: pool.lease_states[-1:] == [False])
        harness.until(lambda: harness.beat.state == "waiting")
        assert "resumes by itself" in harness.beat.trouble
        own_server.thaw()
        harness.until(lambda: pool.lease_states[-2:] == [False, True])
        insert_jobs(store, "h")
        harness.until(lambda: len(pool.claims) == 1)


def test_the_dispatcher_waits_for_a_store_that_is_not_up_yet(
    tmp_path: Path, own_server: DatabaseServer, opened: Callable[..., Store]
) -> None:
    """Started while the server is down, it comes up when the server does, without spinning."""
    url = own_server.url(own_server.new_database())
    store = opened(url)
    store.migrate()
    own_server.stop()
    harness = DispatcherHarness(store, node_config(tmp_path, url))
    with contextlib.closing(harness):
        child = harness.start()
        harness.until(lambda: harness.beat.state == "waiting")
        before = cpu_seconds(child.pid)
        harness.serve(1.0)
        assert cpu_seconds(child.pid) - before < 0.5
        own_server.start()
        harness.until(lambda: harness.is_up)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_an_empty_embedded_store_gets_its_schema(tmp_path: Path, opened: Callable[..., Store]) -> None:
    """The daemon migrates an empty SQLite store by itself."""
    url = f"sqlite:///{tmp_path}/fresh.db"
    store = opened(url)
    harness = DispatcherHarness(store, node_config(tmp_path, url))
    with contextlib.closing(harness):
        harness.start()
        harness.until(lambda: harness.is_up)
        store.check_version()


def test_an_empty_file_in_place_of_the_store_is_not_taken_for_it(
    tmp_path: Path, opened: Callable[..., Store]
) -> None:
    """The daemon makes a store once; afterwards a person decides that it may begin anew."""
    path = tmp_path / "store.db"
    store = opened(f"sqlite:///{path}")
    harness = DispatcherHarness(store, node_config(tmp_path, f"sqlite:///{path}"))
    with contextlib.closing(harness):
        harness.start()
        harness.until(lambda: harness.is_up)
        for file in (path, *tmp_path.glob("store.db-*")):
            file.unlink(missing_ok=True)
        path.touch()
        harness.until(lambda: harness.beat.state == "failed")
        assert "run `workerd migrate`" in harness.beat.trouble
        assert store.is_empty()
        store.migrate()
        harness.until(lambda: harness.is_up)


def test_a_restarted_dispatcher_does_not_make_the_store_anew(
    tmp_path: Path, opened: Callable[..., Store]
) -> None:
    """A file that is gone since is an outage, which ends when the file is back or a person begins anew."""
    path = tmp_path / "store.db"
    store = opened(f"sqlite:///{path}")
    harness = DispatcherHarness(store, node_config(tmp_path, f"sqlite:///{path}"))
    with contextlib.closing(harness):
        harness.start(store_was_used=True)
        harness.until(lambda: harness.beat.state == "waiting")
        assert "was removed; put its file back" in harness.beat.trouble
        harness.serve(0.5)
        assert not path.exists()
        store.migrate()
        harness.until(lambda: harness.is_up)


def test_deregistration_leaves_no_claim_and_no_row_behind(make_harness: MakeHarness, store: Store) -> None:
    """At Stop orphaned claims are settled, then the node's row is removed, then the process ends with 0."""
    harness = make_harness()
    ids = insert_jobs(store, "h", 2)
    child = harness.start()
    pool = harness.pool("h").connect()
    pool.demand(2)
    harness.until(lambda: len(pool.claims) == 2)
    harness.send(Drain(seconds=30))
    pool.silent = True
    harness.report_death(pool)
    harness.send(Stop())
    harness.until(lambda: child.reap() is not None)
    assert child.status == 0
    assert not is_registered(store, harness.incarnation)
    assert {job_state(store, job)[0] for job in ids} == {"scheduled"}


def test_the_dispatcher_ends_at_once_while_the_store_is_unavailable(
    tmp_path: Path, opened: Callable[..., Store]
) -> None:
    """Stop does not wait for a store that cannot be reached."""
    url = "mysql://u:p@127.0.0.1:1/none"
    harness = DispatcherHarness(opened(url), node_config(tmp_path, url))
    with contextlib.closing(harness):
        child = harness.start()
        harness.until(lambda: harness.beat.state == "waiting")
        harness.send(Stop())
        harness.until(lambda: child.reap() is not None)
        assert child.status == 0


def test_a_clock_of_the_store_that_was_set_back_is_published(
    tmp_path: Path, opened: Callable[..., Store]
) -> None:
    """The node keeps its lease, and its row tells `workerd schedules` what happened."""
    url = f"sqlite:///{tmp_path}/store.db"
    store = opened(url)
    store.migrate()
    shift = tmp_path / "shift"
    shift.write_text("0")

    def follow_file() -> None:  # the clock of an embedded store is the machine's
        real = clock.now_us
        clock.now_us = lambda: real() + int(shift.read_text())

    harness = DispatcherHarness(store, node_config(tmp_path, url, lease=0.6))
    try:
        harness.start(follow_file)
        harness.until(lambda: harness.is_up)
        shift.write_text(str(-600 * clock.SECOND))
        harness.until(lambda: store.read(nodes.list_)[0].published.clock_set_back is not None)
        step = store.read(nodes.list_)[0].published.clock_set_back
        assert step is not None
        assert 598.0 < step.by_s < 602.0
        harness.serve(0.7)
        assert harness.beat.info["lease_held"]
        assert store.read(nodes.list_)[0].published.clock_set_back == step, "told once"
    finally:
        harness.close()
