"""How fast are the bare SQL statements, and what share of that does the whole program reach?

    python -m benchmarks.floor
    python -m benchmarks.floor --batch 500 --jobs 20000

On the real table with all its indexes: claim (SELECT … SKIP LOCKED, UPDATE, COMMIT) and close (one UPDATE
with a derived table, COMMIT), 500 rows a statement, one connection, no processes. Then the same through the
program's own store functions, then the whole program with 2 workers, in turns on the same server, so that a
machine whose speed drifts affects all alike. The last figures are the ratio of the whole program to the bare
statements of the turns just before and after it, and that of the server's CPU time for a job to what the same
bare statements take on a table without any index but its primary key.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

from benchmarks import throughput
from benchmarks.harness import HANDLERS, Figure, Node, Server, config, mail, main, parser
from tests.support.rows import Rows
from workerd.client import Client
from workerd.config.model import StoreConfig
from workerd.job import Claim, Status, new_id
from workerd.job_spec import JobSpec
from workerd.outcome import Outcome, Reason, Usage
from workerd.store import claims, handlers, outcomes
from workerd.store.base import Store
from workerd.store.claims import Cursor, NodeIdent
from workerd.store.engines import open_store

NODE = NodeIdent(new_id(), "floor")
HANDLER = "noop"
WARM = 2000


PURGE_S = 1.0
"""After a turn, for the server to remove what the statements left: that is part of their cost."""


class Spent(NamedTuple):
    """Seconds of claiming and of closing, and how many jobs."""

    claiming: float
    closing: float
    jobs: int

    @property
    def rate(self) -> float:
        """Jobs per second, claim and close one after the other."""
        return self.jobs / (self.claiming + self.closing)


def filled(server: Server, count: int) -> str:
    """The URL of a fresh store with so many jobs of a known handler."""
    url = server.url()
    store = open_store(StoreConfig(url=url))
    store.migrate()
    store.run(lambda tx: handlers.seen(tx, HANDLER, None, "floor"))
    store.close()
    with Client(url) as client:
        for start in range(0, count, 2000):
            numbers = range(start, min(start + 2000, count))
            client.enqueue_many([JobSpec(handler=HANDLER, vars=mail(n)) for n in numbers])
    return url


# -- the statements, written by hand ----------


def bare(url: str, count: int, batch: int, *, indexed: bool = True) -> Spent:
    """Claim and close so many jobs by hand-written SQL; `indexed`: the table has its indexes."""
    with Rows(url).connection() as link:
        cursor = link.cursor()
        cursor.execute("SET SESSION time_zone = '+00:00', in_predicate_conversion_threshold = 0")
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        link.autocommit(False)
        claiming = closing = 0.0
        last = b""
        for _ in range(count // batch):
            began = time.perf_counter()
            rows, now = bare_claim(cursor, batch) if indexed else claim_by_id(cursor, batch, last)
            last = rows[-1][0]
            link.commit()
            claimed = time.perf_counter()
            bare_close(cursor, rows, now)
            link.commit()
            closing += time.perf_counter() - claimed
            claiming += claimed - began
    return Spent(claiming, closing, count // batch * batch)


def bare_claim(cursor: Any, batch: int) -> tuple[list[Any], Any]:
    """Take a batch: its rows, and when they were claimed."""
    cursor.execute("SELECT UTC_TIMESTAMP(6)")
    now = cursor.fetchone()[0]
    cursor.execute(
        "SELECT id, attempt, priority, run_at, vars FROM workerd_jobs FORCE INDEX (workerd_holder)"
        " WHERE status = 'new' AND holder = %s ORDER BY priority, run_at LIMIT %s FOR UPDATE SKIP LOCKED",
        (HANDLER, batch),
    )
    return update_claimed(cursor, now)


def claim_by_id(cursor: Any, batch: int, last: bytes) -> tuple[list[Any], Any]:
    """Take a batch in the order of the primary key, from behind the last one."""
    cursor.execute("SELECT UTC_TIMESTAMP(6)")
    now = cursor.fetchone()[0]
    cursor.execute(
        "SELECT id, attempt, priority, run_at, vars FROM workerd_jobs FORCE INDEX (PRIMARY)"
        f" WHERE id > x'{last.hex()}' AND status = 'new' AND handler = %s"
        " ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED",
        (HANDLER, batch),
    )
    return update_claimed(cursor, now)


def update_claimed(cursor: Any, now: Any) -> tuple[list[Any], Any]:
    """Mark the rows of the last SELECT as claimed."""
    rows = list(cursor.fetchall())
    ids = ",".join(f"x'{row[0].hex()}'" for row in rows)
    cursor.execute(
        f"UPDATE workerd_jobs SET status = 'inprogress', node_id = x'{NODE.id.hex()}', node = 'floor',"
        f" claimed_at = '{now}' WHERE attempt = 1 AND id IN ({ids})"
    )
    return rows, now


def bare_close(cursor: Any, rows: list[Any], now: Any) -> None:
    """Close them as completed, with payload, timings and resources."""
    when = f"TIMESTAMP'{now}'"
    derived = " UNION ALL SELECT ".join(
        f"x'{row[0].hex()}' AS id, '{n}' AS payload, {when} AS started_at, {when} AS finished_at,"
        f" {n} AS run_us, {n} AS cpu_us"
        for n, row in enumerate(rows)
    )
    cursor.execute(
        f"UPDATE (SELECT {derived}) AS o STRAIGHT_JOIN workerd_jobs AS j FORCE INDEX (PRIMARY)"
        " ON j.id = o.id AND j.attempt = 1 SET j.status = 'completed', j.reason = 'ok', j.success = 1,"
        " j.payload = o.payload, j.payload_type = 'json', j.started_at = o.started_at,"
        " j.finished_at = o.finished_at, j.run_us = o.run_us, j.cpu_us = o.cpu_us, j.max_rss_kib = 9000,"
        f" j.pid = 4711, j.ingested_at = UTC_TIMESTAMP(6) WHERE j.status = 'inprogress'"
        f" AND j.node_id = x'{NODE.id.hex()}' AND j.claimed_at = {when}"
    )


def drop_indexes(url: str) -> None:
    """Leave the table of jobs only its primary key."""
    with Rows(url).connection() as link:
        cursor = link.cursor()
        cursor.execute(
            "SELECT DISTINCT index_name FROM information_schema.statistics WHERE table_schema = DATABASE()"
            " AND table_name = 'workerd_jobs' AND index_name <> 'PRIMARY'"
        )
        drops = ", ".join(f"DROP INDEX {name}" for (name,) in cursor.fetchall())
        cursor.execute(f"ALTER TABLE workerd_jobs {drops}")


def server_us_alone(server: Server, count: int, batch: int) -> float:
    """Microseconds of the server's CPU time for a job, by the bare statements and the primary key alone."""
    url = filled(server, count)
    drop_indexes(url)
    time.sleep(PURGE_S)
    before = server.cpu()
    jobs = bare(url, count, batch, indexed=False).jobs
    time.sleep(PURGE_S)
    return (server.cpu() - before) / jobs * 1e6


# -- the program's own functions


def own(url: str, count: int, batch: int) -> Spent:
    """The same through `workerd.store`."""
    store = open_store(StoreConfig(url=url))
    claiming = closing = 0.0
    cursor: Cursor | None = None
    try:
        for _ in range(count // batch):
            began = time.perf_counter()
            taken = own_claim(store, batch, cursor)
            cursor = taken.cursor
            claimed = time.perf_counter()
            ended = [outcome_of(n, claim) for n, claim in enumerate(taken.claims)]
            closing_began = time.perf_counter()
            done = store.run(lambda tx, ended=ended: outcomes.close(tx, ended, NODE.id))
            closing += time.perf_counter() - closing_began
            claiming += claimed - began
            assert len(done.refs) == batch
    finally:
        store.close()
    return Spent(claiming, closing, count // batch * batch)


def own_claim(store: Store, batch: int, cursor: Cursor | None) -> claims.ClaimBatch:
    """One claim in its transaction."""
    return store.run(lambda tx: claims.claim(tx, HANDLER, batch, NODE, cursor))


def outcome_of(n: int, claim: Claim) -> Outcome:
    """The outcome of a job that returned its number."""
    return Outcome(
        id=claim.id, attempt=claim.attempt, claimed_at=claim.claimed_at, handler=claim.handler,
        status=Status.COMPLETED, reason=Reason.OK, success=True, payload=str(n).encode(),
        payload_type="json", run_at=claim.run_at, started_at=claim.claimed_at + n,
        finished_at=claim.claimed_at + n + 20, usage=Usage(20 + n % 7, 15 + n % 5, 9000),
        pid=4711,
    )  # fmt: skip


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Floor, store functions, whole program in turn, on one server; then the ratio."""
    repeats = options.repeats or (3 if options.quick else 5)
    count, batch = options.jobs or 20_000, options.batch
    case = throughput.Case("the whole program, 2 workers", jobs=count)
    floors: list[Spent] = []
    owns: list[Spent] = []
    wholes: list[Turn] = []
    alone: list[float] = []
    with Server("mariadb") as server:
        bare(filled(server, WARM), WARM, batch)
        own(filled(server, WARM), WARM, batch)
        with ExitStack() as stack:
            turn = None if options.statements else stack.enter_context(whole(server, case))
            for _ in range(repeats):
                floors.append(bare(filled(server, count), count, batch))
                owns.append(own(filled(server, count), count, batch))
                if turn is not None:
                    wholes.append(turn())
                    alone.append(server_us_alone(server, count, batch))
            if turn is not None:
                floors.append(bare(filled(server, count), count, batch))
        settings = server.settings | {"jobs": count, "batch": batch, "connections": 1}
    for name, spent in (("bare statements", floors), ("the program's store functions", owns)):
        parts = {
            "claim_us": statistics.median(s.claiming / s.jobs * 1e6 for s in spent),
            "close_us": statistics.median(s.closing / s.jobs * 1e6 for s in spent),
        }
        yield Figure("floor", name, "jobs/s", [s.rate for s in spent], parts, settings)
    if wholes:
        rates = [turn.rate for turn in wholes]
        yield Figure("floor", case.name, "jobs/s", rates, settings=settings | {"workers": 2})
        beside = [(before.rate + after.rate) / 2 for before, after in pairwise(floors)]
        ratios = [rate / floor for rate, floor in zip(rates, beside, strict=True)]
        yield Figure(
            "floor", "whole program / bare statements", "ratio", ratios, settings=settings, goal="0.8"
        )
        used = [turn.server_us for turn in wholes]
        yield Figure(
            "floor", "server CPU, whole program / bare statements with the primary key alone", "ratio",
            [ours / bound for ours, bound in zip(used, alone, strict=True)],
            settings=settings | {"server_us": used, "server_us_alone": alone}, goal="1.5", better="less",
        )  # fmt: skip


class Turn(NamedTuple):
    """Jobs a second of the whole program, and microseconds of the server's CPU time for each."""

    rate: float
    server_us: float


@contextmanager
def whole(server: Server, case: throughput.Case) -> Iterator[Callable[[], Turn]]:
    """A warm node with 2 workers; each call drains the case's jobs."""
    table = f'call = "{HANDLERS}:{case.call}"\nworkers = {case.workers}'
    with Node(server.url(), config({HANDLER: table})) as node:
        throughput.drain(node, [HANDLER], WARM, case)

        def turn() -> Turn:
            node.forget()
            before = server.cpu()
            count, seconds, enqueueing = throughput.drain(node, [HANDLER], case.jobs, case, server)
            time.sleep(PURGE_S)
            return Turn(count / seconds, (server.cpu() - before - enqueueing) / count * 1e6)

        yield turn


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--jobs", type=int, default=0)
    made.add_argument("--batch", type=int, default=500)
    made.add_argument("--statements", action="store_true", help="only the statements")
    return made


if __name__ == "__main__":
    raise SystemExit(main(arguments(), measure))
