"""Is a store with millions of rows as fast as an almost empty one?

    python -m benchmarks.depth --rows 100000
    python -m benchmarks.depth --all            # 10^6 waiting, 10^6 scheduled, 2·10^6 finished: long

Throughput, claim latency (of one job into an idle node) and idle processor time, with 10,000 rows waiting and
with many more beside as many scheduled and twice as many finished; and once with a snapshot held open by
another connection for the whole run, which keeps the server from purging what was deleted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

from benchmarks.harness import HANDLERS, Figure, Node, Server, config, mail, main, moment, parser, spread
from benchmarks.latency import by_client, feed
from tests.support.eventually import eventually

CHUNK = 10_000
FIRST_ID = 1 << 40
RUN, PART = 40_000, 4000
"""Jobs run per round, and per value."""
VALUES = 6
# The server generates the rows from a sequence; ids are in the order of time, like UUIDv7.
FILL = """INSERT INTO workerd_jobs (id, handler, status, run_at, vars, reason, success, payload, payload_type,
    claimed_at, started_at, finished_at, ingested_at, node_id, node)
    SELECT UNHEX(CONCAT(LPAD(HEX({base} + seq), 16, '0'), REPLACE(LEFT(UUID(), 18), '-', ''))), '{handler}',
    '{status}', UTC_TIMESTAMP(6) + INTERVAL {hours} HOUR, '{vars}', {ended} FROM seq_1_to_{count}"""
ENDED = (
    "'ok', 1, '1', 'json', UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), UTC_TIMESTAMP(6),"
    " REPEAT('x', 16), 'former'"
)
NEVER = "NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL"


class Case(NamedTuple):
    """The rows in the store besides the jobs that run."""

    name: str
    waiting: int
    scheduled: int = 0
    finished: int = 0
    snapshot: bool = False


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """A shallow store, a deep one, and a shallow one under a snapshot; then the ratios."""
    deep = 1_000_000 if options.all else options.rows or (30_000 if options.quick else 100_000)
    cases = [
        Case("10,000 waiting", 10_000),
        Case(f"{deep:,} waiting, {deep:,} scheduled, {2 * deep:,} finished", deep, deep, 2 * deep),
        Case("10,000 waiting, a snapshot held", 10_000, snapshot=True),
    ]
    medians = []
    for case in cases:
        with Server("mariadb") as server:
            for figure in measured(case, server, options):
                if figure.unit == "jobs/s":
                    medians.append(figure.median)
                yield figure
    for case, median in zip(cases[1:], medians[1:], strict=True):
        yield Figure("depth", f"{case.name} / shallow", "ratio", [median / medians[0]], goal="0.9")


def fill(node: Node, handler: str, status: str, count: int, base: int, vars_text: str = "{}") -> int:
    """Insert rows; returns the next id."""
    for start in range(0, count, CHUNK):
        part = min(CHUNK, count - start)
        node.rows.sql(
            FILL.format(
                base=base + start,
                handler=handler,
                status=status,
                hours=1000 if status == "scheduled" else 0,
                vars=vars_text,
                ended=ENDED if status == "completed" else NEVER,
                count=part,
            )
        )
    return base + count


def measured(case: Case, server: Server, options: argparse.Namespace) -> Iterator[Figure]:
    """One state of the store."""
    tables = {
        "noop": f'call = "{HANDLERS}:noop"\nworkers = 2',
        "stamp": f'call = "{HANDLERS}:stamp"\nworkers = 2',
    }
    with ExitStack() as stack:
        node = stack.enter_context(Node(server.url(), config(tables)))
        node.enqueue("noop", 100, mail)
        node.wait_for("noop")
        node.client.pause("noop")
        base = fill(node, "noop", "completed", case.finished, FIRST_ID)
        base = fill(node, "noop", "scheduled", case.scheduled, base)
        end = fill(node, "noop", "new", case.waiting, base)
        server.rest()
        if case.snapshot:
            link = stack.enter_context(node.rows.connection())
            cursor = link.cursor()
            cursor.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")
            cursor.execute("SELECT COUNT(*) FROM workerd_nodes")
        settings = server.settings | case._asdict()
        yield Figure(
            "depth", f"{case.name}: latency", "ms", parts=spread(latencies(node, options)),
            settings=settings, better="less",
        )  # fmt: skip
        before, seconds = node.cpu(), options.seconds or (5.0 if options.quick else 30.0)
        time.sleep(seconds)
        used = sum(node.cpu().values()) - sum(before.values())
        yield Figure(
            "depth", f"{case.name}: idle CPU", "%", [100 * used / seconds],
            settings=settings, better="less",
        )  # fmt: skip
        values = [*rates(node, base, end)]
        while len(values) < VALUES:
            base, end = end, fill(node, "noop", "new", case.waiting, end)
            server.rest()
            values += rates(node, base, end)
        yield Figure("depth", case.name, "jobs/s", values, settings=settings)


def latencies(node: Node, options: argparse.Namespace) -> list[float]:
    """Latency of single jobs of another handler."""
    path = node.path / "stamps"
    feed(by_client(node), path, 20, 50)
    path.unlink()
    return feed(by_client(node), path, 100, 50)


def rates(node: Node, base: int, end: int) -> Iterator[float]:
    """Jobs a second for each part of what is run first, while the rest waits behind it.

    What was claimed together is recorded together; the first of it began before the rest and is left out.
    """
    last = min(end, base + RUN)
    node.client.resume("noop")
    # One row by its key: counting what is left would cost a deep store more than a shallow one.
    sql = "SELECT 1 FROM workerd_jobs WHERE id > %s AND id < %s AND status = 'completed' LIMIT 1"
    eventually(lambda: node.rows.sql(sql, key(last), key(last + 1)), within=600, every=0.1)
    node.client.pause("noop")
    settle(node)
    rows = node.rows.sql(
        "SELECT ingested_at AS at, COUNT(*) AS n FROM workerd_jobs WHERE id > %s AND id < %s"
        " AND status = 'completed' GROUP BY ingested_at ORDER BY ingested_at",
        key(base + 1), key(last + 1),
    )  # fmt: skip
    count, began = 0, moment(rows[0]["at"])
    for row in rows[1:]:
        count += int(row["n"])
        if count >= PART:
            yield count / (moment(row["at"]) - began).total_seconds()
            count, began = 0, moment(row["at"])


def settle(node: Node) -> None:
    """Until what was claimed before the pause has ended."""
    sql = "SELECT 1 FROM workerd_jobs WHERE handler = 'noop' AND status = 'inprogress' LIMIT 1"
    eventually(lambda: not node.rows.sql(sql), within=60, every=0.05)


def key(number: int) -> bytes:
    """Where the ids of this number begin."""
    return number.to_bytes(8, "big") + bytes(8)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--all", action="store_true", help="10^6 rows")
    made.add_argument(
        "--rows", type=int, default=0, help="that wait, and are scheduled; twice as many finished"
    )
    made.add_argument("--seconds", type=float, default=0.0, help="of idleness")
    return made


if __name__ == "__main__":
    raise SystemExit(main(arguments(), measure))
