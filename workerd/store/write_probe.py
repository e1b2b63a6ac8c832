"""Whether the daemon may do all that it does in the store: each kind of statement once, on no row."""

from __future__ import annotations

from workerd.store.base import Tx

_INSERTED_COLUMNS = {
    "workerd_requests": "id, workflow, params",
    "workerd_jobs": "id, handler",
    "workerd_schedules": "name, kind",
    "workerd_handlers": "name",
    "workerd_nodes": "id, name, lease_until",
}
"""Of each table, those without a default."""
_NEVER_DELETED = "workerd_handlers"


def _statements(table: str, names: str) -> dict[str, str]:
    key = names.partition(",")[0]
    # The server looks at privileges, and at its own state, before it looks for rows.
    found = {
        "SELECT": f"SELECT {key} FROM {table} WHERE 1 = 0",
        "INSERT": f"INSERT INTO {table} ({names}) SELECT {names} FROM {table} WHERE 1 = 0",
        "UPDATE": f"UPDATE {table} SET {key} = {key} WHERE 1 = 0",
    }
    if table != _NEVER_DELETED:
        found["DELETE"] = f"DELETE FROM {table} WHERE 1 = 0"
    return found


STATEMENTS = {table: _statements(table, names) for table, names in _INSERTED_COLUMNS.items()}
"""By table and privilege."""


def run(tx: Tx, sql: str) -> None:
    """Run one of them. Raises StoreAway, with the server's words, if the server or a privilege forbids it."""
    if sql.startswith("SELECT"):
        tx.query(sql)
    else:
        tx.execute(sql)


def probe(tx: Tx) -> None:
    """Run all of them. Raises as `run`."""
    for statements in STATEMENTS.values():
        for sql in statements.values():
            run(tx, sql)
