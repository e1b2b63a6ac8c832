"""The ingester while the store is available: batches, acknowledgements, limits, refusals, barriers, stop."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.ingesting import Pool, World
from tests.support.rows import Rows
from workerd.job import Status
from workerd.messages import Outcomes, Progress, Seen
from workerd.metrics import exposition
from workerd.metrics.series import SeriesSums
from workerd.outcome import NextAttempt, Outcome, Reason, Usage
from workerd.store.base import Store

MakeWorld = Callable[..., World]


@pytest.fixture
def make(tmp_path: Path, opened: Callable[..., Store]) -> Iterator[MakeWorld]:
    """Makes nodes whose store is migrated, with an ingester that is not started yet."""
    worlds: list[World] = []

    def making(url: str, *, migrated: bool = True, **ingester: Any) -> World:
        if migrated:
            store = opened(url)
            store.migrate()
            store.close()
        worlds.append(World(tmp_path, url, **ingester))
        return worlds[-1]

    yield making
    for world in worlds:
        world.close()


@pytest.fixture
def world(make: MakeWorld, store_url: str) -> World:
    """An ingester on an empty store of each engine."""
    return make(store_url).start()


@pytest.fixture
def mysql(make: MakeWorld, mysql_url: str) -> World:
    """An ingester on MariaDB."""
    return make(mysql_url).start()


def ends(rows: Rows) -> dict[tuple[str, str | None], int]:
    found = rows.sql("SELECT status, reason, COUNT(*) AS n FROM workerd_jobs GROUP BY status, reason")
    return {(row["status"], row["reason"]): row["n"] for row in found}


def counted(world: World) -> dict[str, float]:
    """What the metrics say: samples by name and label values."""
    sums = SeriesSums()
    for beat in world.beats:
        sums.add(beat.counted)
    spool = next((beat.info["spool"] for beat in reversed(world.beats) if beat.info), None)
    families = [*exposition.from_series(sums), *exposition.from_status({"spool": spool})]
    text, _ = exposition.render(families, {})
    return {
        " ".join([sample.name, *(sample.labels[key] for key in sorted(sample.labels))]): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


# -- batches and acknowledgements


def test_outcomes_are_recorded_in_batches_and_acknowledged(world: World) -> None:
    """Every row carries its end, and every outcome is acknowledged once that is committed."""
    pool = world.pool().connect()
    made = world.claimed(1200)
    pool.send(*made)
    world.until(lambda: pool.all_durable)
    assert ends(world.rows) == {("completed", "ok"): 1200}
    row = world.rows.last(made[0].id)
    assert row["payload"] == b"null"
    assert (row["run_us"], row["cpu_us"], row["max_rss_kib"]) == (1000, 900, 20_000)
    info = world.info
    assert info["mode"] == "live"
    assert info["received"] == 1200
    assert 3 <= info["batches"] < 100
    assert info["waiting"] == 0
    assert info["last_commit_ms"] > 0
    assert world.state == "up"


def test_a_lone_outcome_does_not_wait_for_others(make: MakeWorld, store_url: str) -> None:
    """The linger holds back what comes in a row, not what comes alone."""
    world = make(store_url, linger=20.0).start()
    pool = world.pool().connect()
    pool.send(*world.claimed(1))
    world.until(lambda: pool.all_durable, within=10)


def test_what_comes_in_a_row_is_written_together(make: MakeWorld, store_url: str) -> None:
    """After a write the next waits for the linger, unless its batch is full."""
    world = make(store_url, linger=0.2, batch=100).start()
    pool = world.pool().connect()
    made = world.claimed(90)
    pool.send(*made[:20])
    world.until(lambda: pool.all_durable)
    for start in range(20, 90, 7):
        pool.send(*made[start : start + 7])
        world.loop.turn(0.001)
    world.until(lambda: pool.all_durable)
    assert world.info["batches"] < 5
    made = world.claimed(300)
    pool.send(*made, at_once=300)
    world.until(lambda: pool.all_durable)
    assert world.info["last_batch"] <= 100


def test_an_outcome_sent_twice_has_one_effect(world: World) -> None:
    """In one frame, in two, and from two connections: the first is what counts."""
    made = world.claimed(3)
    late = [msgspec.structs.replace(o, status=Status.FAILURE, reason=Reason.LOST, success=None) for o in made]
    one, two = world.pool("one").connect(), world.pool("two").connect()
    one.send(made[0], late[0], made[1], made[1])
    one.send(made[2])
    world.until(lambda: one.all_durable)
    two.send(*late)
    world.until(lambda: two.all_durable)
    assert ends(world.rows) == {("completed", "ok"): 3}
    world.until(lambda: counted(world).get("workerd_attempts_total echo ok true") == 3)
    assert not any("lost" in name for name in counted(world))


def test_a_gap_in_the_numbers_closes_the_connection(world: World) -> None:
    """An acknowledgement would cover what never came."""
    pool = world.pool().connect()
    pool.send(*world.claimed(2))
    world.until(lambda: pool.all_durable)
    pool.say(Outcomes(first=7, outcomes=world.claimed(1)))
    world.until(lambda: pool.broken)
    assert pool.durable == 2
    pool.connect()
    pool.send(*world.claimed(1))
    world.until(lambda: pool.all_durable)


def test_a_pool_that_does_not_read_delays_no_other(world: World) -> None:
    """Its acknowledgements wait in its own socket."""
    deaf = world.pool("deaf").connect()
    assert deaf.channel is not None
    deaf.channel.pause()
    for _ in range(50):
        deaf.send(*world.claimed(20), at_once=1)
    pool = world.pool().connect()
    pool.send(*world.claimed(100))
    world.until(lambda: pool.all_durable)
    world.until(lambda: ends(world.rows) == {("completed", "ok"): 1100})
    deaf.channel.resume()
    world.until(lambda: deaf.all_durable)


def test_a_broken_frame_closes_only_its_own_connection(world: World) -> None:
    """Whatever a connection sends, the others are served."""
    for rubbish in (b"\xff" * 100, b"\x00\x00\x00\x05hello", b"\x7f\xff\xff\xff", os.urandom(5000)):
        broken = world.pool("broken").connect()
        assert broken.channel is not None
        with socket.socket(fileno=os.dup(broken.channel.fileno())) as raw:
            world.turn()
            raw.send(rubbish)
            raw.shutdown(socket.SHUT_WR)
        world.until(lambda broken=broken: broken.broken)
    pool = world.pool().connect()
    pool.send(*world.claimed(10))
    world.until(lambda: pool.all_durable)


# -- metrics


def test_metrics_follow_only_from_what_took_effect(world: World) -> None:
    """Releases and skipped runs are no runs; an ignored error is a success."""
    pool = world.pool().connect()
    kinds: list[tuple[int, dict[str, Any]]] = [
        (5, {}),
        (4, {"reason": Reason.IGNORED, "payload": None, "payload_type": None}),
        (3, {"reason": Reason.SKIPPED, "success": None, "payload": None, "payload_type": None}),
        (2, {"status": Status.FAILURE, "reason": Reason.ERROR, "success": False}),
        (1, {"status": Status.CANCELLED, "reason": Reason.CANCELLED, "success": None}),
        (6, {"status": Status.NEW, "reason": None, "success": None, "started_at": None, "finished_at": None}),
    ]
    for count, given in kinds:
        pool.send(*world.claimed(count, **given))
    foreign = world.claimed(1)
    pool.send(msgspec.structs.replace(foreign[0], claimed_at=foreign[0].claimed_at - 1))
    world.until(lambda: pool.all_durable)
    world.until(lambda: counted(world).get("workerd_attempts_total echo cancelled none") == 1)
    found = counted(world)
    assert {k: v for k, v in found.items() if k.startswith("workerd_attempts_total")} == {
        "workerd_attempts_total echo ok true": 5,
        "workerd_attempts_total echo ignored true": 4,
        "workerd_attempts_total echo error false": 2,
        "workerd_attempts_total echo cancelled none": 1,
    }
    assert found["workerd_run_seconds_count echo true"] == 9
    assert found["workerd_run_seconds_sum echo true"] == pytest.approx(0.009)
    assert found["workerd_run_seconds_bucket echo 0.001 true"] == 9
    assert found["workerd_queue_seconds_count echo"] == 12
    assert found["workerd_ingest_batch_sum"] == 22
    assert found["workerd_ingest_seconds_count"] == found["workerd_ingest_batch_count"]
    assert found["workerd_spool_bytes"] == 0


# -- what the store does not take


def test_a_refused_row_stops_no_other(world: World) -> None:
    """Its attempt ends as a failure with the server's words and without payload; the others are recorded."""
    pool = world.pool().connect()
    made = world.claimed(200)
    refuse(world, "NEW.payload = 'poison'")
    bad = [msgspec.structs.replace(made[n], payload=b"poison", payload_type="bytes") for n in (0, 77, 199)]
    sent = [next((b for b in bad if b.id == o.id), o) for o in made]
    pool.send(*sent)
    world.until(lambda: pool.all_durable)
    assert ends(world.rows) == {("completed", "ok"): 197, ("failure", "refused"): 3}
    row = world.rows.last(made[77].id)
    assert "it is poison" in row["error"]
    assert (row["payload"], row["success"]) == (None, 0)
    assert world.info["refused"] == 3


def test_a_row_that_cannot_be_recorded_in_any_form_is_set_aside(world: World) -> None:
    """It is acknowledged and never sent again; what it was is in a file for a person."""
    pool = world.pool().connect()
    made = world.claimed(50)
    cursed = world.claimed(1, handler="cursed")
    refuse(world, "NEW.handler = 'cursed'")
    pool.send(*made[:25], *cursed, *made[25:])
    world.until(lambda: pool.all_durable)
    assert ends(world.rows) == {("completed", "ok"): 50, ("inprogress", None): 1}
    (line,) = (world.paths.state / "quarantine" / "outcomes.jsonl").read_text().splitlines()
    kept = json.loads(line)
    assert "it is poison" in kept["why"]
    assert kept["outcome"]["handler"] == "cursed"
    assert world.info["set_aside"] == 1
    assert world.info["mode"] == "live"


def test_a_store_that_refuses_everything_counts_as_unavailable(world: World) -> None:
    """A fault of the whole store does not set one attempt after the other aside."""
    pool = world.pool().connect()
    made = world.claimed(30)
    refuse(world, "NEW.handler = 'echo'")
    pool.send(*made)
    world.until(lambda: pool.all_durable)
    assert world.info["mode"] == "away"
    assert world.info["set_aside"] <= 3
    assert "refuses every outcome" in world.beats[-1].trouble
    forgive(world)
    world.until(lambda: world.info["mode"] == "live")
    assert ends(world.rows).get(("completed", "ok"), 0) >= 27


def test_a_payload_over_the_limit_is_refused_with_a_sentence(make: MakeWorld, store_url: str) -> None:
    """The limit and what to do stand in the error."""
    world = make(store_url, max_payload=5000).start()
    pool = world.pool().connect()
    made = world.claimed(3)
    world.until(lambda: pool.limit)
    assert pool.limit == 5000
    pool.send(made[0], msgspec.structs.replace(made[1], payload=b"x" * 5001, payload_type="bytes"), made[2])
    world.until(lambda: pool.all_durable)
    row = world.rows.last(made[1].id)
    assert (row["status"], row["reason"], row["payload"]) == ("failure", "refused", None)
    assert "5001 bytes, at most 5000" in row["error"]
    assert ends(world.rows) == {("completed", "ok"): 2, ("failure", "refused"): 1}


def test_large_outcomes_fit_into_what_the_server_takes_at_once(mysql: World) -> None:
    """500 of 30 KiB, some of megabytes and an error of 70,000 letters, at max_allowed_packet 16 MiB."""
    pool = mysql.pool().connect()
    mysql.until(lambda: pool.limit)
    assert mysql.rows.sql("SELECT @@max_allowed_packet AS size")[0]["size"] == 16 << 20
    assert pool.limit == 4 << 20
    made = mysql.claimed(504)
    sent = [msgspec.structs.replace(o, payload=os.urandom(30 * 1024), payload_type="bytes") for o in made]
    for n in (1, 2, 3):
        sent[n] = msgspec.structs.replace(sent[n], payload=b"'" * (4 << 20))
    sent[250] = msgspec.structs.replace(
        sent[250], payload=None, payload_type=None, status=Status.FAILURE, reason=Reason.ERROR,
        success=False, error="e" * 70_000,
    )  # fmt: skip
    pool.send(*sent)
    mysql.until(lambda: pool.all_durable, within=60)
    assert sum(ends(mysql.rows).values()) == 504
    assert ends(mysql.rows)["completed", "ok"] == 503
    assert mysql.rows.last(made[250].id)["status"] == "failure"
    for n in (0, 1, 100, 503):
        assert mysql.rows.last(made[n].id)["payload"] == sent[n].payload
    assert mysql.info["mode"] == "live"


def test_a_value_that_no_column_holds_ends_its_attempt_only(world: World) -> None:
    """Whatever the driver or the server says of it."""
    pool = world.pool().connect()
    made = world.claimed(20)
    odd = [
        {"progress": float("nan")},
        {"exit_code": 2**70 - 2**64},
        {"usage": Usage(run_us=-(2**62))},
        {"pid": 2**63},
        {"note": "\x00 \U0001f600"},
        {"started_at": -5, "finished_at": 2**62},
    ]
    sent = [msgspec.structs.replace(o, **given) for o, given in zip(made, [*odd, *[{}] * 14], strict=True)]
    encodable = [o for o in sent if _encodable(o)]
    pool.send(*encodable)
    world.until(lambda: pool.all_durable)
    found = ends(world.rows)
    assert found.get(("inprogress", None), 0) == len(sent) - len(encodable)
    assert found["completed", "ok"] >= 14


def _encodable(outcome: Outcome) -> bool:
    try:
        msgspec.msgpack.encode(outcome)
    except OverflowError:
        return False
    return True


def refuse(world: World, condition: str) -> None:
    """A rule in the database that no program can foresee."""
    if world.rows.sqlite:
        condition = condition.replace("NEW.payload = 'poison'", "NEW.payload = CAST('poison' AS BLOB)")
        world.rows.sql(
            f"CREATE TRIGGER curse BEFORE UPDATE ON workerd_jobs WHEN {condition}"
            " BEGIN SELECT RAISE(ABORT, 'it is poison'); END"
        )
    else:
        world.rows.sql(
            f"CREATE TRIGGER curse BEFORE UPDATE ON workerd_jobs FOR EACH ROW IF {condition}"
            " THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'it is poison'; END IF"
        )


def forgive(world: World) -> None:
    world.rows.sql("DROP TRIGGER curse")


# -- retries follow once


def test_a_retry_is_inserted_once_however_often_its_cause_is_sent(world: World) -> None:
    """What follows from an outcome follows only if it took effect."""
    pool = world.pool().connect()
    made = world.claimed(
        10, status=Status.RETRY, reason=Reason.ERROR, success=False, payload=None, payload_type=None,
        error="no", next=NextAttempt(delay_us=60_000_000, failures=1, crashes=0, losses=0),
    )  # fmt: skip
    pool.send(*made)
    pool.send(*made)
    world.until(lambda: pool.all_durable)
    assert ends(world.rows) == {("retry", "error"): 10, ("scheduled", None): 10}


# -- progress and handlers


def test_progress_and_handlers_are_written_beside(world: World) -> None:
    """The newest progress of a running attempt, and the handlers that a pool has loaded."""
    pool = world.pool().connect()
    (made,) = world.claimed(1)
    pool.say(Seen(handler="echo", signature=b'{"x":"int"}'))
    for step in range(1, 11):
        pool.say(
            Progress(
                id=made.id, attempt=1, claimed_at=made.claimed_at, started_at=made.claimed_at + 5, pid=77,
                progress=step / 10, note=f"step {step}",
            )
        )  # fmt: skip
    world.until(lambda: world.rows.last(made.id)["note"] == "step 10")
    row = world.rows.last(made.id)
    assert (row["status"], row["progress"], row["pid"]) == ("inprogress", 1.0, 77)
    (handler,) = world.until(lambda: world.rows.sql("SELECT * FROM workerd_handlers"))
    assert handler["name"] == "echo"
    assert "test" in handler["nodes"]


# -- barriers and dead pools


def test_a_barrier_waits_for_what_a_dead_pool_had_written(world: World) -> None:
    """Even if nothing of its connection was accepted yet when it died."""
    dispatcher = world.pool("dispatcher").connect()
    made = world.claimed(300)
    world.until(lambda: world.info["mode"] == "live")
    assert world.child is not None
    world.child.kill(signal.SIGSTOP)
    pool = world.pool().connect()
    pool.send(*made, at_once=50)
    world.until(lambda: pool.channel is not None and not pool.channel.unsent)
    assert pool.channel is not None
    pool.channel.close()
    dispatcher.barrier(41, pool.life)
    world.child.kill(signal.SIGCONT)
    world.until(lambda: dispatcher.barriers)
    assert dispatcher.barriers == [41]
    assert ends(world.rows) == {("completed", "ok"): 300}


def test_a_barrier_with_nothing_before_it_is_answered(world: World) -> None:
    """Also for lives that never connected."""
    dispatcher = world.pool("dispatcher").connect()
    dispatcher.barrier(1, 98, 99)
    dispatcher.barrier(2)
    world.until(lambda: dispatcher.barriers == [1, 2])


def test_the_connection_of_a_dead_pool_is_closed_although_a_grandchild_holds_it_open(world: World) -> None:
    """The supervisor is the authority on a death, not the end of the stream (law 3)."""
    pool = world.pool().connect()
    assert pool.channel is not None
    grandchild = os.dup(pool.channel.fileno())
    try:
        made = world.claimed(5)
        pool.send(*made)
        world.until(lambda: pool.all_durable)
        assert world.info["peers"] == 1
        pool.channel.close()
        world.bury(pool)
        world.until(lambda: world.info["peers"] == 0)
        again = Pool(world, "late", pool.life).connect()
        world.until(lambda: again.broken)
    finally:
        os.close(grandchild)


# -- stop


def test_stop_writes_what_was_sent_before_it_ends(world: World) -> None:
    """Nothing that lies in a socket at that moment is left behind."""
    pool = world.pool().connect()
    pool.send(*world.claimed(2000), at_once=100)
    world.until(lambda: pool.channel is not None and not pool.channel.unsent)
    assert world.stop() == 0
    world.until(lambda: pool.all_durable)
    assert ends(world.rows) == {("completed", "ok"): 2000}
