"""Messages to the service manager, over real sockets."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator

import pytest

from workerd.runtime import systemd
from workerd.runtime.systemd import ServiceManager


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, str]]:
    """A listening service manager and its address as the environment gives it."""
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
    ):
        address = f"{folder}/notify" if request.param == "path" else f"@workerd-test-{os.getpid()}"
        sock.bind(address.replace("@", "\0"))
        sock.settimeout(10)
        yield sock, address


def test_every_line_arrives(manager: tuple[socket.socket, str]) -> None:
    """Each message is one datagram, whatever kind of socket the manager has."""
    sock, address = manager
    environ = {
        "NOTIFY_SOCKET": address,
        "WATCHDOG_USEC": "30000000",
        "WATCHDOG_PID": str(os.getpid()),
        "A": "b",
    }
    service_manager = ServiceManager.take(environ)
    assert environ == {"A": "b"}
    assert (service_manager.listens, service_manager.watchdog) == (True, 30.0)
    for lines in (
        systemd.ready(), systemd.status("3 jobs\nwait"), systemd.alive(), systemd.reloading(),
        systemd.extend(1.5), systemd.stopping(),
    ):  # fmt: skip
        service_manager.notify(lines)
    received = [sock.recv(8192).decode() for _ in range(6)]
    assert received[:3] == ["READY=1", "STATUS=3 jobs wait", "WATCHDOG=1"]
    assert received[3].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert received[4:] == ["EXTEND_TIMEOUT_USEC=1500000", "STOPPING=1"]


def test_a_long_status_is_cut(manager: tuple[socket.socket, str]) -> None:
    """A status of any length is sent as far as it fits, still as UTF-8."""
    sock, address = manager
    ServiceManager(address).notify(systemd.status("é" * 5000 + "\udcff"))
    assert len(sock.recv(8192).decode("utf-8")) > 2000


def test_without_a_manager_messages_are_discarded() -> None:
    """Also with a manager that is gone, and without one that expects this process to feed its watchdog."""
    assert not ServiceManager.take({}).listens
    assert not ServiceManager.take({"NOTIFY_SOCKET": "vsock:1:2"}).listens
    assert ServiceManager.take({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}).watchdog == 0
    assert ServiceManager.take({"WATCHDOG_USEC": "soon"}).watchdog == 0
    ServiceManager("/nonexistent/notify").notify(systemd.ready())
