"""Numbered migrations: which a store lacks, and whether its version and its server fit."""

from __future__ import annotations

from workerd.errors import WrongVersion
from workerd.store.schema import MIGRATIONS, MYSQL_MIGRATIONS, SQLITE_MIGRATIONS, Migration

NEWEST = MIGRATIONS[-1].version
TIMEOUT_S = 86_400.0
"""Of one statement: a change of a large table copies or reads all of it."""


def require_version(server: str) -> None:
    """Raises WrongVersion if the server lacks SKIP LOCKED, default expressions or partial indexes."""
    least: tuple[int, ...]
    if server.startswith("SQLite"):
        name, least, number = "SQLite", (3, 35), server.split()[1]
    elif "MariaDB" in server:
        name, least, number = "MariaDB", (10, 6), server.removeprefix("5.5.5-").split("-")[0]
    else:
        # TiDB calls itself 8.0.11 and has both.
        name, least, number = "MySQL", (8, 0) if "TiDB" in server else (8, 0, 13), server.split("-")[0]
    if tuple(int(n) for n in number.split(".") if n.isdigit()) < least:
        needed = ".".join(map(str, least))
        raise WrongVersion(f"This is {name} {number}, workerd needs {needed} or newer; upgrade it.")


def check(found: int | None, server_version: str) -> None:
    """Raises WrongVersion, with what to do, unless `found` is this program's schema."""
    require_version(server_version)
    if found is None:
        raise WrongVersion("The store has no tables yet; run `workerd migrate`.")
    if found < NEWEST:
        raise WrongVersion(f"The store has schema {found}, this one needs {NEWEST}; run `workerd migrate`.")
    if found > NEWEST:
        raise _newer(found)


def _newer(found: int) -> WrongVersion:
    return WrongVersion(
        f"The store has schema {found}, this program knows {NEWEST} at most; install a newer workerd."
    )


def statements(dialect: str, found: int | None) -> list[str]:
    """The SQL that brings a store of version `found` to this one's. Raises WrongVersion if it is newer."""
    is_sqlite = dialect == "sqlite"
    needed = missing(found)
    if not needed:
        return []
    sql = [SQLITE_MIGRATIONS if is_sqlite else MYSQL_MIGRATIONS]
    for migration in needed:
        sql += migration.sqlite if is_sqlite else migration.mysql
        sql.append(
            f"INSERT INTO workerd_migrations (version, name) VALUES ({migration.version}, '{migration.name}')"
        )
    return ["BEGIN IMMEDIATE", *sql, "COMMIT"] if is_sqlite else sql


def missing(found: int | None) -> list[Migration]:
    """The migrations that a store of version `found` lacks. Raises WrongVersion if it is newer than all."""
    if found is not None and found > NEWEST:
        raise _newer(found)
    return [m for m in MIGRATIONS if m.version > (found or 0)]
