"""Do several daemons on one database share the work, and at what rate?

    python -m benchmarks.nodes
    python -m benchmarks.nodes --galera         # also each daemon on a server of its own, of one cluster

Daemons with 2 workers each on this machine, so that more nodes than cores share CPUs; the point is that their
claims do not block each other. Each figure lists how many jobs each node ran.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack

from benchmarks.harness import HANDLERS, Figure, Node, Server, config, mail, main, moment, parser
from tests.support.galera import Galera


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """1, 2 and 3 nodes; on Galera as many servers."""
    jobs = options.jobs or (20_000 if options.quick else 30_000)
    repeats = options.repeats or (1 if options.quick else 3)
    for count in (1, 2, 3):
        with Server("mariadb") as server:
            url = server.url()
            rates, shares = drained([url] * count, jobs, repeats)
            settings = server.settings | {"jobs": jobs, "workers": 2, "by_node": shares}
            yield Figure("nodes", f"{count} nodes on one server", "jobs/s", rates, settings=settings)
    if options.galera:
        cluster = Galera(3).start()
        try:
            rates, shares = drained(cluster.urls("bench"), jobs, repeats)
        finally:
            cluster.remove()
        settings = {"store": "galera", "servers": 3, "jobs": jobs, "workers": 2, "by_node": shares}
        yield Figure("nodes", "3 nodes on a Galera cluster of 3", "jobs/s", rates, settings=settings)


def drained(urls: list[str], jobs: int, repeats: int) -> tuple[list[float], list[dict[str, int]]]:
    """Jobs a second of all nodes together, and how many each ran."""
    rates, shares = [], []
    text = config({"noop": f'call = "{HANDLERS}:noop"\nworkers = 2'})
    with ExitStack() as stack:
        nodes = [stack.enter_context(Node(url, text, migrate=n == 0)) for n, url in enumerate(urls)]
        first = nodes[0]
        for _ in range(repeats + 1):
            first.forget()
            first.client.pause("noop")
            first.enqueue("noop", jobs, mail)
            first.client.resume("noop")
            first.wait_for("noop", every=0.2)
            row = first.rows.sql("SELECT MIN(claimed_at) AS a, MAX(ingested_at) AS b FROM workerd_jobs")[0]
            rates.append(jobs / (moment(row["b"]) - moment(row["a"])).total_seconds())
            told = first.rows.sql("SELECT node, COUNT(*) AS n FROM workerd_jobs GROUP BY node")
            shares.append({row["node"]: int(row["n"]) for row in told})
    return rates[1:], shares[1:]  # the first is the warm-up


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--galera", action="store_true")
    made.add_argument("--jobs", type=int, default=0)
    return made


if __name__ == "__main__":
    raise SystemExit(main(arguments(), measure))
