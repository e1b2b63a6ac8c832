"""What does the ending of a job cost in a graph of 100, 10,000 and 100,000 jobs?

    python -m benchmarks.graphs [--store mariadb|sqlite] [--quick]

Each graph is one chain, so that every ending lets one job begin. It is written and released in slices, as
client and dispatcher do it; then one job after the other is claimed and closed, as dispatcher and ingester do
it, in this process. The longest slice is how long the request's row is locked at most.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.harness import STORES, Figure, Server, main, parser
from tests.support import storing
from workerd.config.handler_config import HandlerConfig, PoolConfig
from workerd.config.model import Config, StoreConfig
from workerd.operations import request_graphs
from workerd.store import batches
from workerd.store.base import Store
from workerd.store.engines import open_store

SIZES = (100, 10_000, 100_000)
ENDINGS = 50
CONFIG = Config(pools={"p": PoolConfig(name="p", handlers=(HandlerConfig(name="h", call="m:f", pool="p"),))})


def timed(call: Callable[[], Any], spent: list[float]) -> Any:
    """Call it; note how long that takes in ms."""
    began = time.perf_counter()
    found = call()
    spent.append((time.perf_counter() - began) * 1000)
    return found


def end_one(store: Store) -> None:
    """Claim and close the job that has begun."""
    (claim,) = storing.claims(store, "h", 1)
    storing.close(store, [storing.outcome(claim)])


def once(store: Store, size: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each slice, and of each ending."""
    jobs = [{"name": str(n), "handler": "h", "needs": [str(n - 1)] if n else []} for n in range(size)]
    plan = store.read(lambda tx: request_graphs.checked(tx, CONFIG, {"jobs": jobs}))
    slices: list[float] = []
    request_graphs.submit_in_slices(lambda work: timed(lambda: store.run(work), slices), plan)
    while timed(lambda: store.run(batches.work), slices).found:
        pass
    endings: list[float] = []
    for _ in range(ENDINGS):
        timed(lambda: end_one(store), endings)
    return slices, endings


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """A store of its own for each size."""
    for kind in [options.store] if options.store else STORES:
        with Server(kind) as server:
            for size in SIZES[:2] if options.quick else SIZES:
                store = open_store(StoreConfig(url=server.url()), timeout=60.0)
                store.migrate()
                slices, endings = once(store, size)
                store.close()
                case = f"{kind}, a chain of {size:,}"
                settings = {**server.settings, "jobs": size}
                yield Figure("graphs", f"{case}: one ending", "ms", endings, settings=settings, better="less")
                yield Figure(
                    "graphs", f"{case}: longest slice", "ms", [max(slices)], settings=settings, better="less"
                )


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("--store", choices=STORES)
    sys.exit(main(arguments, measure))
