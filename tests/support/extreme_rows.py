"""Rows that only another program would write: for each column of each table, each extreme of its type."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from workerd.errors import StoreError
from workerd.job import new_id
from workerd.store.base import Store, Tx
from workerd.store.schema import MIGRATIONS

LONG_BYTES = 15 * 1024 * 1024
"""Of the longest texts: below the packet limit of the test's server."""

WITH_ID = ("workerd_jobs", "workerd_requests", "workerd_nodes")
_DEEP = "[" * 50_000 + "]" * 50_000
_TEXTS = (
    "", " ", "null", "true", "0", "[]", '""', '{"a":', '{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud800"}',
    _DEEP,
    '{"a": ' + _DEEP + "}", '{"":{}}', '{"a": 123456789012345678901234567890}', "\x00",
    "\N{GRINNING FACE}" * 1000,
)  # fmt: skip
_DATES = (
    "0000-00-00 00:00:00", "0001-01-01 00:00:00", "1000-01-01 00:00:00", "1969-12-31 23:59:59",
    "2024-00-00 00:00:00", "2024-02-31 00:00:00", "9999-12-31 23:59:59.999999",
)  # fmt: skip
_BY_TYPE: dict[str, tuple[Any, ...]] = {
    "BINARY": (b"\x00" * 16, b"\xff" * 16, b"n" * 16),
    "BINARY(8)": (b"\x00" * 8, b"\xff" * 8),
    "INT UNSIGNED": (0, 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, -1),
    "INT": (-(2**31), -1, 0, 2**31 - 1),
    "BIGINT UNSIGNED": (0, 1, 2**53 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1),
    "TINYINT": (-128, 0, 127),
    "DOUBLE": (-1.7e308, -1.0, 0.0, 5e-324, 1.7e308),
    "DATETIME": _DATES,
    "TEXT": (*_TEXTS, "x" * 65_535),
    "MEDIUMTEXT": (*_TEXTS, "x" * LONG_BYTES),
    "LONGTEXT": (*_TEXTS, "x" * LONG_BYTES, '{"a": "' + "x" * LONG_BYTES + '"}'),
    "MEDIUMBLOB": (b"", b"null", b"\xff\xfe", b"\x00" * LONG_BYTES),
    "LONGBLOB": (b"", b"\xff\xfe", b"\x00" * LONG_BYTES),
}
_STEPS = tuple(
    f'{{"name": "pair", "jobs": [{{"name": "a", "handler": "noop", "step": {step}, "needs": {needs}}}]}}'
    for step, needs in (
        (2**32, "[]"),
        (2**63 - 1, "[]"),
        (2**63, "[]"),
        (-1, "[]"),
        (0, '["a"]'),
        (0, '["b"]'),
    )
)
_COLUMN = re.compile(
    r"^\s+(?:ADD COLUMN )?(\w+) (BINARY\(8\)|BINARY|BIGINT UNSIGNED|INT UNSIGNED|INT|TINYINT|DOUBLE|DATETIME"
    r"|TEXT|MEDIUMTEXT|MEDIUMBLOB|LONGTEXT|LONGBLOB|VARCHAR\((\d+)\)|ENUM\(([^)]*)\))(?: |\()",
    re.MULTILINE,
)


class Extreme(NamedTuple):
    """One value to write."""

    table: str
    column: str
    value: Any


def extremes(table: str) -> Iterator[Extreme]:
    """Every extreme value of every column of a table, NULL included."""
    statements = [sql for step in MIGRATIONS for sql in step.mysql if re.search(rf"\b{table}\b", sql)]
    for column, kind, length, choices in _COLUMN.findall("\n".join(statements)):
        if column == "live_key":
            continue
        if length:
            values: tuple[Any, ...] = _names(int(length))
        elif choices:
            values = (*(choice.strip("'") for choice in choices.split(",")), "unknown")
        else:
            values = _BY_TYPE[kind]
        for value in (*values, *(_STEPS if column == "steps" else ()), None):
            yield Extreme(table, column, value)


def _names(length: int) -> tuple[str, ...]:
    return (
        "", " ", "x ", "~", "/", "..", "a\nb", "\x00", "</script>", "%", "'\"\\", "x" * length,
        "\N{GRINNING FACE}" * length,
    )  # fmt: skip


def write(store: Store, base: dict[str, Any], extreme: Extreme) -> dict[str, Any] | None:
    """Insert a row as `base` with that one value; the row, or None if the engine refused it."""
    row = {**({"id": new_id()} if extreme.table in WITH_ID else {}), **base, extreme.column: extreme.value}

    def insert(tx: Tx) -> None:
        if tx.dialect.name != "sqlite":
            tx.execute("SET SESSION sql_mode = 'ALLOW_INVALID_DATES'")
        names, marks = ", ".join(row), ", ".join(["%s"] * len(row))
        tx.execute(f"INSERT INTO {extreme.table} ({names}) VALUES ({marks})", list(row.values()))

    with contextlib.suppress(StoreError, OverflowError):
        store.run(insert)
        return row
    return None
