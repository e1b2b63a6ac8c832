"""The node's earlier incarnations, from the files of its state folder."""

from __future__ import annotations

import fcntl
from pathlib import Path

from workerd.config.model import NodeConfig
from workerd.dispatcher.node_record import former_incarnations
from workerd.runtime.paths import Paths


def test_former_incarnations_are_all_but_our_own(tmp_path: Path) -> None:
    """The list is read leniently; a torn line counts for nothing. Of other generations, if they are dead."""
    node = NodeConfig(state_dir=tmp_path)
    path = tmp_path / "incarnations"
    assert former_incarnations(node, bytes(16)) == []
    path.write_text(f"{'ab' * 16}\n{'00' * 16}\nabcd\nzz{'ab' * 15}\n")
    assert former_incarnations(node, bytes(16)) == [bytes.fromhex("ab" * 16)]
    other = Paths(NodeConfig(state_dir=tmp_path, generation=2))
    other.state.mkdir(parents=True)
    other.incarnations.write_text("cd" * 16)
    with other.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert former_incarnations(node, bytes(16)) == [bytes.fromhex("ab" * 16)]
    assert former_incarnations(node, bytes(16)) == [bytes.fromhex("ab" * 16), bytes.fromhex("cd" * 16)]
