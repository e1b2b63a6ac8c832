"""The control socket: one question, one answer, now or later."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.conftest import turn_until
from tests.support.descriptors import spare_descriptors
from workerd.runtime import control, sockets
from workerd.runtime.control import ControlServer, Reply, ask
from workerd.runtime.loop import Loop
from workerd.runtime.sockets import check_replaceable, connect, listen


class ControlHarness:
    def __init__(self, loop: Loop, path: Path, threads: ThreadPoolExecutor) -> None:
        self.loop = loop
        self.path = path
        self.asked: list[tuple[dict[str, Any], Reply]] = []
        self.server = ControlServer(loop, path, lambda question, reply: self.asked.append((question, reply)))
        self._threads = threads

    def ask(self, question: dict[str, Any]) -> Future[dict[str, Any]]:
        return self._threads.submit(ask, self.path, question)


@pytest.fixture
def harness(loop: Loop, tmp_path: Path) -> Iterator[ControlHarness]:
    with ThreadPoolExecutor(2) as threads:
        harness = ControlHarness(loop, tmp_path / "control", threads)
        yield harness
        harness.server.close()


def closed(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False


def test_an_answer_may_come_late(harness: ControlHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload takes as long as its slowest drain: only clients that are slow themselves are cut off."""
    monkeypatch.setattr(control, "IDLE_TIMEOUT_S", 0.1)
    answer = harness.ask({"ask": "reload"})
    turn_until(harness.loop, lambda: harness.asked)
    later: list[bool] = []
    harness.loop.call_later(0.3, lambda: later.append(True))
    turn_until(harness.loop, lambda: later)
    question, reply = harness.asked[0]
    reply({"long": "x" * 1_000_000})
    turn_until(harness.loop, answer.done)
    assert question == {"ask": "reload"}
    assert len(answer.result()["long"]) == 1_000_000


def test_an_idle_client_is_disconnected(harness: ControlHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "IDLE_TIMEOUT_S", 0.05)
    with connect(harness.path, 5.0) as client:
        turn_until(harness.loop, lambda: closed(client))


def test_a_question_that_is_not_json_is_refused(harness: ControlHarness) -> None:
    with connect(harness.path, 5.0) as client:
        client.sendall(b"\0\0\0\3abc")
        for _ in range(5):
            harness.loop.turn(0.01)
        assert b"expected" in client.recv(4096)
    assert not harness.asked


def test_an_answer_to_a_closed_connection_is_dropped(harness: ControlHarness) -> None:
    with connect(harness.path, 5.0) as client:
        client.sendall(b'\0\0\0\x10{"ask":"status"}')
        turn_until(harness.loop, lambda: harness.asked)
    harness.loop.turn(0.01)
    harness.asked[0][1]({"late": True})
    harness.loop.turn(0.01)


def test_without_descriptors_it_accepts_again_after_a_pause(
    harness: ControlHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile it sleeps: the waiting connection does not make the loop spin."""
    monkeypatch.setattr(sockets, "ACCEPT_PAUSE_S", 0.2)
    with connect(harness.path, 5.0) as client:
        with spare_descriptors(0):
            harness.loop.turn(0.1)
            paused: list[bool] = []
            harness.loop.call_later(0.1, lambda: paused.append(True))
            turns = harness.loop.turns
            while not paused:
                harness.loop.turn(1.0)
            assert harness.loop.turns - turns < 5
        client.sendall(b'\0\0\0\x10{"ask":"status"}')
        turn_until(harness.loop, lambda: harness.asked)
        harness.asked[0][1]({})
        assert client.recv(4096) == b"\0\0\0\2{}"


def test_a_link_is_replaced_and_what_it_leads_to_is_not(tmp_path: Path) -> None:
    """Outside of the daemon's own folders nothing but a socket is replaced at all."""
    path, other = tmp_path / "socket", tmp_path / "other"
    other.write_text("kept")
    path.symlink_to(other)
    with pytest.raises(OSError, match="no socket"):
        check_replaceable(path)
    listen(path).close()
    check_replaceable(path)
    listen(path).close()
    assert path.is_socket()
    assert other.read_text() == "kept"
