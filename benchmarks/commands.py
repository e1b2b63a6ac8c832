"""What does it cost to run a program for each job?

    python -m benchmarks.commands
    python -m benchmarks.commands --store sqlite --jobs 500

Jobs of one worker, by the run time that their rows tell: a Python function that returns at once, /bin/true,
a shell that prints, and Python as a program (a start of an interpreter, as a program in any language has
one). The difference between a program and the function is its spawn, its pipes and its end.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator

from benchmarks.harness import HANDLERS, STORES, Figure, Node, Server, config, main, parser

COMMANDS = {
    "/bin/true": 'command = ["/bin/true"]',
    "sh -c 'echo $1'": 'command = ["/bin/sh", "-c", \'echo "$1"\', "sh", "{n}"]',
    "python -c pass": f'command = ["{sys.executable}", "-c", "pass"]',
}


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Run times in milliseconds; the cases take turns."""
    count = options.jobs or (200 if options.quick else 500)
    cases = {"a Python function": f'call = "{HANDLERS}:noop"', **COMMANDS}
    names = {case: f"h{number}" for number, case in enumerate(cases)}
    text = config({names[case]: f"{lines}\nworkers = 1" for case, lines in cases.items()})
    times: dict[str, list[float]] = {case: [] for case in cases}
    with Server(options.store) as server, Node(server.url(), text) as node:
        for _ in range(options.repeats or 3):
            for case, handler in names.items():
                node.forget()
                node.enqueue(handler, count, lambda n: {"n": n})
                node.wait_for(handler)
                rows = node.rows.sql("SELECT run_us FROM workerd_jobs WHERE reason = 'ok'")
                times[case].append(statistics.median(row["run_us"] for row in rows) / 1000)
        settings = server.settings | {"jobs": count, "workers": 1}
    for case, values in times.items():
        yield Figure("commands", f"{options.store}: {case}", "ms", values, settings=settings, better="less")


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--jobs", type=int, default=0, help="a turn (default: 500)")
    made.add_argument("--store", choices=STORES, default=STORES[0])
    return made


if __name__ == "__main__":
    raise SystemExit(main(arguments(), measure))
