"""How many jobs per second do requests run: 1,000 requests of 2 steps with 3 jobs each?

    python -m benchmarks.bench_requests [--store mariadb|sqlite] [--requests 1000] [--workers 2]

The requests are inserted at once. Counted from the first job's insertion to the last job's commit, by the
store's clock; every job returns extras, which are merged into those of its request. At the end every request
must be completed, with each job run once.
"""

from __future__ import annotations

import argparse
import sys
import uuid
from collections.abc import Iterator

from benchmarks.harness import HANDLERS, STORES, Figure, Node, Server, config, main, moment, parser
from tests.support.eventually import eventually

STEPS = 2
JOBS = 3
GOAL = {"mariadb": "1,000"}


def configuration(workers: int) -> str:
    """Two steps of three handlers, all in one pool."""
    handlers = {
        f"step{step}_job{job}": f'call = "{HANDLERS}:hand_on"\npool = "work"'
        for step in range(STEPS)
        for job in range(JOBS)
    }
    names = [[f'"step{step}_job{job}"' for job in range(JOBS)] for step in range(STEPS)]
    steps = ", ".join(f'{{ name = "{n}", jobs = [{", ".join(jobs)}] }}' for n, jobs in enumerate(names))
    more = f"[pools.work]\nworkers = {workers}\n[workflows.flow]\nsteps = [{steps}]\n"
    return config(handlers, more=more)


def ask(node: Node, count: int) -> None:
    """So many requests, as another program would insert them, all in one transaction."""
    rows = [(uuid.uuid4().bytes, "flow", f'{{"n": {n}}}') for n in range(count)]
    mark = "?" if node.rows.sqlite else "%s"
    with node.rows.connection() as connection:
        cursor = connection.cursor()
        cursor.execute("BEGIN")
        cursor.executemany(
            f"INSERT INTO workerd_requests (id, workflow, params) VALUES ({mark}, {mark}, {mark})", rows
        )
        connection.commit()


def once(node: Node, count: int) -> float:
    """Jobs a second of one round."""
    node.rows.sql("DELETE FROM workerd_jobs")
    node.rows.sql("DELETE FROM workerd_requests")
    ask(node, count)
    live = "SELECT 1 FROM workerd_requests WHERE status IN ('queuing', 'inprogress') LIMIT 1"
    eventually(lambda: not node.rows.sql(live), within=600, every=0.05, state=node.daemon.tail)
    (states,) = node.rows.sql("SELECT MIN(status) AS a, MAX(status) AS b FROM workerd_requests")
    (jobs,) = node.rows.sql(
        "SELECT COUNT(*) AS n, COUNT(DISTINCT id) AS ids, MIN(status) AS a, MAX(status) AS b,"
        " MIN(created_at) AS began, MAX(ingested_at) AS ended FROM workerd_jobs"
    )
    assert states["a"] == states["b"] == jobs["a"] == jobs["b"] == "completed", (states, jobs)
    assert jobs["n"] == jobs["ids"] == count * STEPS * JOBS, jobs
    return float(jobs["n"] / (moment(jobs["ended"]) - moment(jobs["began"])).total_seconds())


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """One node on each store; the first round warms it up."""
    for kind in [options.store] if options.store else STORES:
        with Server(kind) as server, Node(server.url(), configuration(options.workers)) as node:
            once(node, 50)
            values = [once(node, options.requests) for _ in range(options.repeats or 3)]
            yield Figure(
                "requests",
                f"{kind}, {options.requests} of {STEPS} steps × {JOBS} jobs",
                "jobs/s",
                values,
                settings={**server.settings, "workers": options.workers},
                goal=GOAL.get(kind, ""),
            )


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("--store", choices=STORES)
    arguments.add_argument("--requests", type=int, default=1000)
    arguments.add_argument("--workers", type=int, default=2)
    sys.exit(main(arguments, measure))
