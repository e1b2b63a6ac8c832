"""Where the engines say the same thing in different words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from workerd.store.base import Tx


class Dialect(NamedTuple):
    """SQL fragments; SQLite has one writer at a time, so it needs no row locks."""

    claim_index: str
    due_index: str
    node_index: str
    share: str
    lock: str
    skip: str  # lock what is free, pass over what is not
    bytes_of: str  # the size of a text column in bytes, to be formatted with its name
    keep: str  # an INSERT that meets its own key leaves the row as it is; 0 rows changed


MYSQL = Dialect(
    claim_index="FORCE INDEX (workerd_claim)",
    due_index="FORCE INDEX (workerd_due)",
    node_index="FORCE INDEX (workerd_node)",
    share=" LOCK IN SHARE MODE",
    lock=" FOR UPDATE",
    skip=" FOR UPDATE SKIP LOCKED",
    bytes_of="LENGTH({})",
    # Not INSERT IGNORE, which would also swallow values that do not fit.
    keep=" ON DUPLICATE KEY UPDATE {0} = {0}",
)
SQLITE = Dialect(
    claim_index="INDEXED BY workerd_claim",
    due_index="INDEXED BY workerd_due",
    node_index="INDEXED BY workerd_node",
    share="",
    lock="",
    skip="",
    bytes_of="LENGTH(CAST({} AS BLOB))",
    keep=" ON CONFLICT DO NOTHING",
)


def of(tx: Tx) -> Dialect:
    return MYSQL if tx.engine == "mysql" else SQLITE


def keys(rows: Iterable[tuple[bytes, int]]) -> str:
    """A condition on the primary key that both engines read as ranges of it, in its order."""
    by_attempt: dict[int, list[bytes]] = {}
    for job_id, attempt in rows:
        by_attempt.setdefault(attempt, []).append(job_id)
    ranges = []
    for attempt, ids in sorted(by_attempt.items()):
        listed = ",".join([f"x'{job_id.hex()}'" for job_id in sorted(ids)])
        ranges.append(f"(attempt = {int(attempt)} AND id IN ({listed}))")
    return " OR ".join(ranges)
