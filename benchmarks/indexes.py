"""What do the indexes of the jobs' table cost the server for each job?

    python -m benchmarks.indexes
    python -m benchmarks.indexes --jobs 20000 --repeats 4

CPU of the server for claim and close by bare statements, with purge: with no index but the primary key, with
those of version 1 (six entries move for each job), and with those of today (two). All in turns on one server;
of each the least value counts, since other work on the machine only adds to it.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.floor import HANDLER, bare_close, filled, update_claimed
from benchmarks.harness import Figure, Server, main, parser
from tests.support.eventually import eventually
from tests.support.rows import Rows
from workerd.store.schema import version_1

GOAL = "1.5"
TODAY = "DROP KEY workerd_holder, DROP KEY workerd_scheduled, DROP COLUMN holder, DROP COLUMN due_at"
OTHERS = "DROP KEY workerd_live, DROP COLUMN live_key, DROP KEY workerd_request"
BEFORE = ", ".join(
    f"ADD {line.strip().rstrip(',')}"
    for line in version_1.MYSQL[0].splitlines()
    if line.strip().startswith(("KEY workerd_claim", "KEY workerd_due", "KEY workerd_node"))
)


class Case(NamedTuple):
    """A set of indexes: the ALTER that makes it of today's, and how the rows to claim are found by it."""

    name: str
    change: str
    select: str


PRIMARY = Case(
    "primary key only",
    f"{TODAY}, {OTHERS}",
    "FORCE INDEX (PRIMARY) WHERE id > %s AND handler = %s AND status = 'new' ORDER BY id",
)
CASES = (
    PRIMARY,
    Case(
        "indexes of version 1",
        f"{TODAY}, {BEFORE}",
        "FORCE INDEX (workerd_claim) WHERE handler = %s AND status = 'new' ORDER BY priority, run_at",
    ),
    Case(
        "indexes of today",
        "",
        "FORCE INDEX (workerd_holder) WHERE status = 'new' AND holder = %s ORDER BY priority, run_at",
    ),
)


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Each set of indexes in turn; then the ratios to the primary key alone."""
    repeats = options.repeats or (2 if options.quick else 4)
    count, batch = options.jobs or 20_000, options.batch
    used: dict[str, list[float]] = {case.name: [] for case in CASES}
    with Server("mariadb") as server:
        for _ in range(repeats):
            for case in CASES:
                used[case.name].append(cpu(server, case, count, batch))
        settings = server.settings | {"jobs": count, "batch": batch}
    for name, values in used.items():
        yield Figure("indexes", name, "µs/job", values, settings=settings, better="less")
    least = min(used[PRIMARY.name])
    for case in CASES[1:]:
        ratio = min(used[case.name]) / least
        goal = GOAL if case is CASES[-1] else ""
        name = f"{case.name} / {PRIMARY.name}"
        yield Figure("indexes", name, "ratio", [ratio], settings=settings, goal=goal, better="less")


def cpu(server: Server, case: Case, count: int, batch: int) -> float:
    """Microseconds of the server's CPU for each job, until what was changed is purged."""
    rows = Rows(filled(server, count))
    if case.change:
        rows.sql(f"ALTER TABLE workerd_jobs {case.change}")
    purged(server)
    with rows.connection() as link:
        cursor = link.cursor()
        cursor.execute("SET SESSION time_zone = '+00:00', in_predicate_conversion_threshold = 0")
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        link.autocommit(False)
        before = server.cpu()
        last = b""
        for _ in range(count // batch):
            values: list[Any] = [last, HANDLER] if case is PRIMARY else [HANDLER]
            taken, now = claim(cursor, case.select, values, batch)
            link.commit()
            bare_close(cursor, taken, now)
            link.commit()
            last = taken[-1][0]
    purged(server)
    return (server.cpu() - before) / count * 1e6


def claim(cursor: Any, select: str, values: list[Any], batch: int) -> tuple[list[Any], Any]:
    """Take a batch of rows that are found in this way: the rows, and when they were claimed."""
    cursor.execute("SELECT UTC_TIMESTAMP(6)")
    now = cursor.fetchone()[0]
    found = f"SELECT id, attempt, priority, run_at, vars FROM workerd_jobs {select} LIMIT %s"
    cursor.execute(f"{found} FOR UPDATE SKIP LOCKED", (*values, batch))
    return update_claimed(cursor, now)


def purged(server: Server) -> None:
    """Wait until the server has removed the old versions of rows."""
    assert server.database is not None
    sql = "SHOW GLOBAL STATUS LIKE 'Innodb_history_list_length'"
    with contextlib.suppress(AssertionError):  # it is never quite empty
        eventually(lambda: int(server.database.sql(sql)[0][1]) < 20, within=30, every=0.1)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--jobs", type=int, default=0)
    made.add_argument("--batch", type=int, default=500)
    return made


if __name__ == "__main__":
    raise SystemExit(main(arguments(), measure))
