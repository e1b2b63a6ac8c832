"""The log of a daemon that forks, over real sockets and real forks."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

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


def status_of(main: Callable[[], int]) -> int | None:
    """Fork it, and wait for its end."""
    child = fork(main)
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
    status = child.reap()
    child.close()
    return status


def test_a_child_that_logs_closes_nothing_but_its_own(journal: socket.socket) -> None:
    """What a forked child opened before its first line is still open after it."""

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
