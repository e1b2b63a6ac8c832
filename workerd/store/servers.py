"""What a MySQL server says of itself: which one it is, and whether it may be written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from workerd.errors import StoreAway
from workerd.store.session import Session

READ_ONLY_VARIABLES = (
    "read_only",
    "super_read_only",
    "innodb_read_only",
    "tidb_super_read_only",
    "tidb_restricted_read_only",
)
"""Global variables of MySQL, MariaDB and their kin; a server writes if those that it has are off. They bind
also a user whose rights let it write: what it writes to a replica is lost to everybody else."""

_OFF = frozenset({"OFF", "0", ""})
_AURORA = "aurora_version"
_GROUP, _GALERA = "group_replication_group_name", "wsrep_on"
_IDENTITY_VARIABLES = ("version", "hostname", "server_id", _GROUP, _GALERA, _AURORA)
_COMMIT_VARIABLES = ("log_bin", "sync_binlog")
_VARIABLES = ", ".join(
    f"'{name}'" for name in (*READ_ONLY_VARIABLES, *_IDENTITY_VARIABLES, *_COMMIT_VARIABLES)
)

# SHOW rather than SELECT @@…: it does not fail where a variable is unknown, and proxies that send reads to
# replicas send it to the server that takes the writes.
VARIABLES_QUERY = f"SHOW GLOBAL VARIABLES WHERE Variable_name IN ({_VARIABLES})"
MEMBERS_QUERY = "SELECT MEMBER_STATE FROM performance_schema.replication_group_members"
SCHEMA_QUERY = (
    "SELECT OPTIONS FROM information_schema.SCHEMATA_EXTENSIONS WHERE SCHEMA_NAME = DATABASE()"
    " AND OPTIONS LIKE '%READ ONLY=1%'"
)

READ_ONLY = "is read-only: a replica or a demoted primary"
READ_ONLY_CODE = 1290
"""The server's own code for a statement that it would refuse."""
UNSUPPORTED = frozenset({1044, 1064, 1105, 1109, 1142, 1146, 1193, 1227, 1235})
"""Answers to the questions above that say nothing of the server's role: no right to ask, or not known."""


def variables(session: Session) -> dict[str, str]:
    """The global variables that tell identity and role, as far as the server has them. Raises StoreAway."""
    rows = _rows(session, VARIABLES_QUERY)
    return {_text(name).lower(): _text(value) for name, value in rows}


def can_pipeline(session: Session, found: Mapping[str, str]) -> bool:
    """Whether a statement may be sent before the one before it has answered.

    Aurora loses some. TiDB does not lock what it reads, so what an UPDATE changed must be seen before COMMIT.
    """
    return _AURORA not in found and "TiDB" not in session.server_version


def shows_early(session: Session, found: Mapping[str, str]) -> bool:
    """Whether others see what a statement commits before it has answered: while InnoDB's log is being synced.

    Not where the binary log must be synced before that, or other servers agree: Galera, group replication.
    """
    agrees = found.get(_GALERA, "OFF").upper() not in _OFF or bool(found.get(_GROUP))
    synced = found.get("log_bin", "OFF").upper() not in _OFF and found.get("sync_binlog") == "1"
    return can_pipeline(session, found) and not agrees and not synced


def obstacle(session: Session, found: Mapping[str, str]) -> str:
    """Why the server may not be written, as the end of a sentence; "" if it may. Raises StoreAway.

    `found`: its `variables`.
    """
    if any(found.get(name, "OFF").upper() not in _OFF for name in READ_ONLY_VARIABLES):
        return READ_ONLY
    if "MariaDB" in session.server_version or "TiDB" in session.server_version:
        return ""
    if found.get(_GROUP):
        lost = lost_majority([_text(state) for (state,) in _rows(session, MEMBERS_QUERY)])
        if lost:
            return lost
    if _rows(session, SCHEMA_QUERY):
        return "has the database set to READ ONLY"
    return ""


def lost_majority(states: Sequence[str]) -> str:
    """Why a member of a group with members in these states cannot commit; "" if it can."""
    unreachable = sum(state == "UNREACHABLE" for state in states)
    if states and unreachable * 2 >= len(states):
        return f"has lost the majority of its group: {unreachable} of {len(states)} members are unreachable"
    return ""


def description(where: str, found: Mapping[str, str], version: str) -> str:
    """The server in use as people know it: where it was reached, its version, its id and its own name."""
    parts = [found.get("version", version)]
    if "server_id" in found:
        parts.append(f"server id {found['server_id']}")
    if found.get("hostname"):
        parts.append(f"host {found['hostname']}")
    return f"{where} ({', '.join(parts)})"


def _rows(session: Session, query: str) -> list[tuple[object, ...]]:
    try:
        return session.query(query)
    except StoreAway as error:
        if error.code not in UNSUPPORTED:
            raise
        return []


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
