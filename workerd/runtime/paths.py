"""The node's files, and what a role or pool gets at its start."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from workerd.config.model import Config, NodeConfig


class Paths:
    """The node's files; sockets are in `private` (0700), except `wake`, which every local client may use."""

    def __init__(self, node: NodeConfig) -> None:
        self.runtime = Path(node.runtime_dir)
        self.private = self.runtime / "private"
        self.supervisor = self.private / "supervisor"
        self.dispatcher = self.private / "dispatcher"
        self.ingester = self.private / "ingester"
        self.metrics = self.private / "metrics"
        self.wake = self.runtime / "wake"
        self.pid = self.runtime / "workerd.pid"
        self.state = Path(node.state_dir)
        self.lock = self.state / "lock"
        self.spool = self.state / "spool"
        self.dead_letters = self.state / "quarantine" / "outcomes.jsonl"
        self.incarnations = self.state / "incarnations"


def pool_instance(pool: str, generation: int) -> str:
    """What the files and control groups of one generation of a pool are named after."""
    return pool if generation == 1 else f"{pool}·{generation}"


@dataclass(frozen=True)
class RoleContext:
    """What a role or pool gets: configuration, the node's incarnation, its channel to the supervisor.

    `generation`: of a pool, several of which may live side by side; its first process is of the first.
    """

    config: Config
    incarnation: bytes
    control: socket.socket
    life: int
    generation: int = 1

    @property
    def watchdog(self) -> float:
        return self.config.supervisor.watchdog

    @property
    def paths(self) -> Paths:
        return Paths(self.config.node)
