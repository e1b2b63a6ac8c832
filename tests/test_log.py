"""The log of a daemon that forks, over real sockets and real forks."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from workerd import log
from workerd.config.model import LogConfig
from workerd.runtime.child import fork


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A journal of our own, for processes that are forked from here."""
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
    ):
        path = Path(folder, "socket")
        sock.bind(str(path))
        sock.settimeout(10)
        standard_error = os.fstat(2)
        monkeypatch.setattr(log, "_JOURNAL", str(path))
        monkeypatch.setenv("JOURNAL_STREAM", f"{standard_error.st_dev}:{standard_error.st_ino}")
        yield sock


def say(process: str, message: str) -> None:
    log.get_logger(process).warning(message)


def status_of(main: Callable[[], int], keep: tuple[int, ...] = ()) -> int | None:
    """Fork it, and wait for its end."""
    child = fork(main, keep)
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
    status = child.reap()
    child.close()
    return status


def test_a_logging_child_closes_only_its_own_descriptors(journal: socket.socket) -> None:
    """Descriptors opened by a forked child before its first line stay open after it."""

    def dispatcher() -> int:
        opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
        say("dispatcher", "in the child")
        for fd in opened:
            os.fstat(fd)
        return 0

    def supervisor() -> int:
        log.configure(LogConfig())
        say("supervisor", "before the fork")
        return status_of(dispatcher) or 0

    assert status_of(supervisor) == 0
    assert b"MESSAGE=before the fork\n" in journal.recv(8192)
    heard = journal.recv(8192)
    assert b"MESSAGE=in the child\n" in heard
    assert b"WORKERD_PROCESS=dispatcher\n" in heard


def test_every_line_of_a_child_reaches_the_journal(journal: socket.socket) -> None:
    """With all its fields, from the first on, however many forks are between it and the start."""

    def worker() -> int:
        for number in range(3):
            say("worker", f"line {number}")
        return 0

    def pool() -> int:
        say("pool", "second")
        return status_of(worker) or 0

    def supervisor() -> int:
        log.configure(LogConfig())
        say("supervisor", "first")
        return status_of(pool) or 0

    assert status_of(supervisor) == 0
    for message in (b"first", b"second", b"line 0", b"line 1", b"line 2"):
        assert b"MESSAGE=" + message + b"\n" in journal.recv(8192)


def test_a_handlers_line_is_the_message(journal: socket.socket) -> None:
    """Who asks the journal for a job reads what its handler printed; job, handler and attempt are fields."""

    def pool() -> int:
        log.configure(LogConfig())
        log.get_logger("pool").info("output", line="Hello.", job="0190-1", handler="email", attempt=2)
        return 0

    assert status_of(pool) == 0
    fields = journal.recv(8192).splitlines()
    assert {b"MESSAGE=Hello.", b"JOB_ID=0190-1", b"HANDLER=email", b"ATTEMPT=2"} <= set(fields)
    assert {b"PRIORITY=6", b"WORKERD_EVENT=output"} <= set(fields)


def test_a_handlers_field_cannot_forge_fields_of_the_journal(journal: socket.socket) -> None:
    """Whatever a handler calls a field; its level is the priority."""

    def worker() -> int:
        log.configure(LogConfig())
        fields = {"a\nJOB_ID": "forged", "größe": 1, "line": "no"}
        log.get_logger(log.HANDLER_PROCESS).error("Very bad.", job="0190-1", order=7, **fields)
        return 0

    assert status_of(worker) == 0
    fields = journal.recv(8192).splitlines()
    assert {b"MESSAGE=Very bad.", b"PRIORITY=3", b"JOB_ID=0190-1", b"WORKERD_ORDER=7"} <= set(fields)
    assert {b"WORKERD_A_JOB_ID=forged", b"WORKERD_GR_SSE=1"} <= set(fields)
    assert [field for field in fields if field.startswith(b"JOB_ID")] == [b"JOB_ID=0190-1"]


def written(main: Callable[[], None], form: Literal["text", "json"]) -> list[str]:
    """The lines that a process writes to its standard error."""
    reading, writing = os.pipe()

    def child() -> int:
        os.dup2(writing, 2)
        log.configure(LogConfig(format=form, labels={"region": "eu"}))
        main()
        return 0

    assert status_of(child, keep=(writing,)) == 0
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as lines:
        return lines.read().splitlines()


def log_hostile_values() -> None:
    logger = log.get_logger("pool")
    logger.info("output", line="\x1b[2J\r\n2026 [error] forged", job=None, size=b"\xff", attempt=2)
    try:
        raise ValueError("first\n2026 [error] forged\x07")
    except ValueError as error:
        logger.error("bug.found", exc_info=error)


def test_json_is_one_line_an_event_with_the_head_first() -> None:
    """A program finds time, level, event, process, labels and all fields that have a value."""
    first, second = (json.loads(line) for line in written(log_hostile_values, "json"))
    assert list(first) == ["time", "level", "event", "process", "line", "size", "attempt", "region"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", first["time"])
    assert (first["level"], first["event"], first["attempt"]) == ("info", "output", 2)
    assert (first["process"], first["region"]) == ("pool", "eu")
    assert "ValueError: first" in second["exception"]


def test_a_label_does_not_hide_a_field_of_an_event() -> None:
    """Of the two the event's own is the one that cannot be known otherwise."""
    [logged] = written(lambda: log.get_logger("pool").info("output", region="of the event"), "json")
    assert json.loads(logged)["region"] == "of the event"


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_value_can_forge_a_line_or_reach_the_terminal(form: Literal["text", "json"]) -> None:
    """Control characters are made visible; the lines of a traceback are indented."""
    lines = written(log_hostile_values, form)
    assert not [line for line in lines if line.startswith("2026 [error]")]
    assert all(line.isprintable() for line in lines)
    assert "x1b[2J" in lines[0]


def test_repeated_errors_are_counted() -> None:
    """A store that is away for hours fills no disk; different errors are all written."""

    def main() -> None:
        for _ in range(8):
            log.get_logger("ingester").error("store.unavailable", error="no route")
        log.get_logger("ingester").error("store.unavailable", error="refused")
        log.REPEAT_WINDOW_S = -1.0
        log.get_logger("ingester").error("store.unavailable", error="no route")

    events = [json.loads(line) for line in written(main, "json")]
    assert [event["error"] for event in events] == ["no route"] * 5 + ["refused", "no route"]
    assert events[-1]["repeated"] == 3


def test_no_record_of_a_handler_is_taken_for_a_repetition() -> None:
    """Records of one text differ in their fields."""

    def main() -> None:
        for order in range(8):
            log.get_logger(log.HANDLER_PROCESS).error("very bad", order=order)

    assert [json.loads(line)["order"] for line in written(main, "json")] == list(range(8))


def test_nothing_waits_for_a_reader_that_has_stopped_reading() -> None:
    """Lines are dropped while the pipe is full; the next line that is written says how many."""
    reading, writing = os.pipe()

    def child() -> int:
        os.dup2(writing, 2)
        log.configure(LogConfig(format="json"))
        for _ in range(1000):
            log.get_logger("pool").info("output", line="x" * 1000)
        while select.select((reading,), (), (), 0)[0]:
            os.read(reading, 1 << 20)
        log.get_logger("pool").info("output", line="again")
        data = os.read(reading, 1 << 16).decode()
        return 0 if re.match(r"\d+ lines were dropped.*\n.*again", data) else 1

    assert status_of(child, keep=(reading, writing)) == 0
    os.close(reading)
    os.close(writing)


def test_a_terminal_gets_text_and_colour() -> None:
    """Without being asked; NO_COLOR leaves the text."""
    ours, theirs = pty.openpty()

    def child() -> int:
        os.dup2(theirs, 2)
        for no_color in ("", "1"):
            os.environ["NO_COLOR"] = no_color
            log.configure(LogConfig())
            log.get_logger("pool").warning("worker.died", worker="a/0")
        return 0

    assert status_of(child, keep=(theirs,)) == 0
    data = b""
    while select.select((ours,), (), (), 0.1)[0]:
        data += os.read(ours, 4096)
    os.close(ours)
    os.close(theirs)
    coloured, plain = data.decode().splitlines()
    assert "\x1b[" in coloured
    assert plain.isprintable()
    assert re.fullmatch(r"[\d:.]+ \[warning *\] worker\.died +process=pool worker=a/0", plain)


def test_text_has_the_date_once_whichever_process_writes_first() -> None:
    """In the first line of a day; the others have the time alone."""

    def log_in_two_processes() -> None:
        log.get_logger("supervisor").info("first")
        assert status_of(lambda: log.get_logger("pool").info("second") or 0) == 0
        log.get_logger("supervisor").info("third")

    times = [re.split(r" \[", line)[0] for line in written(log_in_two_processes, "text")]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}", times[0])
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d\.\d{6}", time) for time in times[1:])
    assert len(times) == 3
