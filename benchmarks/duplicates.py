"""Does the newest data always run, whoever writes it?

    python -m benchmarks.duplicates
    python -m benchmarks.duplicates --galera --seconds 10

Eight writers enqueue one unique key for some seconds, while its jobs run. After each write something must
begin to run that is as new, runs never overlap, and none has older data than the one before. On Galera there
are two daemons, each on a server of its own, and four writers on each.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.harness import STORES, Figure, Node, Server, config, folder, main, parser, spread
from tests.support.eventually import eventually
from tests.support.galera import Galera
from tests.support.newest_data import never_ran, overlapping, read_runs, went_back, write_in_turns
from workerd.client import Client

WRITERS = 8
WORDS = ("replace", "debounce", "follow")
HANDLER = {"h": 'call = "tests.support.handlers:note_span"\nworkers = 4'}


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Each word on each store."""
    for kind in [options.store] if options.store else STORES:
        with Server(kind) as server:
            yield from _of_store([server.url()], server.settings, options.seconds)
    if options.galera:
        cluster = Galera(2).start()
        try:
            yield from _of_store(cluster.urls("bench"), {"store": "galera", "servers": 2}, options.seconds)
        finally:
            cluster.remove()


def _of_store(urls: Sequence[str], settings: dict[str, Any], seconds: float) -> Iterator[Figure]:
    with ExitStack() as stack:
        text = config(HANDLER)
        nodes = [stack.enter_context(Node(url, text, migrate=n == 0)) for n, url in enumerate(urls)]
        kept = stack.enter_context(folder())
        for word in WORDS:
            found = _written(nodes, word, seconds, kept / word)
            wrong = found["never_ran"] + found["overlapping"] + found["went_back"]
            yield Figure(
                "duplicates", f"{word}: writes whose data never ran, or ran too late", "writes", [wrong],
                settings=settings | {"writers": WRITERS, "seconds": seconds} | found, goal="0", better="less",
            )  # fmt: skip


def _written(nodes: Sequence[Node], word: str, seconds: float, path: Path) -> dict[str, Any]:
    clients = [Client(nodes[n % len(nodes)].daemon.path, connections=1) for n in range(WRITERS)]
    end = time.monotonic() + seconds
    writes, unanswered = write_in_turns(clients, "h", word, lambda _: time.monotonic() > end, path)
    for client in clients:
        client.close()
    live = "SELECT 1 FROM workerd_jobs WHERE status IN ('scheduled', 'new', 'inprogress') LIMIT 1"
    eventually(lambda: not nodes[0].rows.sql(live), within=60, every=0.1, state=nodes[0].daemon.tail)
    runs = read_runs(path)
    return {
        "writes": len(writes),
        "unanswered": unanswered,
        "runs": len(runs),
        "never_ran": len(never_ran(writes, runs)),
        "overlapping": len(overlapping(runs)),
        "went_back": len(went_back(writes, runs)),
        "write_ms": spread([(write.ended - write.began) / 1e6 for write in writes]),
    }


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--store", choices=STORES, default="")
    made.add_argument("--galera", action="store_true")
    made.add_argument("--seconds", type=float, default=10.0)
    return made


if __name__ == "__main__":
    raise SystemExit(main(arguments(), measure))
