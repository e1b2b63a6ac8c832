"""What a person wants to know of a store before anything runs: its schema, and what the user may not do."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from workerd.errors import StoreAway, StoreError, WrongVersion
from workerd.store import write_probe
from workerd.store.base import Store

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
        return StoreInspection(_sentence(error), [] if _will_be_made(store) else [_sentence(error)])
    except StoreError as error:
        return StoreInspection("", [_sentence(error)])
    return StoreInspection("Its schema is that of this version.", _faults(store))


def _will_be_made(store: Store) -> bool:
    """Whether the daemon makes its tables by itself: in an embedded store, where there are none."""
    try:
        return store.embedded and store.is_empty()
    except StoreError:
        return False


def _faults(store: Store) -> list[str]:
    denied: dict[str, list[str]] = {}
    for table, statements in write_probe.STATEMENTS.items():
        for privilege, sql in statements.items():
            try:
                store.run(partial(write_probe.run, sql=sql))
            except StoreAway as error:
                if error.code not in _DENIED:
                    return [_sentence(error)]
                denied.setdefault(table, []).append(privilege)
    return [
        f"This user lacks {', '.join(missing)} on {table}; grant it." for table, missing in denied.items()
    ]


def _sentence(error: StoreError) -> str:
    return f"{str(error).rstrip('.')}."
