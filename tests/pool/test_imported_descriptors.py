"""What the import of a handler left open: files are shared, sockets are dead, no number is reused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.pool.harness import PoolHarness, make_pool
from workerd.outcome import Reason


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[PoolHarness]:
    pool = make_pool(
        "writes", "sends", "polls", "numbers", module="pool_opens", env={"OPENS_IN": str(tmp_path)}
    )
    with PoolHarness(tmp_path, pool) as harness:
        harness.up()
        yield harness


def test_a_file_opened_at_import_is_written_to_and_no_other(harness: PoolHarness, tmp_path: Path) -> None:
    """Although sockets of the import are collected while the job has a file of its own."""
    for count in (1, 2):
        outcome = harness.run("writes")
        assert outcome.reason is Reason.OK, outcome
        seen = msgspec.json.decode(outcome.payload or b"")
        assert seen["mine"] == "mine"
        assert seen["fd"] not in msgspec.json.decode(harness.run("numbers").payload or b"")
        assert (tmp_path / "opened.log").read_text() == "a line\n" * count


def test_a_socket_or_epoll_object_opened_at_import_fails_at_once(harness: PoolHarness) -> None:
    """Two workers that shared a connection would read each other's answers."""
    assert harness.run("sends").payload == b'"BrokenPipeError"'
    assert harness.run("polls").payload in (b'"OSError"', b'"PermissionError"')


def test_the_log_names_what_an_import_opened(harness: PoolHarness, tmp_path: Path) -> None:
    """With what to do about it."""
    events = {event["event"]: event for event in harness.log_events()}
    opened = events["handlers.opened_sockets"]
    assert "connect in `init`" in opened["advice"]
    assert opened["sockets"].count("socket (descriptor") == 5
    assert "eventpoll (descriptor" in opened["sockets"]
    assert str(tmp_path / "opened.log") in events["handlers.opened_files"]["files"]
