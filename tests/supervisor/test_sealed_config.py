"""The configuration as the supervisor holds it."""

from __future__ import annotations

import os
import resource
import socket
from pathlib import Path

import pytest

from tests.support.descriptors import open_descriptors, spare_descriptors
from workerd.errors import ConfigError
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


@pytest.mark.parametrize("spare", range(3))
def test_too_few_descriptors_are_an_error_of_the_reading(tmp_path: Path, spare: int) -> None:
    """Whoever asked for a reload gets an answer, and no descriptor stays open."""
    path = tmp_path / "workerd.toml"
    path.write_text('[node]\nname = "given"\n')
    reader = SealedConfigReader(path)
    before = open_descriptors()
    with (
        spare_descriptors(spare),
        pytest.raises(ConfigError, match="the configuration could not be read: Too many open files"),
    ):
        reader.read()
    assert open_descriptors() == before
    assert node_name(reader) == "given"


def test_a_node_with_more_than_a_thousand_descriptors_reads(tmp_path: Path) -> None:
    """As one of five hundred pools."""
    path = tmp_path / "workerd.toml"
    path.write_text('[node]\nname = "given"\n')
    reader = SealedConfigReader(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    held = [os.dup(0) for _ in range(1024)]
    try:
        assert node_name(reader) == "given"
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
