"""Descriptors that user code left open."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from workerd.runtime.descriptors import OpenDescriptor, make_dead, named, open_descriptors, opened_since


def test_what_was_opened_is_named(tmp_path: Path) -> None:
    """A socket by the address of its peer, else by its own."""
    before = open_descriptors()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client, open(tmp_path / "log", "w") as file:
            opened = opened_since(before)
            assert set(named(opened, shareable=False)) == {
                f"socket at 127.0.0.1:{port} (descriptor {server.fileno()})",
                f"socket to 127.0.0.1:{port} (descriptor {client.fileno()})",
            }
            assert named(opened, shareable=True) == [f"{tmp_path}/log (descriptor {file.fileno()})"]


def test_a_renamed_file_is_unchanged_and_a_reused_number_is_not(tmp_path: Path) -> None:
    """A log may be rotated after the import; a closed number may be the pool's own later."""
    fd = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY)
    found = OpenDescriptor.of(fd)
    assert found is not None
    (tmp_path / "log").rename(tmp_path / "log.1")
    assert found.is_unchanged
    other = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY)
    os.dup2(other, fd)
    assert not found.is_unchanged
    os.close(other)
    os.close(fd)
    assert not found.is_unchanged


def test_a_socket_that_was_made_dead_fails_and_keeps_its_number() -> None:
    """Its peer lives on: only this process has lost it."""
    before = open_descriptors()
    ours, theirs = socket.socketpair()
    kept = os.dup(ours.fileno())
    make_dead([descriptor for descriptor in opened_since(before) if descriptor.fd == ours.fileno()])
    with pytest.raises(BrokenPipeError):
        ours.send(b"x")
    assert ours.recv(1) == b""
    os.write(kept, b"y")
    assert theirs.recv(1) == b"y"
    os.close(kept)
    ours.close()
    theirs.close()
    assert open_descriptors() == before
