"""Failover: each cluster, each fault, under load; what was lost, and how soon jobs ran again.

    python -m benchmarks.failover [--only "group, one primary"] [--rounds N]

Two nodes; jobs by client, HTTP and command line, each sent again with the same id until it is accepted.
Prints a line for each fault. Exit status 1 if anything was lost, ran twice, was not true, stayed claimed for
longer than a lease, or if a process was restarted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.failover import Trial
from tests.support.failover_cases import Group, Pair
from tests.support.servers import template

FAULTS = ("killed", "frozen", "switched", "without_majority", "behind")
CLUSTERS: dict[str, Callable[[], Any]] = {
    "group, one primary": lambda: Group(single=True),
    "group, several primaries": lambda: Group(single=False),
    "MariaDB behind HAProxy": lambda: Pair(proxied=True),
    "MariaDB, both in the URL": lambda: Pair(proxied=False),
}
ONLY_ONE_PRIMARY = ("switched", "behind")


def faults_of(name: str) -> list[list[str]]:
    """Lists of faults, each list for one cluster: a pair has one failover in it."""
    if name.startswith("MariaDB"):
        return [[fault] for fault in FAULTS if fault != "without_majority"]
    several = name.endswith("several primaries")
    return [[fault for fault in FAULTS if not (several and fault in ONLY_ONE_PRIMARY)]]


def main() -> int:
    """Run them all; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=CLUSTERS)
    parser.add_argument("--fault", choices=FAULTS)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    wrong = False
    try:
        for name, make in CLUSTERS.items():
            if options.only in (None, name):
                missing = (Pair if name.startswith("MariaDB") else Group).missing()
                if missing:
                    print(f"{name}: not run: {missing}", flush=True)
                    continue
                for faults in faults_of(name) * options.rounds:
                    chosen = [fault for fault in faults if options.fault in (None, fault)]
                    wrong |= bool(chosen) and run(name, make, chosen)
    finally:
        template.remove()
    return int(wrong)


def run(name: str, make: Callable[[], Any], faults: list[str]) -> bool:
    """These faults of one cluster, one after the other; returns whether anything was wrong."""
    wrong = False
    cluster = make()
    try:
        with tempfile.TemporaryDirectory() as folder, Trial(Path(folder), cluster) as trial:
            for fault in faults:
                report = trial.strike(getattr(cluster, fault)())
                print(f"{name}: {report}", flush=True)
                wrong |= bool(report.wrong)
    finally:
        cluster.remove()
    return wrong


if __name__ == "__main__":
    sys.exit(main())
