"""Datagrams that wake: from one socket, to whoever listens at the path, on both sides of a fork."""

from __future__ import annotations

import os
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from tests.support.datagrams import received
from tests.support.eventually import eventually
from workerd.messages import Inserting
from workerd.runtime import wake_ups
from workerd.runtime.child import fork
from workerd.runtime.sockets import bind_datagram, poke
from workerd.runtime.wake_ups import MAX_DATAGRAM_BYTES, Waker, new_row, new_rows


@pytest.fixture(params=["short", "long"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A path that fits in a socket's address, and one that does not."""
    folder = tmp_path / (request.param if request.param == "short" else "long" * 40)
    folder.mkdir()
    return folder / "wake"


def test_a_waker_reaches_whoever_listens_now(path: Path) -> None:
    """Nobody at first, then a socket, then another one at the same path."""
    waker = Waker(path)
    waker.wake()
    for _ in range(2):
        with bind_datagram(path) as sock:
            waker.wake()
            assert poke(path)
            assert received(sock) == 2
    assert not poke(path)


def test_a_full_queue_is_no_error(path: Path) -> None:
    """Who does not read is being woken anyway."""
    waker = Waker(path)
    with bind_datagram(path) as sock:
        for _ in range(2000):
            waker.wake()
        assert received(sock) > 0


def test_no_descriptor_for_a_socket_is_no_error(path: Path) -> None:
    """What was enqueued is found by the poll."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    waker = Waker(path)
    with bind_datagram(path) as sock:
        resource.setrlimit(resource.RLIMIT_NOFILE, (sock.fileno(), limits[1]))
        try:
            waker.wake()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        waker.wake()
        assert received(sock) == 1


def test_a_forked_child_sends_from_a_socket_of_its_own(path: Path) -> None:
    """Also one that closed what it inherited, and whose own file has the number of the parent's socket."""
    waker = Waker(path)

    def main() -> int:
        files = [os.open("/dev/null", os.O_RDONLY) for _ in range(64)]
        waker.wake()
        for file in files:
            os.fstat(file)  # all are open still
        return 0

    with bind_datagram(path) as sock:
        waker.wake()
        child = fork(main)
        eventually(lambda: child.reap() is not None)
        child.close()
        assert child.status == 0
        waker.wake()
        assert received(sock) == 3


def test_threads_share_one_socket(path: Path) -> None:
    """That wake for the first time at the same moment: all reach the listener, no other socket stays open."""

    def wake(waker: Waker, start: threading.Barrier) -> None:
        start.wait()
        waker.wake()

    with bind_datagram(path) as sock, ThreadPoolExecutor(8) as threads:
        for _ in range(200):
            waker, start = Waker(path), threading.Barrier(8)
            list(threads.map(wake, [waker] * 8, [start] * 8))
            assert received(sock) == 8
            waker.close()


def test_nobody_is_woken_early_who_was_just_woken(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor for what cannot be named."""
    waker = Waker(path)
    with bind_datagram(path) as sock:
        waker.wake_early(["é" * 191])
        assert received(sock) == 0
        waker.wake_early(["h"])
        assert sock.recv(MAX_DATAGRAM_BYTES) == msgspec.msgpack.encode(Inserting(("h",)))
        monkeypatch.setattr(wake_ups, "AWAKE_S", 600.0)
        waker.wake_early(["h"])
        waker.wake(new_row("h", b"1"))
        waker.wake_early(["h"])
        assert sock.recv(MAX_DATAGRAM_BYTES) == new_row("h", b"1")
        assert received(sock) == 0


def test_what_does_not_fit_is_not_named() -> None:
    """Many handlers, or a long name, are woken as any."""
    assert new_rows(["b", "a", "b"]) == new_rows(["a", "b"]) != b""
    assert 0 < len(new_rows(["é" * 100])) <= MAX_DATAGRAM_BYTES
    assert new_rows(["é" * 191]) == new_row("é" * 191, bytes(16)) == b""
    assert new_rows(map(str, range(100))) == b""
