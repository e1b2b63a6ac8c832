"""How many jobs per second does a node claim, run and record?

    python -m benchmarks.throughput                         # 2 workers, MariaDB and SQLite
    python -m benchmarks.throughput --all                   # every case: workers, durations, payloads, pools
    python -m benchmarks.throughput --store mariadb --workers 4 --jobs 50000

The jobs wait in the store with their handler paused; then it is resumed. The rate is the number of completed
rows divided by the time from the first claim to the last commit, by the store's clock. Every case has a node
of its own, warmed up by jobs that do not count.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import HANDLERS, STORES, Figure, Node, Server, config, mail, main, parser

GOALS = {"mariadb": "15,000", "sqlite": "10,000"}


@dataclass
class Case:
    """The load of one node."""

    name: str
    store: str = "mariadb"
    workers: int = 2
    pools: int = 1
    jobs: int = 30_000
    call: str = "noop"
    vars_of: Callable[[int], dict[str, Any]] = mail
    seconds: float = 0.0
    goal: str = ""


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """The cases selected on the command line."""
    jobs = options.jobs or (20_000 if options.quick else 30_000)
    stores = [options.store] if options.store else STORES
    for store in stores:
        yield Case(
            f"{store}, {options.workers} workers", store, options.workers, jobs=jobs, goal=GOALS[store]
        )
    if not options.all and not options.quick:
        return
    ten = Case("10 ms jobs, 8 workers", workers=8, jobs=4000, call="sleep", seconds=0.01, goal="97 %")
    ten.vars_of = lambda n: {"seconds": 0.01}
    yield ten
    for pools in (1, 50):
        yield Case(f"50 workers in {pools} pool{'s' * (pools > 1)}", workers=50, pools=pools, jobs=jobs // 2)
    if not options.all:
        return
    for workers in (1, 4, 8):
        yield Case(f"mariadb, {workers} workers", workers=workers, jobs=jobs)
    yield Case("50 workers in 10 pools", workers=50, pools=10, jobs=jobs // 2)
    for ms, count in ((1, 10_000), (100, 400)):
        seconds = ms / 1000
        yield Case(
            f"{ms} ms jobs, 8 workers", workers=8, jobs=count, call="sleep",
            vars_of=lambda n, s=seconds: {"seconds": s}, seconds=seconds,
        )  # fmt: skip
    for size, count in ((100, 20_000), (10_000, 10_000), (100_000, 2000), (1 << 20, 200)):
        yield Case(f"payload of {size} B", jobs=count, call="payload", vars_of=lambda n, s=size: {"size": s})
    for size, count in ((10_000, 10_000), (1_000_000, 200)):
        yield Case(
            f"vars of {size} B",
            jobs=count,
            call="swallow_vars",
            vars_of=lambda n, s=size: {"data": "x" * s},
        )


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Each case on a store of its own, the repeats on the same node."""
    servers: dict[str, Server] = {}
    repeats = options.repeats or 3
    rates: dict[tuple[int, int], float] = {}
    try:
        for case in cases(options):
            server = servers.get(case.store)
            if server is None:
                server = servers[case.store] = Server(case.store)
            for figure in measured(case, server, repeats):
                rates[case.workers, case.pools] = figure.median
                yield figure
        if (50, 50) in rates:
            share = [rates[50, 50] / rates[50, 1]]
            yield Figure("throughput", "50 pools / 1 pool, 50 workers", "ratio", share, goal="0.8")
    finally:
        for server in servers.values():
            server.__exit__()


def measured(case: Case, server: Server, repeats: int) -> Iterator[Figure]:
    """One case: rate, CPU cost, and for longer jobs the utilisation of the workers."""
    names = [f"h{n}" for n in range(case.pools)]
    table = f'call = "{HANDLERS}:{case.call}"\nworkers = {case.workers // case.pools}'
    rates, shares, costs = [], [], []
    with Node(server.url(), config(dict.fromkeys(names, table))) as node:
        drain(node, names, min(case.jobs, 2000), case)
        for _ in range(repeats):
            node.forget()
            before, server_before = node.cpu(), server.cpu()
            count, seconds, enqueue_cpu = drain(node, names, case.jobs, case, server)
            after = node.cpu()
            cost = {k: (after[k] - before.get(k, 0.0)) / count * 1e6 for k in after}
            cost["server"] = (server.cpu() - server_before - enqueue_cpu) / count * 1e6
            costs.append({k: round(v, 1) for k, v in cost.items()})
            rates.append(count / seconds)
            shares.append(100 * case.seconds * count / (seconds * case.workers))
    settings = server.settings | {
        "workers": case.workers, "pools": case.pools, "jobs": case.jobs, "cpu_us_per_job": costs,
    }  # fmt: skip
    if case.seconds:
        yield Figure("throughput", case.name, "% busy", shares, settings=settings, goal=case.goal)
    else:
        yield Figure("throughput", case.name, "jobs/s", rates, settings=settings, goal=case.goal)


def drain(
    node: Node, names: list[str], jobs: int, case: Case, server: Server | None = None
) -> tuple[int, float, float]:
    """Jobs, their duration in seconds, and the server's CPU time for enqueueing them."""
    for name in names:
        node.client.pause(name)
    began = server.cpu() if server else 0.0
    for name in names:
        node.enqueue(name, jobs // len(names), case.vars_of)
    enqueued = (server.cpu() if server else 0.0) - began
    for name in names:
        node.client.resume(name)
    for name in names:
        node.wait_for(name, every=0.2)
    total = node.rows.sql("SELECT COUNT(*) AS n FROM workerd_jobs WHERE status = 'completed'")[0]["n"]
    expected = jobs // len(names) * len(names)
    assert total >= expected, f"{total} of {expected} jobs were completed"
    return expected, span(node), enqueued


def span(node: Node) -> float:
    """Seconds from the first claim to the last commit, of all handlers."""
    from benchmarks.harness import moment

    row = node.rows.sql("SELECT MIN(claimed_at) AS began, MAX(ingested_at) AS ended FROM workerd_jobs")[0]
    return float((moment(row["ended"]) - moment(row["began"])).total_seconds())


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--all", action="store_true", help="every case")
    made.add_argument("--store", choices=STORES, help="only this one")
    made.add_argument("--workers", type=int, default=2)
    made.add_argument("--jobs", type=int, default=0)
    return made


if __name__ == "__main__":
    raise SystemExit(main(arguments(), measure))
