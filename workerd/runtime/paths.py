"""Where the node's files are, and what a role is given at its start."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from workerd.config.model import Config, NodeConfig


class Paths:
    """The node's files: sockets in `private` (0700), `wake` beside it for any local client."""

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
        self.incarnations = self.state / "incarnations"


@dataclass(frozen=True)
class RoleContext:
    """A role's share of the world: the configuration, whose incarnation it is, its line upwards."""

    config: Config
    incarnation: bytes
    control: socket.socket
    life: int

    @property
    def watchdog(self) -> float:
        return self.config.supervisor.watchdog

    @property
    def paths(self) -> Paths:
        return Paths(self.config.node)
