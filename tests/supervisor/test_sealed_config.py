"""The configuration as the supervisor holds it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from workerd.supervisor.sealed_config import SealedConfigReader


def node_name(reader: SealedConfigReader) -> str:
    sealed = reader.read()
    os.close(sealed.fd)
    return sealed.config.node.name


def test_a_node_keeps_its_name_when_its_host_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that the configuration gives counts all the same."""
    path = tmp_path / "workerd.toml"
    path.write_text("")
    monkeypatch.setattr(socket, "gethostname", lambda: "first")
    reader = SealedConfigReader(path)
    assert node_name(reader) == "first"
    monkeypatch.setattr(socket, "gethostname", lambda: "second")
    assert node_name(reader) == "first"
    assert node_name(SealedConfigReader(path)) == "second"
    path.write_text('[node]\nname = "given"\n')
    assert node_name(reader) == "given"
