"""The node's files, and what a role or pool gets at its start."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from workerd.config.model import Config, NodeConfig

GENERATIONS = "generations"
"""The folder of the later generations of the daemon, below node.runtime_dir and node.state_dir."""


class Paths:
    """The node's files; sockets are in `private` (0700), except `wake`, which every local client may use.

    The first generation of the daemon has its files in node.runtime_dir and node.state_dir, each later one in
    a folder of its own below them.
    """

    def __init__(self, node: NodeConfig) -> None:
        self.shared_runtime = Path(node.runtime_dir)
        self.runtime = _own_folder(node.runtime_dir, node.generation)
        self.private = self.runtime / "private"
        self.superseded = self.private / "superseded"
        self.supervisor = self.private / "supervisor"
        self.dispatcher = self.private / "dispatcher"
        self.ingester = self.private / "ingester"
        self.metrics = self.private / "metrics"
        self.wake = self.runtime / "wake"
        self.pid = self.runtime / "workerd.pid"
        self.state = _own_folder(node.state_dir, node.generation)
        self.lock = self.state / "lock"
        self.spool = self.state / "spool"
        self.dead_letters = Path(node.state_dir) / "quarantine" / "outcomes.jsonl"
        self.incarnations = self.state / "incarnations"


def _own_folder(folder: Path, generation: int) -> Path:
    return Path(folder) if generation == 1 else Path(folder) / GENERATIONS / str(generation)


def pool_instance(pool: str, generation: int) -> str:
    """What the files and control groups of one generation of a pool are named after."""
    return pool if generation == 1 else f"{pool}·{generation}"


@dataclass(frozen=True)
class RoleContext:
    """What a role or pool gets: configuration, the node's incarnation, its channel to the supervisor.

    `generation`: of a pool, several of which may live side by side; its first process is of the first.
    `store_was_used`: by a dispatcher of this daemon before, so a store that is gone is not to be made anew.
    """

    config: Config
    incarnation: bytes
    control: socket.socket
    life: int
    generation: int = 1
    store_was_used: bool = False

    @property
    def watchdog(self) -> float:
        return self.config.supervisor.watchdog

    @property
    def paths(self) -> Paths:
        return Paths(self.config.node)
