"""What the node is to others: its row in the store, and the incarnations that it had before."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import msgspec

from workerd import __version__
from workerd.config.limit_config import LimitConfig
from workerd.config.model import Config, NodeConfig
from workerd.runtime.generations import Generations
from workerd.runtime.paths import Paths, RoleContext
from workerd.store import schedules
from workerd.store.nodes import NodeInfo, NodeRecord

_HEX = frozenset("0123456789abcdef")


def node_record(ctx: RoleContext) -> NodeRecord:
    """The node's row; other nodes learn from it which schedules a live node has."""
    return NodeRecord(
        id=ctx.incarnation,
        name=ctx.config.node.name,
        host=socket.gethostname(),
        pid=os.getppid(),
        boot_id=_boot_id(),
        version=__version__,
        info=msgspec.json.encode(
            NodeInfo(
                schedules=sorted(schedules.wanted(ctx.config)),
                lease_s=ctx.config.dispatcher.lease,
                limits=_used_limits(ctx.config),
                limit_of={h.name: h.limit for h in ctx.config.handlers.values() if h.limit},
                fair=sorted(h.name for h in ctx.config.handlers.values() if h.fair),
            )
        ),
    )


def _used_limits(config: Config) -> dict[str, LimitConfig] | None:
    used = {handler.limit for handler in config.handlers.values()}
    return {name: limit for name, limit in config.limits.items() if name in used} or None


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def former_incarnations(node: NodeConfig, incarnation: bytes) -> list[bytes]:
    """The incarnations that this state folder has seen before this one: dead, since we hold its lock.

    Also those of other generations of the daemon that do not run.
    """
    generations = Generations(node)
    ids = _read_incarnations(Paths(node).incarnations)
    for number in generations.others():
        with generations.locked(number) as free:
            if free:
                ids += _read_incarnations(generations.paths(number).incarnations)
    return [former for former in ids if former != incarnation]


def _read_incarnations(path: Path) -> list[bytes]:
    try:
        words = path.read_text().split()
    except OSError:
        return []
    return [bytes.fromhex(word) for word in words if len(word) == 32 and set(word) <= _HEX]
