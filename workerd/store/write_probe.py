"""Whether the daemon may do all that it does in the store: each kind of statement once, changing nothing."""

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


def _statements() -> tuple[str, ...]:
    found = []
    for table, names in _INSERTED_COLUMNS.items():
        first = names.partition(",")[0]
        found += [
            f"UPDATE {table} SET {first} = {first} WHERE 1 = 0",
            f"INSERT INTO {table} ({names}) SELECT {names} FROM {table} WHERE 1 = 0",
        ]
        if table != "workerd_handlers":  # the only one that nothing is removed from
            found.append(f"DELETE FROM {table} WHERE 1 = 0")
    return tuple(found)


STATEMENTS = _statements()


def probe(tx: Tx) -> None:
    """Run each once. Raises StoreAway, with the server's words, if the server or a privilege forbids one."""
    for statement in STATEMENTS:
        tx.execute(statement)
