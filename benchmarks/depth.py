"""Is a store with millions of rows as fast as an almost empty one?

    python -m benchmarks.depth --rows 100000
    python -m benchmarks.depth --all            # 10^6 waiting, 10^6 scheduled, 2·10^6 finished: long

Throughput, claim latency (of one job into an idle node) and idle processor time, with 10,000 rows waiting and
with many more beside as many scheduled and twice as many finished; and once with a snapshot held open by
another connection for the whole run, which keeps the server from purging what was deleted. Each has a server
of its own; they run jobs in turns, and the ratios are those of each turn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import datetime
from typing import Any, NamedTuple

from benchmarks.harness import HANDLERS, Figure, Node, Server, config, mail, main, moment, parser, spread
from benchmarks.latency import by_client, feed
from tests.support.eventually import eventually

CHUNK = 10_000
FIRST_ID = 1 << 40
ROUND, ROUNDS = 8000, 5
"""Jobs of a round, which a few more than them run, and rounds in turns: machines drift within a minute."""
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


class Stage:
    """A node on a store of its own, filled as the case says; `rates` are those of the rounds so far."""

    def __init__(self, case: Case, stack: ExitStack) -> None:
        self.case = case
        self.server = stack.enter_context(Server("mariadb"))
        tables = {name: f'call = "{HANDLERS}:{name}"\nworkers = 2' for name in ("noop", "stamp")}
        self.node = stack.enter_context(Node(self.server.url(), config(tables)))
        self.node.enqueue("noop", 100, mail)
        self.node.wait_for("noop")
        self.node.client.pause("noop")
        base = fill(self.node, "noop", "completed", case.finished, FIRST_ID)
        self._base = self._last = fill(self.node, "noop", "scheduled", case.scheduled, base)
        self._end = fill(self.node, "noop", "new", case.waiting, self._base)
        self.server.rest()
        if case.snapshot:
            cursor = stack.enter_context(self.node.rows.connection()).cursor()
            cursor.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")
            cursor.execute("SELECT COUNT(*) FROM workerd_nodes")
        self.rates: list[float] = []
        self._costs: list[dict[str, float]] = []

    @property
    def settings(self) -> dict[str, Any]:
        """Of its figures."""
        costs = {"cpu_us_per_job": self._costs} if self._costs else {}
        return self.server.settings | self.case._asdict() | costs

    def round(self) -> None:
        """Run jobs of those that wait, and let the rest wait again."""
        if self._end - self._last < ROUND:
            self._end = fill(self.node, "noop", "new", self.case.waiting, self._end)
            self.server.rest()
        last, began = self._last + ROUND, self.node.rows.sql("SELECT UTC_TIMESTAMP(6) AS now")[0]["now"]
        cpu, server_cpu = self.node.cpu(), self.server.cpu()
        self.node.client.resume("noop")
        # One row by its key: counting what is left would cost a deep store more than a shallow one.
        sql = "SELECT 1 FROM workerd_jobs WHERE id > %s AND id < %s AND status = 'completed' LIMIT 1"
        eventually(lambda: self.node.rows.sql(sql, key(last), key(last + 1)), within=600, every=0.1)
        self.node.client.pause("noop")
        settle(self.node)
        used = {name: spent - cpu.get(name, 0.0) for name, spent in self.node.cpu().items()}
        used["server"] = self.server.cpu() - server_cpu
        ended = self._ended_since(began)
        self._costs.append({name: round(s / sum(ended.values()) * 1e6, 1) for name, s in used.items()})
        self.rates.append(rate(ended))

    def _ended_since(self, began: datetime) -> dict[datetime, int]:
        """How many jobs were recorded at each moment, in this order; notes the last job that was."""
        rows = self.node.rows.sql(
            "SELECT ingested_at AS at, COUNT(*) AS n, MAX(id) AS last FROM workerd_jobs WHERE id > %s"
            " AND status = 'completed' AND ingested_at > %s GROUP BY ingested_at ORDER BY ingested_at",
            key(self._base), began,
        )  # fmt: skip
        self._last = int.from_bytes(max(row["last"] for row in rows)[:8], "big")
        return {moment(row["at"]): int(row["n"]) for row in rows}


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """A shallow store, a deep one, and a shallow one under a snapshot; then the ratios."""
    deep = 1_000_000 if options.all else options.rows or (30_000 if options.quick else 100_000)
    cases = [
        Case("10,000 waiting", 10_000),
        Case(f"{deep:,} waiting, {deep:,} scheduled, {2 * deep:,} finished", deep, deep, 2 * deep),
        Case("10,000 waiting, a snapshot held", 10_000, snapshot=True),
    ]
    with ExitStack() as stack:
        stages = [Stage(case, stack) for case in cases]
        for stage in stages:
            yield from at_rest(stage, options)
        for _ in range(options.repeats or ROUNDS):
            for stage in stages:
                stage.round()
    for stage in stages:
        yield Figure("depth", stage.case.name, "jobs/s", stage.rates, settings=stage.settings)
    shallow, *others = stages
    for stage in others:
        ratios = [rate / beside for rate, beside in zip(stage.rates, shallow.rates, strict=True)]
        goal = "0.9" if stage.case.snapshot else "0.95"
        yield Figure("depth", f"{stage.case.name} / shallow", "ratio", ratios, goal=goal)


def at_rest(stage: Stage, options: argparse.Namespace) -> Iterator[Figure]:
    """Latency and idle processor time."""
    yield Figure(
        "depth", f"{stage.case.name}: latency", "ms", parts=spread(latencies(stage.node, options)),
        settings=stage.settings, better="less",
    )  # fmt: skip
    before, seconds = stage.node.cpu(), options.seconds or (5.0 if options.quick else 30.0)
    time.sleep(seconds)
    used = sum(stage.node.cpu().values()) - sum(before.values())
    yield Figure(
        "depth", f"{stage.case.name}: idle CPU", "%", [100 * used / seconds],
        settings=stage.settings, better="less",
    )  # fmt: skip


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


def latencies(node: Node, options: argparse.Namespace) -> list[float]:
    """Latency of single jobs of another handler."""
    path = node.path / "stamps"
    feed(by_client(node), path, 20, 50)
    path.unlink()
    return feed(by_client(node), path, 100, 50)


def rate(ended: Mapping[datetime, int]) -> float:
    """Jobs a second.

    What was claimed together is recorded together; the first of it began before the rest and is left out.
    """
    moments = list(ended)
    return (sum(ended.values()) - ended[moments[0]]) / (moments[-1] - moments[0]).total_seconds()


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
