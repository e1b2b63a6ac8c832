"""What a person wants to know of a store before anything runs: its schema, and what the user may not do."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from workerd.errors import StoreAway, StoreError, StoreRefused, WrongVersion
from workerd.store import migrations
from workerd.store.base import Store, Tx

_STATEMENTS = {
    # Of no row: the server checks privileges before it looks for any.
    "SELECT": "SELECT {key} FROM {table} WHERE 1 = 0",
    "INSERT": "INSERT INTO {table} ({key}) SELECT {key} FROM {table} WHERE 1 = 0",
    "UPDATE": "UPDATE {table} SET {key} = {key} WHERE 1 = 0",
    "DELETE": "DELETE FROM {table} WHERE 1 = 0",
}
_KEYS = {
    "workerd_jobs": "id", "workerd_requests": "id", "workerd_schedules": "name", "workerd_nodes": "id",
    "workerd_handlers": "name",
}  # fmt: skip
_DENIED = frozenset({1142, 1143})
"""A command denied on a table or a column."""


class StoreInspection(NamedTuple):
    """`schema`: a sentence, "" if the store does not answer; `faults`: what keeps the store from use."""

    schema: str
    faults: list[str]


def inspect(store: Store) -> StoreInspection:
    """Ask for the schema, and try each statement of daily work on no row; no StoreError is raised."""
    try:
        store.check_version()
    except WrongVersion as error:
        return StoreInspection(_sentence(error), [] if _can_migrate(store) else [_sentence(error)])
    except StoreError as error:
        return StoreInspection("", [_sentence(error)])
    return StoreInspection("Its schema is that of this version.", _faults(store))


def _can_migrate(store: Store) -> bool:
    try:
        if store.is_empty():
            return True
        migrations.require_version(store.server_version)
        return bool(store.migration_sql())
    except StoreError:
        return False


def _faults(store: Store) -> list[str]:
    denied: dict[str, list[str]] = {}
    for table, key in _KEYS.items():
        for privilege, statement in _STATEMENTS.items():
            try:
                store.run(partial(_try, sql=statement.format(table=table, key=key)))
            except StoreRefused:
                continue  # the values of a row are the next question
            except StoreAway as error:
                if error.code not in _DENIED:
                    return [_sentence(error)]
                denied.setdefault(table, []).append(privilege)
    return [
        f"This user lacks {', '.join(missing)} on {table}; grant it." for table, missing in denied.items()
    ]


def _try(tx: Tx, sql: str) -> None:
    if sql.startswith("SELECT"):
        tx.query(sql)
    else:
        tx.execute(sql)


def _sentence(error: StoreError) -> str:
    return f"{str(error).rstrip('.')}."
