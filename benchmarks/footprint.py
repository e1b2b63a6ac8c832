"""What does an idle node cost in memory, CPU and queries, and does it grow?

    python -m benchmarks.footprint
    python -m benchmarks.footprint --all        # also 32 workers, 10 and 50 pools, growth over 200,000 jobs

Memory is PSS of the whole tree (shared pages counted once), after a few jobs. CPU time and the
server's queries are counted over an idle period.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.harness import HANDLERS, Figure, Node, Server, config, mail, main, parser
from tests.support.servers import free_port


class Case(NamedTuple):
    """An idle node."""

    workers: int
    pools: int = 1
    gateway: bool = False
    goal: str = ""

    @property
    def name(self) -> str:
        """For the table."""
        pools = f" in {self.pools} pools" if self.pools > 1 else ""
        return f"{self.workers} workers{pools}, gateway {'on' if self.gateway else 'off'}"


QUICK = (
    Case(2, goal="40"),
    Case(8, goal="50"),
    Case(2, gateway=True, goal="65"),
    Case(8, gateway=True, goal="75"),
)
MORE = (Case(32), Case(10, 10), Case(50, 50))


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Case by case; the idle processor time for the first and the last of the quick ones."""
    cases = [*QUICK, *(MORE if options.all else ())]
    seconds = options.seconds or (15.0 if options.quick else 30.0)
    with Server("mariadb") as server:
        for case in cases:
            names = [f"h{n}" for n in range(case.pools)]
            table = f'call = "{HANDLERS}:noop"\nworkers = {case.workers // case.pools}'
            gateway = f"127.0.0.1:{free_port()}" if case.gateway else ""
            with Node(server.url(), config(dict.fromkeys(names, table)), gateway=gateway) as node:
                for name in names:
                    node.enqueue(name, 20 * case.workers // case.pools, mail)
                for name in names:
                    node.wait_for(name)
                time.sleep(2)
                used = node.pss()
                settings = server.settings | {"pss_mib": {k: round(v, 1) for k, v in used.items()}}
                yield Figure(
                    "footprint", f"PSS, {case.name}", "MiB", [sum(used.values())],
                    settings=settings, goal=case.goal, better="less",
                )  # fmt: skip
                if case in (QUICK[0], QUICK[-1], *MORE):
                    yield from idle(node, server, case, seconds)
        if options.all:
            yield from growth(server)


def idle(node: Node, server: Server, case: Case, seconds: float) -> Iterator[Figure]:
    """CPU time and queries of an idle period."""
    before, asked = node.cpu(), server.queries()
    time.sleep(seconds)
    after, asked_then = node.cpu(), server.queries()
    used = {name: round(100 * (after[name] - before.get(name, 0.0)) / seconds, 3) for name in after}
    settings = server.settings | {"seconds": seconds, "percent": used}
    yield Figure(
        "footprint", f"idle CPU, {case.name}", "%", [sum(used.values())],
        settings=settings, goal="0.3" if case == QUICK[0] else "", better="less",
    )  # fmt: skip
    yield Figure(
        "footprint", f"idle queries, {case.name}", "1/s", [(asked_then - asked - 1) / seconds],
        settings=settings, better="less",
    )  # fmt: skip


def growth(server: Server, jobs: int = 200_000) -> Iterator[Figure]:
    """Memory growth over many jobs."""
    text = config({"h0": f'call = "{HANDLERS}:noop"\nworkers = 2'})
    with Node(server.url(), text) as node:
        node.enqueue("h0", 5000, mail)
        node.wait_for("h0")
        before = node.pss()
        node.enqueue("h0", jobs, mail)
        node.wait_for("h0", every=1.0)
        time.sleep(2)
        after = node.pss()
        settings = {"jobs": jobs, "by_process": {k: round(after[k] - before.get(k, 0.0), 2) for k in after}}
        grown = sum(after.values()) - sum(before.values())
        yield Figure(
            "footprint", f"growth over {jobs} jobs", "MiB", [grown], settings=settings, better="less"
        )


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--all", action="store_true", help="every case")
    made.add_argument("--seconds", type=float, default=0.0, help="without work (default: 30, quick: 15)")
    return made


if __name__ == "__main__":
    raise SystemExit(main(arguments(), measure))
