"""The migrations in order, one file each; a migration is never changed once released."""

from __future__ import annotations

from typing import NamedTuple

from workerd.store.schema import version_1, version_2
from workerd.store.schema.column_types import LITE_NOW, NOW, TABLE


class Migration(NamedTuple):
    """One step of the schema.

    Each statement of `mysql` makes or removes all that it names or nothing: MySQL commits after each, and a
    statement whose work is found done (by a migration that was cut short, or another node) is passed over.
    """

    version: int
    name: str
    mysql: list[str]
    sqlite: list[str]


MYSQL_MIGRATIONS = f"""CREATE TABLE IF NOT EXISTS workerd_migrations (
    version INT UNSIGNED NOT NULL,
    name VARCHAR(191) NOT NULL,
    applied_at DATETIME(6) NOT NULL DEFAULT {NOW},
    PRIMARY KEY (version)
) {TABLE}"""

SQLITE_MIGRATIONS = f"""CREATE TABLE IF NOT EXISTS workerd_migrations (
    version INTEGER NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    applied_at TEXT NOT NULL DEFAULT {LITE_NOW}
)"""

MIGRATIONS = (
    Migration(1, "first tables", version_1.MYSQL, version_1.SQLITE),
    Migration(2, "capabilities", version_2.MYSQL, version_2.SQLITE),
)
