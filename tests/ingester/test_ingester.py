"""The ingester while the store is available: batches, acknowledgements, limits, refusals, barriers, stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.ingesting import IngesterHarness, SendingPool
from tests.support.rows import Rows
from workerd import outcome as outcomes
from workerd.job import ClaimedAttempt, Status
from workerd.messages import Outcomes, Progress, Seen
from workerd.metrics import exposition
from workerd.metrics.series import SeriesSums
from workerd.outcome import NextAttempt, Outcome, Reason, Usage
from workerd.runtime.dead_letters import DeadLetterFile

MakeHarness = Callable[..., IngesterHarness]


@pytest.fixture
def harness(make_harness: MakeHarness, store_url: str) -> IngesterHarness:
    """An ingester on an empty store of each engine."""
    return make_harness(store_url).start()


@pytest.fixture
def mysql_harness(make_harness: MakeHarness, mysql_url: str) -> IngesterHarness:
    """An ingester on MariaDB."""
    return make_harness(mysql_url).start()


def ends(rows: Rows) -> dict[tuple[str, str | None], int]:
    found = rows.sql("SELECT status, reason, COUNT(*) AS n FROM workerd_jobs GROUP BY status, reason")
    return {(row["status"], row["reason"]): row["n"] for row in found}


def counted(harness: IngesterHarness) -> dict[str, float]:
    """Return the metric samples by name and label values."""
    sums = SeriesSums()
    for beat in harness.beats:
        sums.add(beat.counted)
    spool = next((beat.info["spool"] for beat in reversed(harness.beats) if beat.info), None)
    families = [*exposition.from_series(sums), *exposition.from_status({"spool": spool})]
    text, _ = exposition.render(families, {})
    return {
        " ".join([sample.name, *(sample.labels[key] for key in sorted(sample.labels))]): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


# -- batches and acknowledgements


def test_outcomes_are_recorded_in_batches_and_acknowledged(harness: IngesterHarness) -> None:
    """Every row carries its end, and every outcome is acknowledged once that is committed."""
    pool = harness.pool().connect()
    made = harness.insert_claimed(1200)
    pool.send(*made)
    harness.until(lambda: pool.all_durable)
    assert ends(harness.rows) == {("completed", "ok"): 1200}
    row = harness.rows.last(made[0].id)
    assert row["payload"] == b"null"
    assert (row["run_us"], row["cpu_us"], row["max_rss_kib"]) == (1000, 900, 20_000)
    info = harness.info
    assert info["mode"] == "live"
    assert info["received"] == 1200
    assert 3 <= info["batches"] < 100
    assert info["waiting"] == 0
    assert info["last_commit_ms"] > 0
    assert harness.state == "up"


def test_a_lone_outcome_does_not_wait_for_others(make_harness: MakeHarness, store_url: str) -> None:
    """The linger delays outcomes in a row, not a single one."""
    harness = make_harness(store_url, linger=20.0).start()
    pool = harness.pool().connect()
    pool.send(*harness.insert_claimed(1))
    harness.until(lambda: pool.all_durable, within=10)


def test_outcomes_in_a_row_are_written_together(make_harness: MakeHarness, store_url: str) -> None:
    """After a write the next waits for the linger, unless its batch is full."""
    harness = make_harness(store_url, linger=0.2, batch=100).start()
    pool = harness.pool().connect()
    made = harness.insert_claimed(90)
    pool.send(*made[:20])
    harness.until(lambda: pool.all_durable)
    for start in range(20, 90, 7):
        pool.send(*made[start : start + 7])
        harness.loop.turn(0.001)
    harness.until(lambda: pool.all_durable)
    assert harness.info["batches"] < 5
    made = harness.insert_claimed(300)
    pool.send(*made, at_once=300)
    harness.until(lambda: pool.all_durable)
    assert harness.info["last_batch"] <= 100


def test_no_outcome_of_a_stream_waits_longer_than_the_linger(
    make_harness: MakeHarness, store_url: str
) -> None:
    """However full the last batch was."""
    harness = make_harness(store_url, linger=2.0).start()
    pool = harness.pool().connect()
    harness.until(lambda: harness.info["mode"] == "live")
    pool.send(*harness.insert_claimed(100))
    harness.until(lambda: pool.all_durable)
    made = harness.insert_claimed(1)
    began = time.monotonic()
    pool.send(*made)
    harness.until(lambda: pool.all_durable)
    assert time.monotonic() - began < 2 * 2.0


def test_an_outcome_sent_twice_has_one_effect(harness: IngesterHarness) -> None:
    """In one frame, in two, and from two connections: the first is what counts."""
    made = harness.insert_claimed(3)
    late = [msgspec.structs.replace(o, status=Status.FAILURE, reason=Reason.LOST, success=None) for o in made]
    one, two = harness.pool("one").connect(), harness.pool("two").connect()
    one.send(made[0], late[0], made[1], made[1])
    one.send(made[2])
    harness.until(lambda: one.all_durable)
    two.send(*late)
    harness.until(lambda: two.all_durable)
    assert ends(harness.rows) == {("completed", "ok"): 3}
    harness.until(lambda: counted(harness).get("workerd_attempts_total echo ok true") == 3)
    assert not any("lost" in name for name in counted(harness))


def test_a_gap_in_the_numbers_closes_the_connection(harness: IngesterHarness) -> None:
    """An acknowledgement would cover what never came."""
    pool = harness.pool().connect()
    pool.send(*harness.insert_claimed(2))
    harness.until(lambda: pool.all_durable)
    pool.send_message(Outcomes(first=7, outcomes=harness.insert_claimed(1)))
    harness.until(lambda: pool.disconnects)
    assert pool.durable == 2
    pool.connect()
    pool.send(*harness.insert_claimed(1))
    harness.until(lambda: pool.all_durable)


def test_a_pool_that_does_not_read_delays_no_other(harness: IngesterHarness) -> None:
    """Its acknowledgements wait in its own socket."""
    deaf = harness.pool("deaf").connect()
    assert deaf.channel is not None
    deaf.channel.pause()
    for _ in range(50):
        deaf.send(*harness.insert_claimed(20), at_once=1)
    pool = harness.pool().connect()
    pool.send(*harness.insert_claimed(100))
    harness.until(lambda: pool.all_durable)
    harness.until(lambda: ends(harness.rows) == {("completed", "ok"): 1100})
    deaf.channel.resume()
    harness.until(lambda: deaf.all_durable)


def test_a_broken_frame_closes_only_its_own_connection(harness: IngesterHarness) -> None:
    """Whatever a connection sends, the others are served."""
    for rubbish in (b"\xff" * 100, b"\x00\x00\x00\x05hello", b"\x7f\xff\xff\xff", os.urandom(5000)):
        broken = harness.pool("broken").connect()
        assert broken.channel is not None
        with socket.socket(fileno=os.dup(broken.channel.fileno())) as raw:
            harness.turn()
            raw.send(rubbish)
            raw.shutdown(socket.SHUT_WR)
        harness.until(lambda broken=broken: broken.disconnects)
    pool = harness.pool().connect()
    pool.send(*harness.insert_claimed(10))
    harness.until(lambda: pool.all_durable)


# -- metrics


def test_metrics_count_only_outcomes_that_took_effect(harness: IngesterHarness) -> None:
    """Releases and skipped runs are no runs; an ignored error is a success."""
    pool = harness.pool().connect()
    kinds: list[tuple[int, dict[str, Any]]] = [
        (5, {}),
        (4, {"reason": Reason.IGNORED, "payload": None, "payload_type": None}),
        (3, {"reason": Reason.SKIPPED, "success": None, "payload": None, "payload_type": None}),
        (2, {"status": Status.FAILURE, "reason": Reason.ERROR, "success": False}),
        (1, {"status": Status.CANCELLED, "reason": Reason.CANCELLED, "success": None}),
        (6, {"status": Status.NEW, "reason": None, "success": None, "started_at": None, "finished_at": None}),
    ]
    for count, given in kinds:
        pool.send(*harness.insert_claimed(count, **given))
    foreign = harness.insert_claimed(1)
    pool.send(msgspec.structs.replace(foreign[0], claimed_at=foreign[0].claimed_at - 1))
    harness.until(lambda: pool.all_durable)
    harness.until(lambda: counted(harness).get("workerd_attempts_total echo cancelled none") == 1)
    found = counted(harness)
    assert {k: v for k, v in found.items() if k.startswith("workerd_jobs_ended_total")} == {
        "workerd_jobs_ended_total echo completed": 9,
        "workerd_jobs_ended_total echo failure": 2,
        "workerd_jobs_ended_total echo cancelled": 1,
    }
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


def test_a_refused_row_stops_no_other(harness: IngesterHarness) -> None:
    """Its attempt ends as a failure with the server's words and without payload; the others are recorded."""
    pool = harness.pool().connect()
    made = harness.insert_claimed(200)
    refuse(harness, "NEW.payload = 'poison'")
    bad = [msgspec.structs.replace(made[n], payload=b"poison", payload_type="bytes") for n in (0, 77, 199)]
    sent = [next((b for b in bad if b.id == o.id), o) for o in made]
    pool.send(*sent)
    harness.until(lambda: pool.all_durable)
    assert ends(harness.rows) == {("completed", "ok"): 197, ("failure", "refused"): 3}
    row = harness.rows.last(made[77].id)
    assert "it is poison" in row["error"]
    assert (row["payload"], row["success"]) == (None, 0)
    assert harness.info["refused"] == 3


def test_a_row_that_cannot_be_recorded_in_any_form_is_set_aside(harness: IngesterHarness) -> None:
    """It is acknowledged and never sent again; its content is kept in a file for an operator."""
    pool = harness.pool().connect()
    made = harness.insert_claimed(50)
    cursed = harness.insert_claimed(1, handler="cursed")
    refuse(harness, "NEW.handler = 'cursed'")
    pool.send(*made[:25], *cursed, *made[25:])
    harness.until(lambda: pool.all_durable)
    assert ends(harness.rows) == {("completed", "ok"): 50, ("inprogress", None): 1}
    (line,) = (harness.paths.state / "quarantine" / "outcomes.jsonl").read_text().splitlines()
    kept = json.loads(line)
    assert "it is poison" in kept["why"]
    assert kept["outcome"]["handler"] == "cursed"
    assert harness.info["set_aside"] == 1
    assert harness.info["mode"] == "live"


def test_the_end_that_was_set_aside_is_not_replaced(harness: IngesterHarness) -> None:
    """A settlement finds the claim without an owner: its release waits until the end is brought back."""
    pool = harness.pool().connect()
    made, (cursed,) = harness.insert_claimed(2), harness.insert_claimed(1, handler="cursed")
    refuse(harness, "NEW.handler = 'cursed'")
    pool.send(cursed, *made)
    harness.until(lambda: harness.info["set_aside"] == 1)
    forgive(harness)
    pool.send(outcomes.released(claimed(cursed)))
    harness.until(lambda: pool.all_durable)
    assert harness.rows.last(cursed.id)["status"] == "inprogress"
    file = DeadLetterFile(harness.paths.dead_letters)
    (letter,) = file.take()
    assert letter.outcome == msgspec.structs.replace(cursed, node_id=harness.incarnation)
    assert file.done([])
    pool.send(cursed)
    harness.until(lambda: ends(harness.rows) == {("completed", "ok"): 3})
    assert harness.info["set_aside"] == 0


def claimed(outcome: Outcome) -> ClaimedAttempt:
    return ClaimedAttempt(
        id=outcome.id, attempt=outcome.attempt, claimed_at=outcome.claimed_at, handler=outcome.handler
    )


@pytest.mark.parametrize("count", [1, 3, 30])
def test_a_store_that_refuses_everything_counts_as_unavailable(harness: IngesterHarness, count: int) -> None:
    """What a bare outcome meets too is a fault of the store: not one attempt is refused or set aside."""
    pool = harness.pool().connect()
    made = harness.insert_claimed(count)
    refuse(harness, "NEW.handler = 'echo'")
    pool.send(*made)
    harness.until(lambda: pool.all_durable)
    harness.until(lambda: harness.info["mode"] == "away")
    harness.until(lambda: "refuses every outcome" in harness.beats[-1].trouble)
    forgive(harness)
    harness.until(lambda: ends(harness.rows) == {("completed", "ok"): count})
    harness.until(lambda: harness.info["mode"] == "live")
    assert (harness.info["set_aside"], harness.info["refused"]) == (0, 0)


def test_a_payload_over_the_limit_is_refused_with_a_sentence(
    make_harness: MakeHarness, store_url: str
) -> None:
    """The limit and what to do stand in the error."""
    harness = make_harness(store_url, max_payload=5000).start()
    pool = harness.pool().connect()
    made = harness.insert_claimed(3)
    harness.until(lambda: pool.limit)
    assert pool.limit == 5000
    pool.send(made[0], msgspec.structs.replace(made[1], payload=b"x" * 5001, payload_type="bytes"), made[2])
    harness.until(lambda: pool.all_durable)
    row = harness.rows.last(made[1].id)
    assert (row["status"], row["reason"], row["payload"]) == ("failure", "refused", None)
    assert "5001 bytes, at most 5000" in row["error"]
    assert ends(harness.rows) == {("completed", "ok"): 2, ("failure", "refused"): 1}


def test_large_outcomes_fit_into_max_allowed_packet(mysql_harness: IngesterHarness) -> None:
    """500 of 30 KiB, some of megabytes and an error of 70,000 letters, at max_allowed_packet 16 MiB."""
    pool = mysql_harness.pool().connect()
    mysql_harness.until(lambda: pool.limit)
    assert mysql_harness.rows.sql("SELECT @@max_allowed_packet AS size")[0]["size"] == 16 << 20
    assert pool.limit == 4 << 20
    made = mysql_harness.insert_claimed(504)
    sent = [msgspec.structs.replace(o, payload=os.urandom(30 * 1024), payload_type="bytes") for o in made]
    for n in (1, 2, 3):
        sent[n] = msgspec.structs.replace(sent[n], payload=b"'" * (4 << 20))
    sent[250] = msgspec.structs.replace(
        sent[250], payload=None, payload_type=None, status=Status.FAILURE, reason=Reason.ERROR,
        success=False, error="e" * 70_000,
    )  # fmt: skip
    pool.send(*sent)
    mysql_harness.until(lambda: pool.all_durable, within=60)
    assert sum(ends(mysql_harness.rows).values()) == 504
    assert ends(mysql_harness.rows)["completed", "ok"] == 503
    assert mysql_harness.rows.last(made[250].id)["status"] == "failure"
    for n in (0, 1, 100, 503):
        assert mysql_harness.rows.last(made[n].id)["payload"] == sent[n].payload
    assert mysql_harness.info["mode"] == "live"


def test_a_value_that_no_column_holds_ends_its_attempt_only(harness: IngesterHarness) -> None:
    """Whatever error the driver or the server reports."""
    pool = harness.pool().connect()
    made = harness.insert_claimed(20)
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
    harness.until(lambda: pool.all_durable)
    found = ends(harness.rows)
    assert found.get(("inprogress", None), 0) == len(sent) - len(encodable)
    assert found["completed", "ok"] >= 14


def _encodable(outcome: Outcome) -> bool:
    try:
        msgspec.msgpack.encode(outcome)
    except OverflowError:
        return False
    return True


def refuse(harness: IngesterHarness, condition: str) -> None:
    """A rule in the database that no program can foresee."""
    if harness.rows.sqlite:
        condition = condition.replace("NEW.payload = 'poison'", "NEW.payload = CAST('poison' AS BLOB)")
        harness.rows.sql(
            f"CREATE TRIGGER curse BEFORE UPDATE ON workerd_jobs WHEN {condition}"
            " BEGIN SELECT RAISE(ABORT, 'it is poison'); END"
        )
    else:
        harness.rows.sql(
            f"CREATE TRIGGER curse BEFORE UPDATE ON workerd_jobs FOR EACH ROW IF {condition}"
            " THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'it is poison'; END IF"
        )


def forgive(harness: IngesterHarness) -> None:
    harness.rows.sql("DROP TRIGGER curse")


# -- retries follow once


def test_a_retry_is_inserted_once_however_often_its_cause_is_sent(harness: IngesterHarness) -> None:
    """Consequences of an outcome happen only if it took effect."""
    pool = harness.pool().connect()
    made = harness.insert_claimed(
        10, status=Status.RETRY, reason=Reason.ERROR, success=False, payload=None, payload_type=None,
        error="no", next=NextAttempt(delay_us=60_000_000, failures=1, crashes=0, losses=0),
    )  # fmt: skip
    pool.send(*made)
    pool.send(*made)
    harness.until(lambda: pool.all_durable)
    assert ends(harness.rows) == {("retry", "error"): 10, ("scheduled", None): 10}


# -- progress and handlers


def test_progress_and_handlers_are_written_beside(harness: IngesterHarness) -> None:
    """The newest progress of a running attempt, and the handlers that a pool has loaded."""
    pool = harness.pool().connect()
    (made,) = harness.insert_claimed(1)
    pool.send_message(Seen(handler="echo", signature=b'{"x":"int"}'))
    for step in range(1, 11):
        pool.send_message(
            Progress(
                id=made.id, attempt=1, claimed_at=made.claimed_at, started_at=made.claimed_at + 5, pid=77,
                progress=step / 10, note=f"step {step}",
            )
        )  # fmt: skip
    harness.until(lambda: harness.rows.last(made.id)["note"] == "step 10")
    row = harness.rows.last(made.id)
    assert (row["status"], row["progress"], row["pid"]) == ("inprogress", 1.0, 77)
    (handler,) = harness.until(lambda: harness.rows.sql("SELECT * FROM workerd_handlers"))
    assert handler["name"] == "echo"
    assert "test" in handler["nodes"]


# -- barriers and dead pools


def test_a_barrier_waits_for_the_messages_of_a_dead_pool(harness: IngesterHarness) -> None:
    """Even if nothing of its connection was accepted yet when it died."""
    dispatcher = harness.pool("dispatcher").connect()
    made = harness.insert_claimed(300)
    harness.until(lambda: harness.info["mode"] == "live")
    assert harness.child is not None
    harness.child.kill(signal.SIGSTOP)
    pool = harness.pool().connect()
    pool.send(*made, at_once=50)
    harness.until(lambda: pool.channel is not None and not pool.channel.unsent)
    assert pool.channel is not None
    pool.channel.close()
    dispatcher.barrier(41, pool.life)
    harness.child.kill(signal.SIGCONT)
    harness.until(lambda: dispatcher.barriers)
    assert dispatcher.barriers == [41]
    assert ends(harness.rows) == {("completed", "ok"): 300}


def test_a_barrier_with_nothing_before_it_is_answered(harness: IngesterHarness) -> None:
    """Also for lives that never connected."""
    dispatcher = harness.pool("dispatcher").connect()
    dispatcher.barrier(1, 98, 99)
    dispatcher.barrier(2)
    harness.until(lambda: dispatcher.barriers == [1, 2])


def test_the_connection_of_a_dead_pool_is_closed_although_a_grandchild_holds_it_open(
    harness: IngesterHarness,
) -> None:
    """The supervisor is the authority on a death, not the end of the stream (law 3)."""
    pool = harness.pool().connect()
    assert pool.channel is not None
    grandchild = os.dup(pool.channel.fileno())
    try:
        made = harness.insert_claimed(5)
        pool.send(*made)
        harness.until(lambda: pool.all_durable)
        assert harness.info["peers"] == 1
        pool.channel.close()
        harness.report_death(pool)
        harness.until(lambda: harness.info["peers"] == 0)
        again = SendingPool(harness, "late", pool.life).connect()
        harness.until(lambda: again.disconnects)
    finally:
        os.close(grandchild)


# -- stop


def test_stop_writes_all_received_outcomes_before_exit(harness: IngesterHarness) -> None:
    """Outcomes still unread in a socket at that moment are processed."""
    pool = harness.pool().connect()
    pool.send(*harness.insert_claimed(2000), at_once=100)
    harness.until(lambda: pool.channel is not None and not pool.channel.unsent)
    assert harness.stop() == 0
    harness.until(lambda: pool.all_durable)
    assert ends(harness.rows) == {("completed", "ok"): 2000}
