"""Numbered migrations: which the store has, which it lacks, and how they are applied once."""

from __future__ import annotations

from typing import NamedTuple

from workerd.errors import StoreAway, StoreRefused, WrongVersion
from workerd.store import schema
from workerd.store.base import Session, Tx


class Migration(NamedTuple):
    """One step of the schema; `mysql` must do no harm when it is run twice or by two at once."""

    version: int
    name: str
    mysql: list[str]
    sqlite: list[str]


MIGRATIONS = (Migration(1, "first tables", schema.MYSQL_FIRST, schema.SQLITE_FIRST),)
NEWEST = MIGRATIONS[-1].version

# Table, column or index is there already, or already gone: MySQL commits at each DDL statement, so a
# migration that was cut short, or that another node runs too, meets its own work.
_DONE_BEFORE = frozenset({1050, 1060, 1061, 1091})


def version(tx: Tx) -> int | None:
    """The newest migration that the store has; None for an empty store."""
    table = tx.one(tx.dialect.table_exists, ("workerd_migrations",))
    if table is None:
        return None
    newest = tx.one("SELECT MAX(version) FROM workerd_migrations")
    return None if newest is None or newest[0] is None else int(newest[0])


def require_version(server: str) -> None:
    """WrongVersion if the server lacks SKIP LOCKED, default expressions or partial indexes."""
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
    """WrongVersion, with what to do, unless `found` is this program's schema."""
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


def apply_sqlite(tx: Tx) -> list[str]:
    """Apply what is missing, all of it or nothing."""
    applied = []
    tx.execute(schema.SQLITE_MIGRATIONS)
    for migration in _missing(version(tx)):
        for statement in migration.sqlite:
            tx.execute(statement)
        tx.execute("INSERT INTO workerd_migrations (version, name) VALUES (%s, %s)", migration[:2])
        applied.append(f"{migration.version}: {migration.name}")
    return applied


def apply_mysql(session: Session) -> list[str]:
    """Apply what is missing, statement by statement."""
    found = version(Tx(session))
    if found is not None and found > NEWEST:
        raise _newer(found)
    _ddl(session, schema.MYSQL_MIGRATIONS)
    applied = []
    for migration in _missing(found):
        for statement in migration.mysql:
            _ddl(session, statement)
        # Of two that migrate at once, one finds the row there and does not claim the work.
        changed = session.execute(
            "INSERT INTO workerd_migrations (version, name) VALUES (%s, %s)"
            " ON DUPLICATE KEY UPDATE version = version",
            migration[:2],
        )
        session.commit()
        if changed:
            applied.append(f"{migration.version}: {migration.name}")
    return applied


def _missing(found: int | None) -> list[Migration]:
    if found is not None and found > NEWEST:
        raise _newer(found)
    return [m for m in MIGRATIONS if m.version > (found or 0)]


def _ddl(session: Session, statement: str) -> None:
    try:
        session.execute(statement)
    except (StoreRefused, StoreAway) as error:
        if error.code not in _DONE_BEFORE:
            raise
