"""Nodes: the row of each incarnation, its lease, and its removal."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

import msgspec

from workerd import clock
from workerd.config.limit_config import LimitConfig
from workerd.errors import NodeNameTaken
from workerd.job import COOLER_KEY, Status
from workerd.store import claims, columns, queries
from workerd.store.base import Tx
from workerd.store.claims import NO_NODE
from workerd.store.session import Row

MAX_STRAYS = 10_000
"""Incarnations with claims that are looked at."""


class ClockSetBack(msgspec.Struct, frozen=True):
    """The store's clock was set back, as a node saw it: when, microseconds of the new time, and how far."""

    at: int
    by_s: float


class HandlerFigures(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a node knows of one handler: its workers, and of the last minute the jobs that it ended.

    came
        Those of them that had become due within that minute, for the first time.
    """

    workers: int = 0
    came: int = 0
    ended: int = 0

    def __add__(self, other: HandlerFigures) -> HandlerFigures:
        return HandlerFigures(self.workers + other.workers, self.came + other.came, self.ended + other.ended)


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a node publishes of itself; None: an older node, which does not publish it.

    schedules
        Those of its configuration.
    lease_s
        The length of its lease.
    clock_set_back
        The last time that it saw this happen.
    handlers
        Those that its pools have loaded.
    limits
        Those of its configuration that its handlers use.
    limit_of
        The limit of each of its handlers that has one.
    fair
        Its handlers whose groups take turns.
    """

    schedules: list[str] | None = None
    lease_s: float = 0.0
    clock_set_back: ClockSetBack | None = None
    handlers: dict[str, HandlerFigures] = {}
    limits: dict[str, LimitConfig] | None = None
    limit_of: dict[str, str] = {}
    fair: list[str] = []


def nodes_with_other_limit(published: Mapping[str, NodeInfo], handler: str, limit: str) -> list[str]:
    """Those of these nodes that have the handler under another limit, or under none ("")."""
    return [
        name
        for name, info in published.items()
        if handler in info.handlers and info.limit_of.get(handler, "") != limit
    ]


class NodeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An incarnation of a node. `info`: JSON that it publishes; times are store times, microseconds."""

    id: bytes
    name: str
    host: str = ""
    pid: int | None = None
    boot_id: str | None = None
    version: str = ""
    started_at: int = 0
    lease_until: int = 0
    info: bytes | None = None

    @property
    def published(self) -> NodeInfo:
        """Its `info`; without content if that cannot be read."""
        try:
            return msgspec.json.decode(self.info or b"{}", type=NodeInfo)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return NodeInfo()


_COLUMNS = "id, name, host, pid, boot_id, version, started_at, lease_until, info"


def register(tx: Tx, node: NodeRecord, lease: float, *, former: Collection[bytes] = ()) -> int:
    """Insert this incarnation, or renew its row; returns the store's now.

    `lease`: seconds. `former`: incarnations known to be dead, because this one holds their lock. Raises
    NodeNameTaken while another live incarnation has the name.
    """
    _serialize(tx, node)
    now = tx.now
    for other in list_(tx):
        mine = other.id == node.id or other.id in former
        if other.name == node.name and not mine and other.lease_until > now:
            where = f"on {other.host or 'an unknown host'}, process {other.pid}"
            raise NodeNameTaken(
                f'A node named "{node.name}" is alive ({where});'
                " give this one another node.name, or stop that one."
            )
    tx.execute("DELETE FROM workerd_nodes WHERE id = %s", (node.id,))
    tx.execute(
        f"INSERT INTO workerd_nodes ({_COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (
            node.id, node.name, node.host, node.pid, node.boot_id, node.version,
            columns.at(node.started_at or now), columns.at(_until(now, lease)),
            node.info and node.info.decode(),
        ),
    )  # fmt: skip
    return now


def _serialize(tx: Tx, node: NodeRecord) -> None:
    """Serialize registrations of one name; on Galera they conflict at COMMIT.

    A row whose id is derived from the name is inserted and deleted again; no other transaction sees it.
    """
    ident = hashlib.blake2b(node.name.encode(), digest_size=16, person=b"workerd-node").digest()
    tx.execute(
        "INSERT INTO workerd_nodes (id, name, lease_until) VALUES (%s, %s, %s)"
        + tx.dialect.keep_existing("id"),
        (ident, node.name, "1970-01-01 00:00:01"),
    )
    tx.execute("DELETE FROM workerd_nodes WHERE id = %s", (ident,))


def _until(now: int, lease: float) -> int:
    return now + int(lease * clock.SECOND)


def renew(tx: Tx, node_id: bytes, lease: float, info: bytes | None = None) -> int | None:
    """Renew the lease, `lease` seconds from the store's now, which is returned.

    None if the row is gone or the lease is over: others may have rescued its claims.
    """
    now = tx.now
    sets = "lease_until = %s" if info is None else "lease_until = %s, info = %s"
    infos = [] if info is None else [info.decode()]
    renewed = tx.execute(
        f"UPDATE workerd_nodes SET {sets} WHERE id = %s AND lease_until >= %s",
        [columns.at(_until(now, lease)), *infos, node_id, columns.at(now)],
    )
    return now if renewed else None


def over(tx: Tx) -> list[NodeRecord]:
    """Nodes whose lease has expired, by the store's clock."""
    return [node for node in list_(tx) if node.lease_until < tx.now]


def remove(tx: Tx, node_id: bytes) -> bool:
    """Delete the row, unless attempts are `inprogress` for it; returns whether it was deleted."""
    left = tx.one(
        f"SELECT 1 FROM workerd_jobs {tx.dialect.hint('workerd_holder')}"
        " WHERE status = 'inprogress' AND holder = %s LIMIT 1",
        (claims.holder(node_id),),
    )
    if left is not None:
        return False
    tx.execute("DELETE FROM workerd_nodes WHERE id = %s", (node_id,))
    return True


def strays(tx: Tx) -> list[bytes]:
    """Incarnations that hold claims but have no row.

    A late COMMIT can add a claim after the row of its node was removed. A live node that lost its row
    registers again within a lease, so one that stays here longer is dead. `claims.NO_NODE` stands for rows
    without a node, which are not the runs of a recurring workflow.
    """
    known = {claims.holder(row[0]) for row in tx.query("SELECT id FROM workerd_nodes")}
    found = {*queries.holders(tx, Status.INPROGRESS, MAX_STRAYS)} - known
    strays_ = [bytes.fromhex(holder) for holder in sorted(found) if holder]
    if "" in found and _is_running_without_node(tx):
        strays_.append(NO_NODE)
    return strays_


def _is_running_without_node(tx: Tx) -> bool:
    row = tx.one(
        f"SELECT 1 FROM workerd_jobs {tx.dialect.hint('workerd_holder')}"
        " WHERE status = 'inprogress' AND holder = '' AND (unique_key IS NULL OR unique_key <> %s) LIMIT 1",
        (COOLER_KEY,),
    )
    return row is not None


def list_(tx: Tx) -> list[NodeRecord]:
    """All nodes, by name, the newest incarnation of a name last."""
    rows = tx.query(f"SELECT {_COLUMNS} FROM workerd_nodes ORDER BY name, started_at, id")
    return [_record(row) for row in rows]


def _record(row: Row) -> NodeRecord:
    node_id, name, host, pid, boot_id, version, started_at, lease_until, info = row
    return NodeRecord(
        id=node_id,
        name=columns.lenient(name) or "",
        host=columns.lenient(host) or "",
        pid=pid,
        boot_id=columns.lenient(boot_id),
        version=columns.lenient(version) or "",
        started_at=columns.time_or_zero(started_at),
        lease_until=columns.time_or_zero(lease_until),
        info=info,
    )
