"""The page of tables: each column as the migrations declare it, with its meaning."""

from __future__ import annotations

import re
from typing import NamedTuple

from docs.generators.column_meanings import COLUMNS, TABLES
from workerd.store.schema import MIGRATIONS

_HEAD = """# Tables

All times are UTC, `DATETIME(6)`; ids are UUIDs as 16 bytes (`HEX(id)` or `BIN_TO_UUID(id)` shows them). SQLite has the
same tables, with checks in place of types. `workerd migrate --sql` prints the statements.

**What you may write.** A plain `INSERT` into `workerd_jobs` is a job; only `id` and `handler` are required. It may set the
columns marked *insert*. Everything else belongs to workerd: use the command line, HTTP or the client to change it.
"""
_COLUMN = re.compile(
    r"^\s+(?:ADD COLUMN )?(?P<name>[a-z_]+)"
    r" (?P<type>(?:BINARY|VARCHAR|INT|BIGINT|TINYINT|DOUBLE|DATETIME|ENUM|[A-Z]*TEXT|[A-Z]*BLOB)"
    r"(?:\([^)]*\))?(?: UNSIGNED)?)(?P<rest>[^\n]*?),?$",
    re.MULTILINE,
)
_TABLE = re.compile(r"(?:CREATE TABLE IF NOT EXISTS|ALTER TABLE) (\w+)")


class Column(NamedTuple):
    """One column as it is declared."""

    table: str
    name: str
    type: str
    rest: str

    @property
    def default(self) -> str:
        """What stands in it when nothing is written."""
        found = re.search(r"DEFAULT (\([^ ]*\)\)?|\S+)", self.rest)
        if found is not None:
            value = found[1].strip("()").replace("'", "")
            return "now" if "UTC_TIMESTAMP" in found[1] else value
        if "GENERATED" in self.rest or "AS (" in self.rest:
            return "generated"
        return "required" if "NOT NULL" in self.rest else "NULL"


def columns() -> list[Column]:
    """The columns of all tables, in order."""
    found = []
    for migration in MIGRATIONS:
        for statement in migration.mysql:
            table = _TABLE.search(statement)
            if table is not None:
                # A definition over several lines is one.
                flat = re.sub(r"\n\s+(?=AS|\(CASE)", " ", statement)
                found += [
                    Column(table[1], *match.group("name", "type", "rest")) for match in _COLUMN.finditer(flat)
                ]
    return found


def page() -> str:
    """Every table with its columns."""
    by_table: dict[str, list[Column]] = {}
    for column in columns():
        by_table.setdefault(column.table, []).append(column)
    parts = [_HEAD]
    for table, declared in by_table.items():
        rows = [
            f"| `{c.name}` | {_short(c.type)} | {c.default} | {COLUMNS[c.table.removeprefix('workerd_')][c.name]} |"
            for c in declared
        ]
        head = ["| column | type | default | meaning |", "|---|---|---|---|"]
        parts.append("\n".join([f"## {table}", "", TABLES[table], "", *head, *rows, ""]))
    return "\n".join(parts)


def _short(kind: str) -> str:
    return kind.replace("','", ", ").replace("'", "").replace("ENUM(", "one of (")
