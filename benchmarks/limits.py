"""What do limits, groups and turns cost, and do they hold?

    python -m benchmarks.limits
    python -m benchmarks.limits --quick --store mariadb

Cases: the rate of a handler under a limit that is far away, beside the same handler without one, in turns;
the same for fair turns of 10,000 groups; the rate of a group beside a full group with many waiting jobs; the
wait of a group that adds a job now and then while another floods.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator

from benchmarks.harness import HANDLERS, STORES, Figure, Node, Server, config, mail, main, moment, parser
from workerd.job_spec import JobSpec

LIMITS = """
[limits.far]
concurrency = 5000
[limits.full]
group_concurrency = 2
"""
TABLES = {
    "plain": f'call = "{HANDLERS}:noop"\nworkers = 2',
    "limited": f'call = "{HANDLERS}:noop"\nworkers = 2\nlimit = "far"',
    "turns": f'call = "{HANDLERS}:noop"\nworkers = 2\nfair = true',
    "grouped": f'call = "{HANDLERS}:sleep"\nworkers = 4\nlimit = "full"',
    "flood": f'call = "{HANDLERS}:sleep"\nworkers = 2\nfair = true',
}


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """All cases on each store."""
    jobs = options.jobs or (10_000 if options.quick else 30_000)
    repeats = options.repeats or (2 if options.quick else 3)
    waiting = options.waiting or (100_000 if options.quick else 1_000_000)
    for kind in [options.store] if options.store else STORES:
        with Server(kind) as server, Node(server.url(), config(TABLES, more=LIMITS)) as node:
            settings = server.settings | {"jobs": jobs}
            yield from _rates(node, jobs, repeats, settings)
            yield from _beside_a_full_group(node, waiting, settings)
            yield from _beside_a_flood(node, 20_000 if options.quick else 100_000, settings)


def _rates(node: Node, jobs: int, repeats: int, settings: dict[str, object]) -> Iterator[Figure]:
    found: dict[str, list[float]] = {"plain": [], "limited": [], "turns": []}
    for _ in range(repeats + 1):
        for handler, rates in found.items():
            rates.append(_drained(node, handler, jobs))
    medians = {handler: statistics.median(rates[1:]) for handler, rates in found.items()}
    for handler, goal in (("plain", ""), ("limited", "0.9"), ("turns", "0.8")):
        share = [rate / medians["plain"] for rate in found[handler][1:]]
        more = settings | {"jobs_per_s": [round(rate) for rate in found[handler][1:]]}
        yield Figure("limits", f"{handler} / plain", "share", share, settings=more, goal=goal)


def _drained(node: Node, handler: str, jobs: int) -> float:
    """Jobs a second, each of one of 10,000 groups."""
    node.forget()
    node.client.pause(handler)
    for start in range(0, jobs, 2000):
        node.client.enqueue_many([
            JobSpec(handler=handler, vars=mail(n), group=f"g{n % 10_000}") for n in range(start, start + 2000)
        ])  # fmt: skip
    node.client.resume(handler)
    node.wait_for(handler, every=0.2)
    row = node.rows.sql("SELECT MIN(claimed_at) AS a, MAX(ingested_at) AS b FROM workerd_jobs")[0]
    return jobs / (moment(row["b"]) - moment(row["a"])).total_seconds()


def _beside_a_full_group(node: Node, waiting: int, settings: dict[str, object]) -> Iterator[Figure]:
    """Seconds that 100 jobs of one group take, alone and beside a full group with so many waiting jobs."""
    node.forget()
    alone = _of_one_group(node, "alone")
    specs = [JobSpec(handler="grouped", vars={"seconds": 600}, group="full") for _ in range(2000)]
    for _ in range(waiting // len(specs)):
        node.client.enqueue_many(specs)
    _of_one_group(node, "first")  # which moves the others out of the way
    beside = [_of_one_group(node, f"other{n}") for n in range(3)]
    share = [alone / one for one in beside]
    more = settings | {"waiting": waiting, "alone_s": alone, "beside_s": beside}
    yield Figure("limits", "beside a full group / alone", "share", share, settings=more, goal="0.9")
    node.rows.sql("UPDATE workerd_jobs SET cancel_requested_at = created_at WHERE status = 'inprogress'")
    node.rows.sql("UPDATE workerd_jobs SET status = 'cancelled' WHERE status = 'new'")
    node.wait_for("grouped")


def _of_one_group(node: Node, group: str) -> float:
    began = time.monotonic()
    node.client.enqueue_many([
        JobSpec(handler="grouped", vars={"seconds": 0.01}, group=group) for _ in range(100)
    ])  # fmt: skip
    sql = "SELECT COUNT(*) AS n FROM workerd_jobs WHERE group_key = %s AND status = 'completed'"
    while node.rows.sql(sql, group)[0]["n"] < 100:
        time.sleep(0.05)
    return round(time.monotonic() - began, 2)


def _beside_a_flood(node: Node, flood: int, settings: dict[str, object]) -> Iterator[Figure]:
    """How long jobs of a group wait that come one at a time, alone and beside a flood of another group."""
    node.forget()
    alone = [_wait(node, "b") for _ in range(20)]
    specs = [JobSpec(handler="flood", vars={"seconds": 0.02}, group="a") for _ in range(2000)]
    for _ in range(flood // len(specs)):
        node.client.enqueue_many(specs)
    beside = [_wait(node, "b") for _ in range(20)]
    for case, waits in (("a job alone", alone), ("a job beside a flood", beside)):
        parts = {"p50": statistics.median(waits), "max": max(waits)}
        yield Figure("limits", case, "ms", parts=parts, settings=settings | {"flood": flood}, better="less")
    node.rows.sql("UPDATE workerd_jobs SET status = 'cancelled' WHERE status = 'new'")
    node.wait_for("flood")


def _wait(node: Node, group: str) -> float:
    """Milliseconds from when a job was made until it was claimed."""
    time.sleep(0.1)
    job = node.client.enqueue("flood", {"seconds": 0.02}, group=group)
    ended = node.client.wait(job.id, 60)
    assert ended.claimed_at is not None
    assert ended.created_at is not None
    return round((ended.claimed_at - ended.created_at).total_seconds() * 1000, 1)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--store", choices=STORES, default="")
    made.add_argument("--jobs", type=int, default=0)
    made.add_argument("--waiting", type=int, default=0)
    return made


if __name__ == "__main__":
    raise SystemExit(main(arguments(), measure))
