"""How long does a big table take to migrate, and how long do writers wait meanwhile?

    python -m benchmarks.migration --rows 1000000

Rows of version 1, nine of ten completed, while another connection inserts: the seconds of each statement that
changes the table of jobs, and the longest wait of an INSERT in it. `MARIADBD=/path/mariadbd`
names another server.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator

from benchmarks.harness import Figure, Server, main, parser
from tests.support.rows import Rows
from workerd.job import new_id
from workerd.store import schema

CHUNK = 10_000
VARS = (
    '{"to": "someone@example.org", "subject": "Your order has been shipped and will arrive in a day or two."}'
)
# Doubles the table: MySQL has no sequences.
DOUBLE = """INSERT INTO workerd_jobs (id, handler, status, run_at, vars, payload, node_id, node, claimed_at)
    SELECT LEFT(UNHEX(SHA2(CONCAT(HEX(id), UUID_SHORT()), 256)), 16), handler, status, run_at, vars, payload,
    node_id, node, claimed_at FROM workerd_jobs LIMIT {count}"""
FIRST = """INSERT INTO workerd_jobs (id, handler, status, vars, payload, node_id, node, claimed_at) VALUES
    (%s, %s, %s, %s, '1', REPEAT('n', 16), 'former', UTC_TIMESTAMP(6))"""


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Fill, then each statement beside a writer."""
    rows = options.rows or (50_000 if options.quick else 1_000_000)
    with Server("mariadb") as server:
        table = Rows(server.url())
        for statement in schema.MIGRATIONS[0].mysql:
            table.sql(statement.replace("%", "%%"))
        states = ["completed"] * 18 + ["new", "scheduled"]
        for n, state in enumerate(states):
            table.sql(FIRST, new_id(), f"h{n % 10}", state, VARS)
        there = len(states)
        while there < rows:
            count = min(there, rows - there)
            table.sql(DOUBLE.format(count=count))
            there += count
        server.rest()
        for statement in schema.MIGRATIONS[1].mysql:
            if "workerd_jobs" in statement:
                yield figure(server, table, statement, rows)


def figure(server: Server, table: Rows, statement: str, rows: int) -> Figure:
    """The seconds of one statement, and the longest wait of those who insert beside it."""
    over, waits = threading.Event(), [0.0]

    def write() -> None:
        with table.connection() as link, link.cursor() as cursor:
            while not over.is_set():
                began = time.perf_counter()
                cursor.execute("INSERT INTO workerd_jobs (id, handler) VALUES (%s, 'w')", (new_id(),))
                waits.append(time.perf_counter() - began)
                time.sleep(0.002)

    writer = threading.Thread(target=write)
    writer.start()
    time.sleep(0.5)
    began = time.perf_counter()
    table.sql(statement.replace("%", "%%"))
    seconds = time.perf_counter() - began
    time.sleep(0.2)
    over.set()
    writer.join()
    name = " ".join(statement.split()).removeprefix("ALTER TABLE workerd_jobs ")[:44]
    parts = {"statement": seconds, "longest wait": max(waits), "n": len(waits) - 1}
    return Figure(
        "migration", name, "s", parts=parts, settings=server.settings | {"rows": rows}, better="less"
    )


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--rows", type=int, default=0)
    return made


if __name__ == "__main__":
    raise SystemExit(main(arguments(), measure))
