"""The ingester when the store is unavailable, when it is killed itself, and when the disk is full."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from tests.ingester.test_ingester import MakeHarness, counted, ends
from tests.support.ingesting import IngesterHarness, kill_self
from tests.support.rows import Rows
from tests.support.servers import DatabaseServer
from tests.support.slow_line import slow_line
from workerd.errors import CommitUnknown, StoreAway
from workerd.ingester import pending, spool
from workerd.ingester.spool import LOG_BYTES
from workerd.job import Status, new_id
from workerd.messages import Seen
from workerd.outcome import NextAttempt, Reason
from workerd.store.base import Store, Tx
from workerd.store.base import Store as BaseStore
from workerd.store.mysql_session import MySQLSession
from workerd.store.session import Session


@pytest.fixture
def durable_url(durable_server: DatabaseServer) -> str:
    """A database on `durable_server`."""
    return durable_server.url(durable_server.new_database())


def once(flag: Path, what: Callable[[], None]) -> Callable[[], None]:
    """`what` in the first process that gets there."""

    def call() -> None:
        try:
            flag.open("x").close()
        except FileExistsError:
            return
        what()

    return call


# -- the ingester is killed


def test_killed_between_commit_and_acknowledgement_it_records_once(
    make_harness: MakeHarness, store_url: str, tmp_path: Path
) -> None:
    """The pool sends again, the guards make it void, and no retry is inserted twice."""
    harness = make_harness(store_url)
    real = pending.PendingOutcomes.acknowledge
    kill = once(tmp_path / "flag", kill_self)

    def acknowledge(self: pending.PendingOutcomes, count: int) -> None:
        if count:
            kill()
        real(self, count)

    def sabotage() -> None:
        vars(pending.PendingOutcomes)  # patched in the child only
        pending.PendingOutcomes.acknowledge = acknowledge  # type: ignore[method-assign]

    made = harness.insert_claimed(40)
    retried = harness.insert_claimed(
        10, status=Status.RETRY, reason=Reason.ERROR, success=False, payload=None, payload_type=None,
        next=NextAttempt(delay_us=60_000_000, failures=1, crashes=0, losses=0),
    )  # fmt: skip
    harness.start(sabotage)
    pool = harness.pool().connect()
    pool.send(*made, *retried)
    assert harness.wait_for_exit() == -signal.SIGKILL
    assert pool.durable == 0
    assert ends(harness.rows)["completed", "ok"] == 40
    harness.until(lambda: pool.disconnects)
    harness.start(sabotage)
    pool.connect()
    harness.until(lambda: pool.all_durable)
    assert ends(harness.rows) == {("completed", "ok"): 40, ("retry", "error"): 10, ("scheduled", None): 10}


def test_a_commit_without_an_answer_is_sent_again_and_counted_once(
    make_harness: MakeHarness, store_url: str, tmp_path: Path
) -> None:
    """Whether it had taken effect or not: every attempt is recorded and counted exactly once."""
    harness = make_harness(store_url)

    for number, takes_effect in enumerate((True, False)):
        lose = [False]

        def sabotage(takes_effect: bool = takes_effect, number: int = number, lose: Any = lose) -> None:
            real: Any = BaseStore._commit

            def commit(self: BaseStore, session: Session, tx: Tx, write: bool) -> None:
                if not write or (tmp_path / f"lost{number}").exists() or not lose[0]:
                    real(self, session, tx, write)
                    return
                (tmp_path / f"lost{number}").touch()
                if takes_effect:
                    session.commit()
                self.close()
                raise CommitUnknown("the connection was lost", 2013)

            real_settle = pending.PendingOutcomes.add

            def add(self: pending.PendingOutcomes, *args: Any) -> None:
                lose[0] = True
                real_settle(self, *args)

            BaseStore._commit = commit  # type: ignore[method-assign]
            pending.PendingOutcomes.add = add  # type: ignore[method-assign]

        harness.start(sabotage)
        pool = harness.pool(f"pool{number}").connect()
        harness.until(lambda: harness.info["mode"] == "live")
        made = harness.insert_claimed(20)
        retried = harness.insert_claimed(
            5, status=Status.RETRY, reason=Reason.ERROR, success=False, payload=None, payload_type=None,
            next=NextAttempt(delay_us=60_000_000, failures=1, crashes=0, losses=0),
        )  # fmt: skip
        pool.send(*made, *retried)
        harness.until(lambda pool=pool: pool.all_durable)
        harness.until(lambda: harness.info["mode"] == "live" and harness.info["spool"]["bytes"] == 0)
        assert (tmp_path / f"lost{number}").exists()
        times = number + 1
        assert ends(harness.rows) == {
            ("completed", "ok"): 20 * times,
            ("retry", "error"): 5 * times,
            ("scheduled", None): 5 * times,
        }
        assert harness.stop() == 0
        assert counted(harness)["workerd_attempts_total echo ok true"] == 20 * times
        assert counted(harness)["workerd_attempts_total echo error false"] == 5 * times


def test_the_spool_of_a_former_incarnation_is_replayed_under_its_id(
    make_harness: MakeHarness, durable_server: DatabaseServer, durable_url: str
) -> None:
    """Killed while it spooled, even in the middle of a write: the next start brings everything home."""
    harness = make_harness(durable_url)
    made = harness.insert_claimed(60)
    durable_server.kill9()

    def sabotage() -> None:
        real = spool.Spool.append

        def append(self: spool.Spool, outcomes: Any) -> int:
            taken = real(self, outcomes)
            if self.rows >= 30:
                self._files[-1]._db.execute("BEGIN")
                self._files[-1]._db.execute("INSERT INTO outcomes VALUES (1000, 0, 'unfinished')")
                kill_self()
            return taken

        spool.Spool.append = append  # type: ignore[method-assign]

    harness.start(sabotage)
    pool = harness.pool().connect()
    pool.send(*made[:20])
    harness.until(lambda: pool.all_durable)
    pool.send(*made[20:])
    harness.wait_for_exit()
    assert pool.durable == 20
    durable_server.start()
    harness.incarnation = new_id()
    harness.start()
    harness.until(lambda: ends(harness.rows) == {("completed", "ok"): 60})
    harness.until(lambda: harness.info["spool"]["bytes"] == 0)
    assert list(harness.paths.spool.iterdir()) == []


# -- the store is unavailable


def test_during_an_outage_outcomes_go_to_the_spool_and_are_replayed_in_order(
    make_harness: MakeHarness, durable_server: DatabaseServer, durable_url: str
) -> None:
    """Acknowledged at once, recorded when the store is back, then live again by itself."""
    harness = make_harness(durable_url).start()
    pool = harness.pool().connect()
    made = harness.insert_claimed(3000)
    pool.send(*made[:100])
    harness.until(lambda: pool.all_durable)
    durable_server.kill9()
    pool.send(*made[100:2000])
    harness.until(lambda: pool.all_durable)
    info = harness.info
    assert info["mode"] == "away"
    assert info["spool"]["rows"] == 1900
    assert info["spool"]["bytes"] > 1900 * 50
    assert info["spool"]["since"] is not None
    assert harness.state == "waiting"
    assert "unavailable" in harness.beats[-1].trouble
    harness.until(lambda: counted(harness).get("workerd_spool_bytes", 0) > 0)
    durable_server.start()
    pool.send(*made[2000:])
    harness.until(lambda: pool.all_durable)
    harness.until(lambda: ends(harness.rows) == {("completed", "ok"): 3000})
    harness.until(lambda: harness.info["mode"] == "live")
    assert harness.state == "up"
    harness.until(lambda: counted(harness)["workerd_attempts_total echo ok true"] == 3000)
    harness.until(lambda: counted(harness)["workerd_spool_bytes"] == 0)
    assert any(name.startswith("workerd_store_errors_total") for name in counted(harness))


def test_it_starts_without_the_store(
    make_harness: MakeHarness, durable_server: DatabaseServer, durable_url: str
) -> None:
    """It sends the payload limit to the pools once it knows it."""
    harness = make_harness(durable_url, max_payload=64 << 20)
    made = harness.insert_claimed(10)
    durable_server.kill9()
    harness.start()
    pool = harness.pool().connect()
    pool.send(*made)
    harness.until(lambda: pool.all_durable)
    durable_server.start()
    harness.until(lambda: pool.limit == (8 << 20) - (64 << 10))
    harness.until(lambda: ends(harness.rows) == {("completed", "ok"): 10})


def test_a_store_without_its_tables_is_waited_for(
    make_harness: MakeHarness, mysql_url: str, opened: Callable[..., Store]
) -> None:
    """Nothing is written to a wrong schema version; once migrated, work resumes by itself."""
    harness = make_harness(mysql_url, migrated=False).start()
    pool = harness.pool().connect()
    harness.until(lambda: harness.state == "waiting")
    assert "migrate" in harness.beats[-1].trouble
    opened(mysql_url).migrate()
    pool.send(*harness.insert_claimed(5))
    harness.until(lambda: ends(harness.rows) == {("completed", "ok"): 5})


def test_a_server_that_hangs_counts_as_unavailable(
    make_harness: MakeHarness, durable_server: DatabaseServer, durable_url: str
) -> None:
    """A frozen server costs one time limit, shorter than the watchdog's."""
    harness = make_harness(durable_url).start(watchdog=2.0)
    pool = harness.pool().connect()
    made = harness.insert_claimed(50)
    pool.send(*made[:10])
    harness.until(lambda: pool.all_durable)
    durable_server.freeze()
    try:
        pool.send(*made[10:])
        harness.until(lambda: pool.all_durable)
        assert ends_when_thawed(durable_server, harness, 10)
    finally:
        durable_server.thaw()
    harness.until(lambda: ends(harness.rows) == {("completed", "ok"): 50})
    harness.until(lambda: harness.info["mode"] == "live")


def ends_when_thawed(server: DatabaseServer, harness: IngesterHarness, least: int) -> bool:
    """Whether the ingester reports that it waits for the frozen server."""
    harness.until(lambda: harness.state == "waiting")
    return harness.info["spool"]["rows"] >= least


def test_a_read_only_server_counts_as_unavailable_and_is_logged_once(
    make_harness: MakeHarness, durable_server: DatabaseServer, capfd: pytest.CaptureFixture[str]
) -> None:
    """It answers every look, but takes nothing: no flood in the log, no outcome refused."""
    name = durable_server.new_database()
    durable_server.sql(f"GRANT ALL ON {name}.* TO plain@'%' IDENTIFIED BY 'secret'")  # may not write now
    url = f"mysql://plain:secret@127.0.0.1:{durable_server.port}/{name}?unix_socket={durable_server.socket}"
    harness = make_harness(url).start()
    pool = harness.pool().connect()
    made = harness.insert_claimed(20)
    harness.until(lambda: harness.info["mode"] == "live")
    durable_server.sql("SET GLOBAL read_only = 1")
    pool.send(*made)
    harness.until(lambda: pool.all_durable)
    harness.until(lambda: counted(harness).get("workerd_store_errors_total 1290", 0) >= 4)
    durable_server.sql("SET GLOBAL read_only = 0")
    harness.until(lambda: ends(harness.rows) == {("completed", "ok"): 20})
    harness.until(lambda: harness.info["mode"] == "live")
    assert capfd.readouterr().err.count("store.unavailable") == 1
    assert harness.info["refused"] == 0


def test_an_outcome_that_breaks_every_connection_is_refused_in_the_end(
    make_harness: MakeHarness, mysql_url: str
) -> None:
    """A proxy may accept less than the server: no outcome is retried for ever, all others are recorded."""
    harness = make_harness(mysql_url)

    def sabotage() -> None:
        real: Any = MySQLSession._run

        def run(self: MySQLSession, sql: str, params: Sequence[object] = ()) -> Any:
            if len(self.statement(sql, params)) > 1 << 20:
                self.close()
                raise StoreAway("Lost connection to server during query", 2013)
            return real(self, sql, params)

        MySQLSession._run = run  # type: ignore[method-assign]

    harness.start(sabotage)
    pool = harness.pool().connect()
    made = harness.insert_claimed(9)
    made[4] = msgspec.structs.replace(made[4], payload=b"x" * (1 << 20), payload_type="bytes")
    pool.send(*made)
    harness.until(
        lambda: ends(harness.rows) == {("completed", "ok"): 8, ("failure", "refused"): 1}, within=60
    )
    assert "connection breaks" in harness.rows.last(made[4].id)["error"]
    harness.until(lambda: harness.info["mode"] == "live")


def test_a_barrier_is_not_answered_from_the_spool(
    make_harness: MakeHarness, durable_server: DatabaseServer, durable_url: str
) -> None:
    """Durable is not enough for a settlement, which reads the store."""
    harness = make_harness(durable_url)
    made = harness.insert_claimed(30)
    durable_server.kill9()
    harness.start()
    dispatcher, pool = harness.pool("dispatcher").connect(), harness.pool().connect()
    pool.send(*made)
    harness.until(lambda: pool.all_durable)
    dispatcher.barrier(7, pool.life)
    harness.until(lambda: harness.info["peers"] == 1)
    assert dispatcher.barriers == []
    durable_server.start()
    harness.until(lambda: dispatcher.barriers == [7])
    assert ends(harness.rows) == {("completed", "ok"): 30}


def test_a_full_spool_is_back_pressure_and_no_loss(
    make_harness: MakeHarness, durable_server: DatabaseServer, durable_url: str
) -> None:
    """Outcomes that do not fit stay unacknowledged; memory is bounded; all are recorded in the end."""
    harness = make_harness(durable_url, spool=100_000)
    made = harness.insert_claimed(2000)
    durable_server.kill9()
    harness.start()
    pool = harness.pool().connect()
    pool.send(*[msgspec.structs.replace(o, payload=b"x" * 500, payload_type="bytes") for o in made])
    harness.until(lambda: "full" in harness.beats[-1].trouble if harness.beats else False)
    info = harness.info
    assert 50 < pool.durable < 200
    assert info["spool"]["bytes"] <= 100_000
    assert sum(path.stat().st_size for path in harness.paths.spool.iterdir()) <= 2 * LOG_BYTES
    durable_server.start()
    harness.until(lambda: pool.all_durable)
    harness.until(lambda: ends(harness.rows) == {("completed", "ok"): 2000})


def test_a_spool_more_than_half_full_leaves_logs_out_first(
    make_harness: MakeHarness, durable_server: DatabaseServer, durable_url: str
) -> None:
    """The outcomes are all there; in place of a log is a sentence, and how large it was."""
    harness = make_harness(durable_url, spool=100_000)
    made = harness.insert_claimed(100)
    durable_server.kill9()
    harness.start()
    pool = harness.pool().connect()
    for outcome in made:  # one by one: the last ones find the spool half full
        pool.send(msgspec.structs.replace(outcome, log="x" * 2000, log_dropped=5))
        harness.until(lambda: pool.all_durable)
    assert harness.info["spool"]["bytes"] < 100_000
    durable_server.start()
    harness.until(lambda: ends(harness.rows) == {("completed", "ok"): 100})
    rows = harness.rows.sql("SELECT text, dropped FROM workerd_logs ORDER BY dropped")
    kept = [row for row in rows if row["dropped"] == 5]
    assert 10 < len(kept) < 50
    assert {row["text"] for row in kept} == {"x" * 2000}
    assert {row["dropped"] for row in rows[len(kept) :]} == {2005}
    assert all("spool more than half full" in row["text"] for row in rows[len(kept) :])
    assert len(rows) == 100


@pytest.mark.slow
def test_without_store_and_spool_it_stops_reading_at_a_bound(
    make_harness: MakeHarness, durable_server: DatabaseServer, durable_url: str
) -> None:
    """The senders' sockets fill up instead of this process, and everything is recorded in the end."""
    harness = make_harness(durable_url, spool=1000)
    made = harness.insert_claimed(60)
    durable_server.kill9()
    harness.start()
    pools = [harness.pool(f"pool{n}").connect() for n in range(4)]
    for pool, start in zip(pools, range(0, 60, 15), strict=True):
        rows = made[start : start + 15]
        big = [msgspec.structs.replace(o, payload=b"x" * (2 << 20), payload_type="bytes") for o in rows]
        pool.send(*big, at_once=1)
    harness.until(lambda: harness.info["waiting"] >= 10)
    harness.until(lambda: any(p.channel is not None and p.channel.unsent > 1 << 20 for p in pools))
    quiet: list[int] = []
    while len(quiet) < 20 or len(set(quiet[-20:])) > 1:
        quiet.append(harness.info["waiting"])
    assert quiet[-1] < 40
    durable_server.start()
    harness.until(lambda: all(pool.all_durable for pool in pools), within=60)
    assert ends(harness.rows) == {("completed", "ok"): 60}


def test_stop_during_an_outage_leaves_everything_in_the_spool(
    make_harness: MakeHarness, durable_server: DatabaseServer, durable_url: str
) -> None:
    """It ends at once, and the next start replays."""
    harness = make_harness(durable_url)
    made = harness.insert_claimed(500)
    durable_server.kill9()
    harness.start()
    pool = harness.pool().connect()
    pool.send(*made, at_once=20)
    harness.until(lambda: pool.channel is not None and not pool.channel.unsent)
    assert harness.stop() == 0
    harness.until(lambda: pool.all_durable)
    durable_server.start()
    harness.incarnation = new_id()
    harness.start()
    harness.until(lambda: ends(harness.rows) == {("completed", "ok"): 500})


# -- locks of others


def test_waiting_for_the_lock_of_a_handler_is_no_outage(
    make_harness: MakeHarness, durable_url: str, durable_server: DatabaseServer
) -> None:
    """Outcomes are in other rows: they go on, and the handler is written when the lock is released."""
    harness = make_harness(durable_url).start()
    pool = harness.pool().connect()
    harness.until(lambda: harness.info["mode"] == "live")
    pool.send_message(Seen(handler="echo", signature=None))
    harness.until(lambda: harness.rows.sql("SELECT * FROM workerd_handlers"))
    with durable_server.root(urlsplit(durable_url).path[1:]) as other, other.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("UPDATE workerd_handlers SET nodes = '[]'")
        pool.send_message(Seen(handler="echo", signature=b'{"x":"int"}'))
        harness.until(lambda: harness.info["mode"] == "live")
        pool.send(*harness.insert_claimed(10))
        harness.until(lambda: pool.all_durable)
        assert harness.info["mode"] == "live"
        assert not {beat.trouble for beat in harness.beats if "unavailable" in beat.trouble}
        cursor.execute("ROLLBACK")
    harness.until(lambda: harness.rows.sql("SELECT * FROM workerd_handlers")[0]["signature"])
    assert ends(harness.rows) == {("completed", "ok"): 10}


# -- slow lines


@pytest.mark.slow
def test_batches_shrink_on_a_slow_line_and_grow_again(
    make_harness: MakeHarness, mysql_server: DatabaseServer, mysql_url: str
) -> None:
    """While a batch is written nothing else is read, and all of it is lost if the line breaks."""
    url = mysql_server.url(urlsplit(mysql_url).path[1:], tcp=True)
    with slow_line(url, 600_000) as line:
        harness = make_harness(line.url(url))
        harness.rows = Rows(mysql_url)
        made = harness.insert_claimed(1200)
        sent = [msgspec.structs.replace(o, payload=os.urandom(2000), payload_type="bytes") for o in made]
        harness.start()
        pool = harness.pool().connect()
        pool.send(*sent[:300])
        harness.until(lambda: pool.all_durable)
        assert harness.info["last_batch"] == 300
        pool.send(*sent[300:600])
        harness.until(lambda: pool.all_durable)
        assert harness.info["last_batch"] <= 150
        line.bytes_s = 1e9
        for n in range(600, 1200, 150):
            pool.send(*sent[n : n + 150])
            harness.until(lambda: pool.all_durable)
        assert harness.info["last_batch"] == 150
    assert ends(harness.rows) == {("completed", "ok"): 1200}
