"""What handlers log arrives as records: level, fields, job and attempt; bare prints are output."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pool.harness import PoolHarness, make_pool
from workerd import log
from workerd.config.model import LogConfig
from workerd.job import id_text
from workerd.outcome import Reason

HANDLERS = (
    "ctx_log", "standard", "to_file", "to_stderr", "long_records", "flood", "many_errors", "dies",
    "leaves_a_thread", "releases_thread", "imitates", "log_in_children", "by_structlog",
)  # fmt: skip


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[PoolHarness]:
    with PoolHarness(tmp_path, make_pool(*HANDLERS, module="pool_logging")) as harness:
        harness.up()
        yield harness
        harness.settled()


def logged_by(harness: PoolHarness, handler: str, **values: Any) -> list[dict[str, Any]]:
    """Run a job; the events that name it, but for how the attempt ended."""
    claim = harness.claim(handler, **values)
    harness.give(claim)
    harness.outcome(claim)
    events = [event for event in harness.log_events() if event.get("job") == id_text(claim.id)]
    return [event for event in events if event["event"] != "attempt.failed"]


def test_ctx_log_keeps_level_and_fields(harness: PoolHarness) -> None:
    """Scalars keep their types; a traceback is part of its one record."""
    bad, worse, odd, failed = logged_by(harness, "ctx_log")
    assert (bad["level"], bad["event"]) == ("error", "very bad")
    assert (bad["order"], bad["price"], bad["paid"], bad["items"]) == (7, 1.5, False, "[1, 2]")
    assert (bad["handler"], bad["attempt"], bad["pool"]) == ("ctx_log", 1, "test")
    assert bad["worker"].startswith("test/")
    assert worse["level"] == "critical"
    assert (odd["value"], odd["number"]) == ("(its __str__ raised RuntimeError)", str(2**70))
    assert odd["a\\nb"] == 1
    assert (failed["level"], failed["event"], failed["order"]) == ("error", "it failed", 8)
    assert failed["exception"].startswith("Traceback")
    assert "ValueError: first\nsecond" in failed["exception"]


def test_fields_of_the_daemons_own_cannot_be_forged(harness: PoolHarness) -> None:
    """A handler's field of such a name is kept under another one."""
    worse = logged_by(harness, "ctx_log")[1]
    assert (worse["process"], worse["job_"], worse["worker_"], worse["process_"]) == (
        "worker",
        *["forged"] * 3,
    )
    assert worse["level_"] == "debug"


def test_the_standard_logging_arrives_as_records(harness: PoolHarness) -> None:
    """With the level of `log.level`, extras, the logger's name, and the traceback; a print is output."""
    first, worse, *_, failed, bare = logged_by(harness, "standard")
    assert (first["level"], first["event"], first["customer"]) == ("info", "order 7", "ann")
    assert first["logger"] == "shop.orders"
    assert (worse["level"], worse["event"], worse["logger"]) == ("critical", "worse", "other")
    assert (failed["level"], failed["event"]) == ("error", "it failed")
    assert failed["exception"].endswith("ValueError: first")
    assert (bare["level"], bare["event"], bare["line"]) == ("info", "output", "bare")


def test_a_handlers_own_configuration_of_logging_stays(harness: PoolHarness, tmp_path: Path) -> None:
    """A file that it logs to has the line, and the daemon's log does not."""
    path = tmp_path / "own.log"
    assert logged_by(harness, "to_file", path=str(path)) == []
    assert path.read_text() == "WARNING:shop.orders:in the file\n"


def test_a_handler_that_logs_to_standard_error_has_records(harness: PoolHarness) -> None:
    """Once, and with their level."""
    (event,) = logged_by(harness, "to_stderr")
    assert (event["level"], event["event"], event["order"]) == ("warning", "once", 9)


def test_what_is_below_the_level_of_the_log_is_not_sent(tmp_path: Path) -> None:
    """`log.level` holds for `ctx.log` and the standard `logging`, and for prints, which are `info`."""
    log.configure(LogConfig(level="error"))
    try:
        with PoolHarness(tmp_path, make_pool(*HANDLERS, module="pool_logging")) as harness:
            harness.up()
            events = [event["event"] for event in logged_by(harness, "ctx_log")]
            assert events == ["very bad", "worse", "it failed"]
            assert [event["event"] for event in logged_by(harness, "standard")[:2]] == ["worse", "it failed"]
    finally:
        log.configure(LogConfig())


def test_structlog_sends_records(harness: PoolHarness) -> None:
    """Its loggers belong to the daemon's log unless user code configures them."""
    (event,) = logged_by(harness, "by_structlog")
    assert (event["level"], event["event"], event["order"]) == ("error", "very bad", 7)


def test_structlog_that_user_code_configured_is_its_own(tmp_path: Path) -> None:
    """The daemon's log stays as it was configured."""
    pool = make_pool("own", "fails", module="pool_structlog")
    with PoolHarness(tmp_path, pool) as harness:
        harness.up()
        (event,) = logged_by(harness, "own")
        assert (event["level"], event["event"]) == ("info", "output")
        assert event["line"].startswith("mine: error {")
        harness.run("fails")
        (failed,) = [event for event in harness.log_events() if event["event"] == "attempt.failed"]
        assert failed["level"] == "warning"


def test_long_records_arrive_whole_or_cut(harness: PoolHarness) -> None:
    """What is printed around them is not torn apart."""
    long, longest, printed = logged_by(harness, "long_records")
    assert (long["event"], long["text"], long["more"]) == ("long", "y" * 3000, "z" * 3000)
    assert longest["event"].startswith("\x01" * 100)
    assert longest["fields_dropped"] > 0
    assert longest["exception"].startswith("Traceback")
    assert printed["line"] == "before, after"


def test_floods_are_bounded_and_counted(harness: PoolHarness) -> None:
    """Text that a job prints does not use up the room for its records."""
    claim = harness.claim("flood")
    harness.give(claim)
    assert harness.outcome(claim).reason is Reason.OK
    records = [event for event in harness.log_events() if event["event"] == "flood"]
    assert [event["n"] for event in records] == list(range(len(records)))
    assert 100 < len(records) < 2000
    (cut,) = [event for event in harness.log_events() if event["event"] == "output.truncated"]
    assert cut["dropped_bytes"] > 1_000_000


def test_last_words_of_a_dying_worker_are_kept(harness: PoolHarness) -> None:
    """A record is in the pipe when the call returns."""
    words = [(event["event"], event["level"]) for event in logged_by(harness, "dies")]
    assert words[:2] == [("last words", "error"), ("very last words", "error")]


def test_a_record_of_a_job_that_has_ended_is_not_the_next_ones(harness: PoolHarness, tmp_path: Path) -> None:
    """A thread that it left behind logs during another job."""
    path = str(tmp_path / "go")
    first = harness.claim("leaves_a_thread", path=path)
    harness.give(first)
    harness.outcome(first)
    (own,) = logged_by(harness, "releases_thread", path=path)
    assert own["line"] == "own"
    (late,) = [event for event in harness.log_events() if event["event"] == "late"]
    assert late["job"] == id_text(first.id)


def test_imitated_frames_harm_nothing(harness: PoolHarness) -> None:
    """They are the output of the job that wrote them; the next job's output is whole."""
    assert {event["event"] for event in logged_by(harness, "imitates")} == {"output"}
    assert logged_by(harness, "standard")[-1]["line"] == "bare"


def test_records_of_forked_children_are_not_mixed_up(harness: PoolHarness) -> None:
    """Four processes write records of several frames at once."""
    events = logged_by(harness, "log_in_children")
    records = [event for event in events if event["event"] == "child"]
    assert len(records) > 5
    assert all(event["text"] == "t" * 3900 and event["more"] == "u" * 3900 for event in records)
