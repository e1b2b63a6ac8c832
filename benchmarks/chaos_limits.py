"""Limits under chaos: three nodes, everything is killed, and the handlers themselves count what overlaps.

    python -m benchmarks.chaos_limits --jobs 10000 --store mariadb

The same run as `benchmarks.chaos`, with two handlers that share one limit: concurrency, of groups too, and a
rate. The first node has both, the others one each. What runs at the same time is counted by locks of the
kernel, which end with their process; starts are read from the store. Prints besides: how often a run found
the limit exceeded, by how many starts the rate was exceeded in any window, slots that are left at the end.
Exit status 1 if any of these is not 0.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from benchmarks import chaos
from benchmarks.harness import moment
from tests.support.daemon import ROOT
from tests.support.eventually import eventually
from tests.support.limit_handlers import GROUP_MOST, MOST, counted_over

RATE, BURST = 400, 40
GROUPS = 12
CONFIG = f"""
[shutdown]
drain = "5s"
[dispatcher]
lease = "5s"
[limits.shared]
concurrency = {MOST}
group_concurrency = {GROUP_MOST}
rate = "{RATE}/1s"
burst = {BURST}
[defaults]
path = ["{ROOT}"]
call = "tests.support.limit_handlers:record_overlaps"
limit = "shared"
group = "{{tenant}}"
max_attempts = 20
max_crashes = 1000
backoff = {{ first = "10ms", factor = 1.0, max = "10ms" }}
restart = {{ intensity = 100000, period = "1s" }}
"""
RECORD, RECORD2 = "[handlers.record]\nworkers = 4\n", "[handlers.record2]\nworkers = 2\n"


class LimitChaos(chaos.Chaos):
    """Three nodes on one store, one on an embedded store."""

    def config_of(self, number: int) -> str:
        return CONFIG + {1: RECORD + RECORD2, 2: RECORD, 3: RECORD2}[number]

    def node_urls(self) -> list[str]:
        urls = self.target.urls
        return urls if self.target.kind == "sqlite" else [urls[n % len(urls)] for n in range(3)]

    def job_vars(self) -> dict[str, Any]:
        return {**super().job_vars(), "tenant": f"tenant {self.chance.randrange(GROUPS)} 💶"}

    def settle(self) -> None:
        """Slots of jobs that were retried at the very end are freed with their ends."""
        with contextlib.suppress(AssertionError):
            eventually(lambda: not self.slots(), within=60, every=0.2)

    def slots(self) -> int:
        return int(self.rows.sql("SELECT COUNT(*) AS n FROM workerd_slots")[0]["n"])

    def figures(self, seconds: float, unsettled: int) -> dict[str, Any]:
        found = super().figures(seconds, unsettled)
        rows = self.rows.sql("SELECT claimed_at FROM workerd_jobs WHERE claimed_at IS NOT NULL")
        starts = sorted(moment(row["claimed_at"]).timestamp() for row in rows)
        return found | {
            "benchmark": "chaos_limits",
            "over_the_limit": counted_over(self.runs),
            "over_the_rate": starts_over(starts, RATE, BURST),
            "slots_left": self.slots(),
        }


def starts_over(starts: list[float], rate: float, burst: int) -> int:
    """By how many starts the fullest window of any length has more than `rate x window + burst`."""
    lowest, most = float("inf"), 0.0
    for number, at in enumerate(starts):
        ahead = number - rate * (at - starts[0])
        lowest = min(lowest, ahead)
        most = max(most, ahead - lowest + 1)
    return max(0, int(most - burst - 1e-3))


def is_bad(result: dict[str, Any]) -> bool:
    """Whether a limit was broken, or something is left of it."""
    return bool(result["over_the_limit"] or result["over_the_rate"] or result["slots_left"])


def main(words: list[str] | None = None) -> int:
    """Run and print; exit status 1 if a guarantee was broken."""
    return chaos.main(words, LimitChaos, is_bad)


if __name__ == "__main__":
    sys.exit(main())
